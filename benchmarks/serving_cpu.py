"""Who used the cores while something was measured: the server, or programs that have nothing to do with it."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

GLANCE_S = 0.1
SETTLE_S = 15.0


@dataclass(slots=True)
class Use:
    """Of the cores, while something was measured.

    Attributes:
        seconds: of one core, used by the server's processes.
        strangers: cores that neither the server nor its client had, in the mean.
    """

    seconds: float = 0.0
    strangers: float = 0.0


@contextmanager
def watched(pid: int) -> Iterator[Use]:
    """What the process with this id, and all that it started, uses meanwhile; a client has to be waited for."""
    use = Use()
    family, begun = tree(pid), time.perf_counter()
    before = cpu_seconds(family), client_seconds(), machine_seconds()
    yield use
    used = [
        after - earlier
        for after, earlier in zip((cpu_seconds(family), client_seconds(), machine_seconds()), before, strict=True)
    ]
    use.seconds = max(used[0], 0.01)
    use.strangers = max(0.0, used[2] - used[1] - used[0]) / (time.perf_counter() - begun)


def settle(pid: int) -> None:
    """Return when the process with this id, and all that it started, have nothing left to do, or after ``SETTLE_S``."""
    family, begun = tree(pid), time.monotonic()
    spent = cpu_seconds(family)
    while time.monotonic() < begun + SETTLE_S:
        time.sleep(GLANCE_S)
        before, spent = spent, cpu_seconds(family)
        if spent - before < GLANCE_S / 2:
            return


def cpu_seconds(family: Sequence[psutil.Process]) -> float:
    """That these processes have used since they started."""
    total = 0.0
    for process in family:
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return total


def cores_in_use(seconds: float) -> float:
    """By anybody, in the mean of the seconds to come."""
    before = machine_seconds()
    time.sleep(seconds)
    return (machine_seconds() - before) / seconds


def client_seconds() -> float:
    """That this process and those that it has waited for have used."""
    return sum(os.times()[:4])


def machine_seconds() -> float:
    """That anybody has used, or that the machine below this one has taken, since the start of the system."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
