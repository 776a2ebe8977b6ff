"""Inference servers as real processes on addresses of this machine: replicas, without containers."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from environs import environ
from live_server import wait_until

from pipeline.settings import Settings

START_S = 30


@dataclass(frozen=True)
class Serving:
    """One replica."""

    address: str
    port: int
    model: str
    process: subprocess.Popen[bytes]

    def version(self) -> str | None:
        """What it answers with."""
        url = f"http://{self.address}:{self.port}/v2/models/{self.model}"
        found: str | None = httpx.get(url, trust_env=False, timeout=10).json()["version"]
        return found

    def kill(self) -> None:
        """End it at once, as a machine that loses its power does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def serving_on(
    settings: Settings, model: str, port: int, addresses: Mapping[str, Mapping[str, str]], logs: Path
) -> Iterator[dict[str, Serving]]:
    """A replica on each address, all on one port, each with more of environment; they end with the context."""
    with ExitStack() as ending:
        found = {}
        for address, more in addresses.items():
            log = ending.enter_context((logs / f"serving-{address}.log").open("wb"))
            env = environ(
                settings,
                SAFELIGHT_SERVING_MODEL=model,
                SAFELIGHT_SERVING_HOST=address,
                SAFELIGHT_SERVING_PORT=str(port),
                OMP_NUM_THREADS="1",
            )
            process = subprocess.Popen([sys.executable, "-P", "-m", "serving"], env=env | dict(more), stderr=log)
            ending.callback(_end, process)
            found[address] = Serving(address, port, model, process)
        for each in found.values():
            wait_until(lambda each=each: _is_live(each), START_S)  # type: ignore[misc]
        yield found


def free_port() -> int:
    """A port that is free on all addresses of this machine."""
    with socket.create_server(("0.0.0.0", 0)) as listener:  # noqa: S104 - for a moment, and it answers nobody
        port: int = listener.getsockname()[1]
    return port


def _is_live(replica: Serving) -> bool:
    assert replica.process.poll() is None, f"the server on {replica.address} ended"
    try:
        return httpx.get(f"http://{replica.address}:{replica.port}/v2/health/live", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
