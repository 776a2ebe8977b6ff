"""The stack of containers as tests drive it: by the commands that a person types, and by SIGKILL from the host.

Everything goes through ``docker compose`` and ``make`` with ``COMPOSE_FILE`` and ``COMPOSE_PROJECT_NAME`` in the
environment, so that a stack of one's own, on the usual ports, is never touched.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from .flow_runs import FlowRuns
from .stored import Stored

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.seaweedfs.yml", "tests/e2e/docker-compose.test.yml")
RESULTS = ROOT / "build" / "e2e"
"""Logs and screenshots of the last run; git ignores it."""
OURS = ("SAFELIGHT_", "STACK_", "PREFECT_", "COMPOSE_")
MODEL = "fashion-mnist"
SERVICES = ("object-store", "prefect-server", "worker", "serving", "gateway")
"""What runs all the time."""
DEFAULT_TAG = "dev"
"""Of images that are built anew; those of another tag are taken as they are."""


@dataclass(frozen=True)
class Stack:
    """One compose project.

    Attributes:
        project: its name, which all its containers, volumes and networks begin with.
        environ: what compose and make are started with.
        ports: published ports by what answers there: prefect, inference, store, console.
        seconds: how long its last start took until all was healthy, by ``up``.
    """

    project: str
    environ: Mapping[str, str]
    ports: Mapping[str, int]
    seconds: dict[str, float] = field(default_factory=dict)

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        timeout: float = 180,
        given: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command in the repository's root, as a person types it; its whole output is shown where it fails.

        Args:
            command: the program and its arguments.
            check: whether another exit status than 0 is an error.
            timeout: in seconds.
            given: what stands on its standard input.
            environ: further variables of its environment.
        """
        done = subprocess.run(
            [str(each) for each in command],
            cwd=ROOT,
            env={**self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            input=given,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def compose(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """``docker compose …``."""
        return self.run("docker", "compose", *arguments, **options)

    def cli(self, *arguments: str, folder: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """``docker compose run --rm cli …``; ``folder`` is seen as ``/images``."""
        environ = {"IMAGES": str(folder)} if folder else {}
        return self.compose("run", "--rm", "-T", "cli", *arguments, environ=environ, **options)

    def up(self) -> str:
        """``make up``: start what does not run and wait until all is healthy; returns what it says."""
        begun = time.monotonic()
        told = self.run("make", "up", timeout=400).stdout
        self.seconds["up"] = time.monotonic() - begun
        return told

    def down(self) -> None:
        """Stop everything and remove what was stored."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", check=False)

    def forget(self) -> None:
        """Read secrets anew: they were changed."""
        for name in ("runs", "stored"):
            vars(self).pop(name, None)

    # Containers

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, whether they run or not; the oldest first."""
        label = f"label=com.docker.compose.service={service}"
        mine = f"label=com.docker.compose.project={self.project}"
        listed = self.run("docker", "ps", "-aq", "--no-trunc", "--filter", mine, "--filter", label).stdout.split()
        return listed[::-1]

    def services(self) -> list[str]:
        """The names of the services that run."""
        return self.compose("ps", "--services").stdout.split()

    def inspect(self, container: str) -> dict[str, Any]:
        """All that the engine knows of a container."""
        found: dict[str, Any] = json.loads(self.run("docker", "inspect", container).stdout)[0]
        return found

    def address(self, container: str) -> str:
        """Its address on the stack's network."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        return str(next(each["IPAddress"] for name, each in networks.items() if name.startswith(self.project)))

    def is_healthy(self, service: str) -> bool:
        """Whether all its containers run and their checks pass."""
        states = [self.inspect(each)["State"] for each in self.containers(service)]
        return bool(states) and all(
            state["Running"] and state.get("Health", {}).get("Status", "healthy") == "healthy" for state in states
        )

    def kill(self, service: str) -> None:
        """SIGKILL to the first process of a service's container, which takes all others with it.

        It comes from the host, as when memory runs out: the engine takes ``docker kill`` for a wanted stop, after
        which no restart policy acts.
        """
        container = self.containers(service)[0]
        before = self.inspect(container)
        os.kill(before["State"]["Pid"], signal.SIGKILL)
        wait_until(
            lambda: self.inspect(container)["State"]["StartedAt"] != before["State"]["StartedAt"],
            60,
            f"the engine did not start {service} again",
        )

    def scale(self, service: str, count: int) -> None:
        """So many containers of a service, all of them healthy; those that stay are left alone."""
        self.compose("up", "--no-build", "--no-recreate", "--no-deps", "-d", "--scale", f"{service}={count}", service)
        wait_until(
            lambda: len(self.containers(service)) == count and self.is_healthy(service),
            120,
            f"there are not {count} healthy containers of {service}",
        )

    def logs(self) -> str:
        """All that the services have said."""
        return self.compose("--profile", "*", "logs", "--no-color", "--timestamps", check=False).stdout

    def worker_of(self, run: str) -> str:
        """The container of the worker that took a run last, as the run's log tells."""
        names = re.findall(r"Worker '(?:worker-)?([0-9a-f]{12})' submitting flow run", self.runs.said(run))
        assert names, self.runs.said(run)
        return next(each for each in self.containers("worker") if each.startswith(names[-1]))

    def flow_processes(self) -> list[str]:
        """The processes that run flows, in all workers that are not frozen."""
        found = []
        for worker in self.containers("worker"):
            listed = self.run("docker", "top", worker, "-eo", "pid,args", check=False).stdout.splitlines()
            found += [line for line in listed if "prefect.engine" in line or "flow-run execute" in line]
        return found

    # Secrets

    @property
    def secret_volumes(self) -> list[str]:
        """The names of the volumes that hold secrets, without the project's."""
        listed = self.run("docker", "volume", "ls", "-q", "--filter", f"name={self.project}_secrets-").stdout.split()
        return [name.removeprefix(f"{self.project}_") for name in listed]

    def as_root(self, volume: str, *command: str, writable: bool = False) -> str:
        """What a command prints that sees a volume as ``/s`` and may do everything there."""
        return self.run(
            *("docker", "run", "--rm", "--user", "0", "--network", "none", "--entrypoint", command[0]),
            *("-v", f"{self.project}_{volume}:/s{'' if writable else ':ro'}", self.image, *command[1:]),
        ).stdout

    def secrets(self) -> dict[str, str]:
        """Every secret by its name."""
        code = "import json, pathlib; print(json.dumps({p.name: p.read_text() for p in pathlib.Path('/s').iterdir()}))"
        found: dict[str, str] = json.loads(self.as_root("secrets-all", "python", "-c", code))
        return {name: value.strip() for name, value in found.items() if not name.startswith(".")}

    def secret(self, name: str) -> str:
        """One of them."""
        return self.secrets()[name]

    def credentials(self, user: str) -> tuple[str, str]:
        """Access key and secret key of a user of the object store, or of its root."""
        found = self.secrets()
        if user == "root":
            return found["root_user"], found["root_password"]
        return found[f"{user}_access_key"], found[f"{user}_secret_key"]

    @property
    def image(self) -> str:
        """The inference server's image: small, and with a Python inside."""
        return f"safelight/serving:{self.environ['STACK_TAG']}"

    # Addresses

    @property
    def ui(self) -> str:
        """Of the Prefect UI."""
        return f"http://127.0.0.1:{self.ports['prefect']}"

    @property
    def gateway(self) -> str:
        """Where clients send images."""
        return f"http://127.0.0.1:{self.ports['inference']}"

    @property
    def store(self) -> str:
        """The object store's S3 endpoint."""
        return f"http://127.0.0.1:{self.ports['store']}"

    @cached_property
    def runs(self) -> FlowRuns:
        """The flow runs of its Prefect server."""
        return FlowRuns(self.ui, ("safelight", self.secret("prefect_password")))

    @cached_property
    def stored(self) -> Stored:
        """What is in its object store, as people see it."""
        return Stored(self.store, *self.credentials("people"), MODEL)

    # Serving

    def serving(self) -> dict[str, Any]:
        """What the gateway's server says of the model."""
        answer: dict[str, Any] = httpx.get(f"{self.gateway}/v2/models/{MODEL}", timeout=10).json()
        return answer

    def serving_addresses(self) -> list[str]:
        """The address of each replica on the stack's network."""
        return [self.address(each) for each in self.containers("serving")]

    def answers(self, images: Mapping[str, bytes]) -> bool:
        """Whether an image that is sent now is classified."""
        try:
            return httpx.post(f"{self.gateway}/predict", content=next(iter(images.values())), timeout=5).is_success
        except httpx.TransportError:
            return False

    def requests_answered(self, address: str) -> float:
        """How many requests a replica has answered, as its metrics say."""
        text = httpx.get(f"http://{address}:8080/metrics", timeout=10, trust_env=False).text
        found = re.findall(r'^safelight_requests_total\{route="predict",status="200"\} (\S+)$', text, re.MULTILINE)
        assert "safelight_request_seconds_count" in text
        return sum(map(float, found))

    def version(self) -> str | None:
        """The model version that answers."""
        found: str | None = self.serving().get("version")
        return found


def open_stack(project: str, ports: Sequence[int] | None = None, **more: str) -> Stack:
    """A stack of this name, on free ports of loopback or on those given; nothing is started."""
    named = dict(zip(("prefect", "inference", "store", "console"), ports or free_ports(4), strict=True))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environ |= {
        "COMPOSE_PROJECT_NAME": project,
        "COMPOSE_FILE": os.pathsep.join(FILES),
        "STACK_TAG": os.environ.get("STACK_TAG", DEFAULT_TAG),
        "SAFELIGHT_PREFECT_PORT": str(named["prefect"]),
        "SAFELIGHT_INFERENCE_PORT": str(named["inference"]),
        "SAFELIGHT_STORE_PORT": str(named["store"]),
        "STACK_CONSOLE_PORT": str(named["console"]),
        **more,
    }
    return Stack(project, environ, named)


def free_ports(count: int) -> list[int]:
    """Ports that are free on all addresses."""
    taken = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


def outer_address() -> str:
    """This machine's own address on its network, which is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])


def wait_until(condition: Callable[[], bool], timeout_s: float, otherwise: str) -> float:
    """Return when ``condition`` holds, with the seconds that it took; ``otherwise`` is said of the other case."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout_s, f"{otherwise} within {timeout_s:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - begun
