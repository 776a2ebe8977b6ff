"""A real Dask cluster: a scheduler and workers as processes of their own, with an environment of their own."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prefect_stack import free_port, until

START_S = 60.0
NO_TLS: Mapping[str, str] = {}


@dataclass
class DaskCluster:
    """A scheduler, and the workers that were started for it."""

    port: int
    folder: Path
    running: ExitStack
    tls: Mapping[str, str]
    scheduler: "subprocess.Popen[bytes] | None" = None
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return f"{self.protocol}://127.0.0.1:{self.port}"

    @property
    def protocol(self) -> str:
        """Of all that its processes say."""
        return "tls" if self.tls else "tcp"

    def start(self) -> None:
        """The scheduler, until it listens."""
        plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        words = ("--host", "127.0.0.1", "--port", str(self.port), "--protocol", self.protocol, "--no-dashboard")
        name = "distributed.cli.dask_scheduler"
        self.scheduler = self.running.enter_context(
            _started(self.folder, "scheduler", name, words, plain | dict(self.tls))
        )
        until(lambda: _listens(self.port), START_S, "Dask scheduler")

    def restart(self) -> None:
        """The scheduler is killed and starts again; its workers end by themselves."""
        if self.scheduler:
            self.kill(self.scheduler)
        self.start()

    def start_worker(self, environ: dict[str, str]) -> "subprocess.Popen[bytes]":
        """A worker of one thread, which dies when it is killed: nobody starts it again."""
        name = f"worker-{len(self.workers)}"
        words = (self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name)
        process = self.running.enter_context(
            _started(self.folder, name, "distributed.cli.dask_worker", words, environ | dict(self.tls))
        )
        self.workers.append(process)
        return process

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """SIGKILL."""
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.folder / f"{name}.log").read_text()


@contextmanager
def dask_cluster(folder: Path, tls: Mapping[str, str] = NO_TLS) -> Iterator[DaskCluster]:
    """A scheduler that listens, without workers yet; ``tls``: the variables with which its processes are certified."""
    with ExitStack() as running:
        cluster = DaskCluster(free_port(), folder, running, tls)
        cluster.start()
        yield cluster


def certified(certificate: Path, key: Path) -> dict[str, str]:
    """Dask's variables for a cluster whose processes trust one certificate, and have it themselves."""
    prefix = "DASK_DISTRIBUTED__COMM__TLS"
    files = {"CERT": str(certificate), "KEY": str(key)}
    roles = ("SCHEDULER", "WORKER", "CLIENT")
    return {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
        f"{prefix}__CA_FILE": str(certificate),
        **{f"{prefix}__{role}__{kind}": file for role in roles for kind, file in files.items()},
    }


@contextmanager
def recorded(address: str) -> Iterator[tuple[str, bytearray]]:
    """An address that leads to ``address``, and all that its clients have sent there so far."""
    host, _, port = address.removeprefix("tcp://").partition(":")
    sent = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_pass_all_on, args=(listening, (host, int(port)), sent), daemon=True).start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}", sent
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


def _pass_all_on(listening: socket.socket, target: tuple[str, int], sent: bytearray) -> None:
    with suppress(OSError):
        while True:
            near, _ = listening.accept()
            far = socket.create_connection(target)
            for source, sink, copy in ((near, far, sent), (far, near, bytearray())):
                threading.Thread(target=_pass_on, args=(source, sink, copy), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, copy: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            copy += data
            sink.sendall(data)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextmanager
def _started(
    folder: Path, name: str, module: str, words: tuple[str, ...], environ: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words], env=dict(environ), cwd=folder, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
