"""``python -m serving`` as a process of a test, on a real object store."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import tiny_models
from live_server import wait_until

from pipeline import aliases, embedded_store, images, inference_server, processes
from pipeline.artifacts import ModelVersion
from pipeline.settings import Settings
from pipeline.zones import Zones

MODEL = "shapes"
PNG = images.encode_png(tiny_models.picture(5))


@dataclass(frozen=True)
class Serving:
    """A running ``python -m serving``, and a client of it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def get(self, path: str) -> httpx.Response:
        """An answer; asked for once more where the connection that was kept open went with its process."""
        try:
            return self.client.get(path)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            return self.client.get(path)

    def status(self) -> dict[str, Any]:
        """What the server says of its model."""
        status: dict[str, Any] = self.get(f"/v2/models/{MODEL}").json()
        return status

    def version(self) -> str | None:
        """What the server says is live."""
        version: str | None = self.status()["version"]
        return version

    def ready(self) -> list[int]:
        """Process ids of those that say they are ready."""
        return [each["pid"] for each in self.status()["processes"] if each["ready"]]

    def wait_for(self, version: ModelVersion, processes: int = 1) -> None:
        """Return when ``version`` is live, in so many processes."""
        wait_until(lambda: self.version() == version.version and len(self.ready()) == processes, 30)

    def workers(self) -> list[psutil.Process]:
        """The processes that answer, where there are several."""
        return psutil.Process(self.process.pid).children()

    def kill(self) -> None:
        """End it at once, as a machine that loses its power does."""
        self.process.kill()
        self.process.wait()

    def end(self, timeout_s: float = 20) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


Start = Callable[..., Serving]


@contextmanager
def started(settings: Settings, log: Path, own: dict[str, str]) -> Iterator[Serving]:
    """A server with ``own`` settings, which are named without their prefix; it is killed at the end."""
    environ = inference_server.environ(settings, MODEL, 0, os.environ)
    environ |= {"SAFELIGHT_SERVING_POLL_S": "0.1", **{f"SAFELIGHT_SERVING_{name}": own[name] for name in own}}
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "serving"], env=environ, stderr=file)
    try:
        wait_until(lambda: b" answers at " in log.read_bytes() or process.poll() is not None, 30)
        found = re.search(r"answers at (\S+)", log.read_text())
        assert found, log.read_text()
        with httpx.Client(base_url=found[1], trust_env=False, timeout=30) as client:
            yield Serving(process, client, log)
    finally:
        process.kill()
        process.wait()


def register(zones: Zones, seed: int) -> ModelVersion:
    """A version of ``MODEL``."""
    return tiny_models.register(zones.checkpoints, zones.models, MODEL, seed)


def point_at(zones: Zones, version: ModelVersion) -> None:
    """Move the champion alias."""
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, version.version, reason="test")


def store_pid(settings: Settings) -> int:
    """Process id of a private store."""
    service = processes.find(settings.home, embedded_store.NAME)
    assert service
    return service.pid


def restarted_store(settings: Settings) -> None:
    """Start a private store again where it was."""
    connection = embedded_store.up(settings.home, int(str(settings.s3_endpoint).rpartition(":")[2]))
    assert connection.endpoint == settings.s3_endpoint
