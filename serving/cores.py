"""Which cores a computation may use: all of them while nobody else computes, else its process's share.

**A limit of the container's counts**: more threads than it may use cores would spend its time of a period at once, and
then all stand still until the next one.

The processes of a server see on the board who computes. Nobody waits for anybody: who begins while another one uses all
cores keeps to its share, and so does the other one from its next batch on.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from serving.board import Board

CGROUP: Final = Path("/sys/fs/cgroup")
LIMITS: Final = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Files that hold a quota and its period, of control groups version 2 and 1."""


@contextmanager
def taken(board: Board, seat: int) -> Iterator[bool]:
    """While the process on ``seat`` computes; whether it may use all cores."""
    board.compute(seat, busy=True)
    try:
        yield not board.others_compute(seat)
    finally:
        board.compute(seat, busy=False)


def of_this_machine(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use; where the system does not tell, all there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _limit(cgroup))))


def _limit(cgroup: Path) -> float:
    """Cores' worth of time that the container gets."""
    for files in LIMITS:
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
        except (OSError, ValueError):
            continue
        if quota.isdecimal():
            return int(quota) / int(period)
    return math.inf


def share(cores: int, processes: int) -> int:
    """Cores for each of so many processes, at least one."""
    return max(1, cores // processes)
