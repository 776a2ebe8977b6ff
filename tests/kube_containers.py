"""A container of a pod as a process of this machine: started, restarted with growing pauses, told to stop, killed."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import kube_probes
from kube_objects import Object, now

BACKOFF_S = 1.0
"""Before a container that ended is started for the second time again; it doubles. A kubelet's are ten times as long."""
LONGEST_BACKOFF_S = 20.0
ENDED = "terminated"


@dataclass(frozen=True, slots=True)
class Launch:
    """A container that is to be started.

    Attributes:
        command: that the manifest gives in place of the image's, if any.
        args: the manifest's.
        env: of the container, with mount paths replaced.
        address: the pod's.
        folder: that it may write to.
    """

    pod: Object
    name: str
    command: list[str]
    args: list[str]
    env: dict[str, str]
    address: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Program:
    """What is started in place of an image on this machine."""

    argv: list[str]
    env: dict[str, str]


Image = Callable[[Launch], Program]
"""How a container of an image is started on this machine."""


@dataclass
class Running:
    """One container; ``state`` is what its pod's status says of it."""

    wanted: Object
    folder: Path
    restart: str
    changed: Callable[[], None]
    tell: Callable[[str, str], None]
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last: Object = field(default_factory=dict)
    restarts: int = 0
    started: bool = False
    ready: bool = False
    program: Program | None = None
    address: str = ""
    process: subprocess.Popen[bytes] | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    _not_before: float = 0.0

    @property
    def name(self) -> str:
        """As the manifest names it."""
        return str(self.wanted["name"])

    @property
    def is_over(self) -> bool:
        """Whether it has ended and will not be started again."""
        if ENDED not in self.state:
            return False
        return self.restart == "Never" or (self.restart == "OnFailure" and self.state[ENDED]["exitCode"] == 0)

    def log(self, number: int | None = None) -> Path:
        """The log of its last, or of an earlier, start."""
        return self.folder / f"{self.name}.{self.restarts if number is None else number}.log"

    def wait(self, reason: str, message: str) -> None:
        """Say why it does not run yet."""
        self._become({"waiting": {"reason": reason, "message": message} if message else {"reason": reason}})

    def start(self, launch: Launch, program: Program) -> None:
        """Start it."""
        self.program, self.address = program, launch.address
        self.ended = threading.Event()
        self.ready = self.started = False
        began = now()
        try:
            found = shutil.which(program.argv[0], path=program.env.get("PATH"))
            self.process = subprocess.Popen(
                [found or program.argv[0], *program.argv[1:]],
                env=program.env,
                cwd=launch.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self.log().write_text("")
            self._end(128, began, "StartError", f"failed to create containerd task: {error}")
            return
        self._become({"running": {"startedAt": began}})
        threading.Thread(
            target=self._follow, args=(self.process, self.log(), began), name="container", daemon=True
        ).start()
        self._probe()

    def tend(self, launch: Callable[[], tuple[Launch, Program]]) -> None:
        """Start it where that is due."""
        if ENDED in self.state and not self.is_over:
            pause = min(BACKOFF_S * 2**self.restarts, LONGEST_BACKOFF_S) if self.restarts or self._failed() else 0.0
            self.last, self._not_before = self.state, time.monotonic() + pause
            self.restarts += 1
            if pause:
                self.wait("CrashLoopBackOff", f"back-off {pause:.0f}s restarting failed container={self.name}")
        if "waiting" in self.state and time.monotonic() >= self._not_before:
            self.start(*launch())

    def stop(self, deadline: float) -> None:
        """End it as a kubelet does: its hook, SIGTERM, the rest of the grace period, SIGKILL."""
        process = self.process
        if process is None or self.ended.is_set():
            return
        if (before := self.wanted.get("lifecycle", {}).get("preStop")) is not None:
            caller = threading.Thread(
                target=kube_probes.hook,
                args=(before, self.wanted.get("ports", ()), self.address, self.execute, self.ended),
                daemon=True,
            )
            caller.start()
            caller.join(max(0.0, deadline - time.monotonic()))
        if process.poll() is None:
            process.terminate()
        self.ended.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End it, and all that it has started, at once."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.process.wait()

    def execute(self, command: Sequence[str], timeout_s: float) -> tuple[int, str]:
        """Run a command where the container runs."""
        if self.program is None:
            return 126, "the container does not run"
        return kube_probes.run(command, self.program.env, str(self.folder), timeout_s)

    def status(self, image: str) -> Object:
        """As the pod's status tells it."""
        return {
            "name": self.name,
            "image": image,
            "imageID": f"tests/{image}",
            "state": self.state,
            "lastState": self.last,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            **({"containerID": f"process://{self.process.pid}"} if self.process else {}),
        }

    def _failed(self) -> bool:
        return bool(self.state[ENDED]["exitCode"] != 0)

    def _follow(self, process: subprocess.Popen[bytes], log: Path, began: str) -> None:
        """Keep what it says, each line with its time, until it has ended."""
        if process.stdout is None:
            raise AssertionError("it was started with a pipe")
        with process.stdout, log.open("ab", buffering=0) as file:
            for line in process.stdout:
                at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
                file.write(at.encode() + b" " + line.rstrip(b"\n") + b"\n")
        status = process.wait()
        with suppress(ProcessLookupError):  # nothing that it started outlived it
            os.killpg(process.pid, signal.SIGKILL)
        code = 128 - status if status < 0 else status
        said = ""
        if code and self.wanted.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = [line.partition(b" ")[2] for line in log.read_bytes().splitlines()[-80:]]
            said = b"\n".join(lines)[-2048:].decode(errors="replace")
        self._end(code, began, "Completed" if code == 0 else "Error", said)

    def _end(self, code: int, began: str, reason: str, message: str) -> None:
        self.ended.set()
        self.ready = self.started = False
        told = {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now()}
        self._become({ENDED: told | ({"message": message} if message else {})})

    def _probe(self) -> None:
        """Begin the probes: the others wait until the one of the start is fulfilled."""
        ended, first = self.ended, self.wanted.get("startupProbe")

        def has_started(fine: bool, why: str) -> None:
            if not fine:
                self._give_up(ended, "startup", why)
            elif not self.started:
                self.started = True
                self._go_on_probing(ended)
                self.changed()

        if first is None:
            has_started(fine=True, why="")
        else:
            self._begin(first, has_started, ended)

    def _go_on_probing(self, ended: threading.Event) -> None:
        readiness, liveness = self.wanted.get("readinessProbe"), self.wanted.get("livenessProbe")

        def is_ready(fine: bool, why: str) -> None:
            del why
            if not ended.is_set():
                self.ready = fine
                self.changed()

        def lives(fine: bool, why: str) -> None:
            if not fine:
                self._give_up(ended, "liveness", why)

        if readiness is None:
            self.ready = True
        else:
            self._begin(readiness, is_ready, ended)
        if liveness is not None:
            self._begin(liveness, lives, ended)

    def _begin(self, wanted: Object, tell: Callable[[bool, str], None], ended: threading.Event) -> None:
        threading.Thread(
            target=kube_probes.keep_asking,
            args=(wanted, self.wanted.get("ports", ()), self.address),
            kwargs={"execute": self.execute, "tell": tell, "ended": ended},
            name="probe",
            daemon=True,
        ).start()

    def _give_up(self, ended: threading.Event, which: str, why: str) -> None:
        """End a container that failed a probe; it is started again as its pod says."""
        if not ended.is_set():
            self.tell("Unhealthy", f"{which} probe failed: {why}")
            threading.Thread(target=self.stop, args=(time.monotonic() + 30,), daemon=True).start()

    def _become(self, state: Object) -> None:
        if self.state != state:
            self.state = state
            self.changed()
