"""Stages of the route as commands of the product, each caught in the middle of a request when its store goes away.

Each stage has zones, a home and a proxy of its own. The proxy holds the stage's first request until all stages are up,
and then its n-th, half sent: what is under way when the store is stopped is the same however slow the machine is.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from counting_proxy import Passing, Proxy, listening
from environs import on_one_core

from pipeline.settings import Settings

SPEAKS = re.compile(r"has not answered for \d+ s|does not answer|answers again|No S3 object store answers")
READY_S = 120


class HaltingProxy(Proxy):
    """Counts requests, and holds two of them."""

    def __init__(self, endpoint: str, number: int) -> None:
        super().__init__(endpoint, Halting)
        self.number = number
        self.up, self.go = threading.Event(), threading.Event()
        self.caught, self.loose = threading.Event(), threading.Event()
        self.seen = 0
        self._lock = threading.Lock()

    def count(self) -> int:
        """The number of the request that has just come."""
        with self._lock:
            self.seen += 1
            return self.seen


class Halting(Passing):
    """One connection of a stage."""

    server: HaltingProxy

    def transmit(self, body: bytes) -> None:
        """Send a request's body, with a pause in its middle where that is wanted."""
        number = self.server.count()
        self.server.up.set()
        self.server.go.wait()
        half = len(body) // 2 if number >= self.server.number else 0
        self.upstream.send(body[:half])
        if number >= self.server.number:
            self.server.caught.set()
            self.server.loose.wait()
        self.upstream.send(body[half:])


@dataclass
class Stage:
    """A stage under way.

    Attributes:
        name: of the stage.
        settings: its zones and home.
        proxy: its way to the store.
        process: of the command.
        said: lines on its standard error, with when they came.
    """

    name: str
    settings: Settings
    proxy: HaltingProxy
    process: subprocess.Popen[str]
    said: list[tuple[float, str]] = field(default_factory=list)
    result: str = ""

    @property
    def log(self) -> str:
        """What it said so far."""
        return "".join(line for _, line in self.said)

    def silence(self, begin: float, end: float) -> float:
        """The longest time between two moments without a line that tells of the store, in seconds."""
        moments = [begin, *(at for at, line in self.said if begin < at < end and SPEAKS.search(line)), end]
        return max(later - earlier for earlier, later in pairwise(moments))

    def wait_for(self, event: threading.Event) -> None:
        """Return when its proxy says so; the stage must not end before."""
        deadline = time.monotonic() + READY_S
        while not event.wait(0.05):
            assert self.process.poll() is None, f"{self.name} ended too early: {self.log}"
            assert time.monotonic() < deadline, f"{self.name} took too long: {self.log}"

    def end(self, timeout_s: float) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self.name} did not end in {timeout_s:.0f} s: {self.log}") from error


@contextmanager
def started(name: str, settings: Settings, command: list[str], number: int, **more: str) -> Iterator[Stage]:
    """A stage whose ``number``-th request will be held; killed at the end, should it still run."""
    proxy = HaltingProxy(settings.s3_endpoint or "", number)
    with (
        listening(proxy),
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env=on_one_core(settings.model_copy(update={"s3_endpoint": proxy.url}), **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        stage = Stage(name, settings, proxy, process)
        readers = [threading.Thread(target=read) for read in (_hearing(stage), _collecting(stage))]
        for reader in readers:
            reader.start()
        try:
            yield stage
        finally:
            for event in (proxy.go, proxy.loose):
                event.set()
            process.kill()
            process.wait()
            for reader in readers:
                reader.join()


def _hearing(stage: Stage) -> Callable[[], None]:
    def read() -> None:
        assert stage.process.stderr
        for line in stage.process.stderr:
            stage.said.append((time.monotonic(), line))

    return read


def _collecting(stage: Stage) -> Callable[[], None]:
    def read() -> None:
        assert stage.process.stdout
        stage.result = stage.process.stdout.read()

    return read
