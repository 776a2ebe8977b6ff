"""Processes of this machine that chunks are given to: one per core, and none that outlives its parent.

They are started afresh (``spawn``), since a process with threads, as this one has for the store, must not be forked,
and find settings and credentials in the environment, as this one did. Somebody who stops a preparation does not wait
for the end of their chunks: they are held by a pipe, and end when this process lets go of it, however that comes about.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.task_runners import Item, Lost, Promise, Runner

R = TypeVar("R")


def number_of(decode_threads: int | None) -> int:
    """How many processes there are: each decodes one image at a time, so that no core has two."""
    return decode_threads or os.cpu_count() or 1


class Leash:
    """What holds processes, by ``end_with_parent``: they end when it is let go, be it by the end of this process."""

    def __init__(self) -> None:
        self.held, self._holding = multiprocessing.Pipe(duplex=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.let_go()
        self.held.close()

    def let_go(self) -> None:
        """The processes end now, whatever they are doing."""
        self._holding.close()


@contextmanager
def opened(work: Callable[[Item], R], processes: int) -> Iterator[Runner[Item, R]]:
    """So many processes that do ``work``, a function that a new process can import."""
    spawn = multiprocessing.get_context("spawn")
    with (
        Leash() as leash,
        ProcessPoolExecutor(processes, spawn, initializer=end_with_parent, initargs=(leash.held,)) as pool,
        stopped_early(leash),
    ):
        yield runner(lambda item: pool.submit(work, item), processes)


@contextmanager
def stopped_early(leash: Leash) -> Iterator[None]:
    """Let the processes go at once where the block fails: their pool would wait for what they are doing."""
    try:
        yield
    except BaseException:
        leash.let_go()
        raise


def end_with_parent(held: Connection) -> None:
    """The first thing that a process does: it ends when it is let go, and leaves Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_when_let_go, args=(held,), name="leash", daemon=True).start()


def runner(submit: Callable[[Item], Promise], processes: int) -> Runner[Item, Any]:
    """A pool that ``submit`` gives items to: one more is under way than it has processes, so that none waits."""
    return Runner(
        submit=lambda item: _lost_if_broken(lambda: submit(item)),
        result=lambda promise: _lost_if_broken(promise.result),
        room=lambda: processes + 1,
        look=lambda: None,
    )


def _end_when_let_go(held: Connection) -> None:
    with suppress(EOFError, OSError):
        held.recv_bytes()
    os._exit(1)


def _lost_if_broken(ask: Callable[[], R]) -> R:
    try:
        return ask()
    except BrokenProcessPool as error:
        raise Lost("A process that worked on images was killed, perhaps for want of memory") from error
