"""Distributed training by the real torchrun, on this machine, watched from outside."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from environs import environ

from pipeline.artifacts import TrainingRun
from pipeline.settings import Settings

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
SCRIPT = Path(__file__).parent / "distributed_process.py"
PATIENCE_S = 240.0
"""For what takes seconds on a quiet machine."""


@dataclass(frozen=True)
class Torchrun:
    """A torchrun and the folder in which its ranks say what they do."""

    process: subprocess.Popen[bytes]
    folder: Path

    def lines(self, rank: int) -> list[str]:
        """What a rank has said so far, its predecessors' words included."""
        try:
            return (self.folder / str(rank)).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def wait_for(self, rank: int, beginning: str) -> str:
        """The rest of the last line of a rank that begins so, once there is one."""
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            found = [line for line in self.lines(rank) if line.startswith(beginning)]
            if found:
                return found[-1].removeprefix(beginning).strip()
            if self.process.poll() is not None and not [1 for line in self.lines(rank) if line.startswith(beginning)]:
                break
            time.sleep(0.02)
        raise AssertionError(f"rank {rank} never said {beginning!r}, but: {self.lines(rank)}")

    def pid(self, rank: int) -> int:
        """The process of a rank, that of its latest start."""
        return int(self.wait_for(rank, "process: "))

    def result(self, ranks: int) -> TrainingRun:
        """The finished run, on which all ranks agree."""
        assert self.process.wait(timeout=PATIENCE_S) == 0, [self.lines(rank) for rank in range(ranks)]
        runs = {self.wait_for(rank, "finished: ") for rank in range(ranks)}
        assert len(runs) == 1
        return TrainingRun.model_validate_json(runs.pop())

    def kill(self) -> None:
        """Kill torchrun and all that it started, as a machine does that goes down."""
        with suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGKILL)
            psutil.wait_procs(family, timeout=PATIENCE_S)
        self.process.wait(timeout=PATIENCE_S)


@contextmanager
def started(
    settings: Settings, folder: Path, ranks: int, *, max_restarts: int = 0, **options: object
) -> Iterator[Torchrun]:
    """A torchrun of so many ranks that train with ``options``; killed at the end, should it still run."""
    folder.mkdir(parents=True, exist_ok=True)
    wish = json.dumps({"folder": str(folder)} | options)
    command = [*TORCHRUN, f"--nproc-per-node={ranks}", f"--max-restarts={max_restarts}", str(SCRIPT), wish]
    with (folder / "torchrun").open("wb") as out:
        run = Torchrun(subprocess.Popen(command, env=told(settings), stdout=out, stderr=out), folder)
    try:
        yield run
    finally:
        run.kill()


def told(settings: Settings) -> dict[str, str]:
    """The environment of ranks: one thread each, which sleeps while it waits."""
    own = {"SAFELIGHT_CHECKPOINTS_URL": settings.checkpoints_url} if settings.checkpoints_url else {}
    return environ(settings, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", **own)
