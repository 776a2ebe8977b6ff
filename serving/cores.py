"""Which cores a computation may use: all of them while nobody else computes, else its process's share.

The processes of a server see on the board who computes. Nobody waits for anybody: who begins while another one uses all
cores keeps to its share, and so does the other one from its next batch on.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from serving.board import Board


@contextmanager
def taken(board: Board, seat: int) -> Iterator[bool]:
    """While the process on ``seat`` computes; whether it may use all cores."""
    board.compute(seat, busy=True)
    try:
        yield not board.others_compute(seat)
    finally:
        board.compute(seat, busy=False)


def of_this_machine() -> int:
    """Cores that this process may use; where the system does not tell, all there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def share(cores: int, processes: int) -> int:
    """Cores for each of so many processes, at least one."""
    return max(1, cores // processes)
