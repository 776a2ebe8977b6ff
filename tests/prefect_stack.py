"""A Prefect server with a password, and workers for it, as processes of their own: the stack without containers."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

PUBLIC_URL = "http://models.example:8080"
START_S = 120.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(found: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``found`` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s"
        time.sleep(0.3)
    return result


@dataclass
class Stack:
    """A running server, and the environment that its workers and people have."""

    home: Path
    port: int
    environ: dict[str, str]
    auth: tuple[str, str]
    server: "subprocess.Popen[str] | None" = None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that must be a success."""
        answer = self.send(method, path, body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """An answer of the Prefect API."""
        url = f"http://127.0.0.1:{self.port}/api/{path}"
        return httpx.request(method, url, json=body, auth=self.auth, timeout=30, trust_env=False)

    def start(self, flow: str, *, job_variables: Mapping[str, Any] | None = None, **parameters: Any) -> str:
        """What pressing Run does; the run's id."""
        deployment = self.ask("GET", f"deployments/name/{flow}/{flow}")
        body = {"parameters": parameters, "job_variables": dict(job_variables or {})}
        return str(self.ask("POST", f"deployments/{deployment['id']}/create_flow_run", body)["id"])

    def state(self, run: str) -> dict[str, Any]:
        """A run's state now."""
        found: dict[str, Any] = self.ask("GET", f"flow_runs/{run}")["state"]
        return found

    def history(self, run: str) -> list[str]:
        """The names of the states that a run had."""
        return [each["name"] for each in self.ask("GET", f"flow_run_states/?flow_run_id={run}")]

    def ended(self, run: str, seconds: float = 180) -> dict[str, Any]:
        """A run's last state."""
        return until(lambda: (now := self.state(run))["type"] in ENDED and now, seconds, f"end of {run}")  # type: ignore[no-any-return]

    def log(self, run: str) -> str:
        """All lines of a run's log."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.ask("POST", "logs/filter", wanted))

    def says(self, run: str, words: str, seconds: float = 90) -> None:
        """Return once a run's log has these words."""
        until(lambda: words in self.log(run), seconds, f"{words!r} in the log of {run}")

    def cancel(self, run: str) -> None:
        """What Cancel does in the UI."""
        self.ask("POST", f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def artifacts(self, run: str) -> dict[str, Any]:
        """What a run left to look at, by kind."""
        found = self.ask("POST", "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {each["key"].partition("-")[0]: each["data"] for each in found}

    def processes(self, run: str) -> list[psutil.Process]:
        """The processes that work on a run."""
        return [process for process in psutil.process_iter() if _environ_of(process).get("PREFECT__FLOW_RUN_ID") == run]

    def module(self, name: str, *arguments: str, **more: str) -> "subprocess.Popen[str]":
        """A process of ``python -m name``, in a session of its own."""
        with (self.home / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", name, *arguments],
                env=self.environ | more,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )


@contextmanager
def prefect_stack(home: Path, environ: Mapping[str, str], *, registered: bool = True) -> Iterator[Stack]:
    """A server that is ready, with everything registered, or nothing yet; ``environ`` names the store."""
    port, password = free_port(), secrets.token_hex(8)
    prefect = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_AUTH_STRING": f"admin:{password}",
        "PREFECT_API_AUTH_STRING": f"admin:{password}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_WEBSERVER_PORT": str(free_port()),
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "SAFELIGHT_PUBLIC_URL": PUBLIC_URL,
        "SAFELIGHT_INFERENCE_PORT": str(free_port()),
    }
    stack = Stack(home, port, {**environ, **prefect}, ("admin", password))
    with server(stack):
        if registered:
            done = stack.module("pipeline.prefect_init")
            assert done.wait(START_S) == 0, (home / "pipeline.prefect_init.log").read_text()
        yield stack


@contextmanager
def server(stack: Stack) -> Iterator["subprocess.Popen[str]"]:
    """The Prefect server's process."""
    with ExitStack() as cleanup:
        words = ("server", "start", "--host", "127.0.0.1", "--port", str(stack.port))
        process = stack.module("pipeline.prefect_sqlite", *words)
        cleanup.callback(stop, process)
        stack.server = process
        until(lambda: _is_up(stack.port), START_S, "Prefect server")
        yield process


@contextmanager
def worker(stack: Stack, name: str = "worker") -> Iterator["subprocess.Popen[str]"]:
    """A worker of the pool, and at the end none of its processes."""
    process = stack.module("pipeline.flow_worker", HOSTNAME=name)
    try:
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to a process and to all that it started, as where a container is killed."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for each in family:
        with ExitStack() as ignore:
            ignore.push(lambda kind, *_: kind is not None and issubclass(kind, psutil.NoSuchProcess))
            each.kill()
    process.wait(10)


def stop(process: "subprocess.Popen[str]") -> None:
    """SIGTERM, and SIGKILL where that is not heard."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _environ_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
