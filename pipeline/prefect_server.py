"""A Prefect server and a process that runs flows, local to one Safelight home.

Prefect itself is not imported here: both are processes of their own, found again by later commands.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from pipeline import processes

SERVER = "prefect-server"
RUNNER = "flow-runner"
START_TIMEOUT_S = 120.0


def environ(home: Path, url: str | None = None) -> dict[str, str]:
    """Variables that keep Prefect inside ``home``, silent towards the internet, and on the server at ``url``."""
    found = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Beside other processes on the same cores, torch's threads must not spin while they wait for one another.
        "OMP_WAIT_POLICY": "PASSIVE",
        # The second version of the UI loads a tracker from the internet, whatever the two settings above say.
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    if url:
        found |= {"PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_UI_API_URL": f"{url}/api"}
    return found


def use(home: Path, url: str | None = None) -> None:
    """Make this process speak to the server at ``url``; must come before Prefect is imported.

    A ``PREFECT_API_URL`` that a person has set wins while no ``url`` is given.
    """
    wanted = environ(home, url)
    if url is None and "PREFECT_API_URL" in os.environ:
        return
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]  # a profile, or the key of a cloud account, would override where runs are sent
    os.environ.update(wanted)


def url(home: Path) -> str | None:
    """Where the home's server answers, if it runs."""
    found = processes.find(home, SERVER)
    return _url(found) if found else None


def up(home: Path, port: int) -> str:
    """Start the server, or find it; returns its URL once it answers.

    Raises:
        LocalServiceFailed: it did not start.
    """
    server = processes.until_listening(
        lambda: processes.find(home, SERVER) or _start(home, processes.free_port(port)),
        lambda started: _answers(_url(started)),
        START_TIMEOUT_S,
    )
    return _url(server)


def runner_up(home: Path, server: str, env: Mapping[str, str]) -> None:
    """Start the process that runs deployments from the UI, or find it; ``env`` is what the flows read.

    One that asks another server for work is replaced: a server that was killed may have come back on another port.
    """
    ports = {"server": urlsplit(server).port or 80}
    found = processes.find(home, RUNNER)
    if found is not None and found.ports != ports:
        processes.stop(home, RUNNER)
    command = [sys.executable, "-m", "pipeline.cli", "serve-flows"]
    processes.start(home, RUNNER, command, env=_clean(env) | environ(home, server), ports=ports)


def _start(home: Path, port: int) -> processes.Service:
    server = [sys.executable, "-m", "pipeline.prefect_sqlite", "server", "start"]
    command = [*server, "--host", "127.0.0.1", "--port", str(port)]
    env = _clean(os.environ) | environ(home, f"http://127.0.0.1:{port}")
    return processes.start(home, SERVER, command, env=env, ports={"http": port})


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("PREFECT_")}


def _url(server: processes.Service) -> str:
    return f"http://127.0.0.1:{server.ports['http']}"


def _answers(server: str) -> bool:
    try:
        return httpx.get(f"{server}/api/health", timeout=2).is_success
    except httpx.HTTPError:
        return False
