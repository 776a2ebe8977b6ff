"""Many small pieces of work at once, their results in order: what reading and writing many objects rest on.

- **Threads take runs of items, not items.** A request for a small object costs about 0.1 ms of CPU, handing it to a
  thread and its result back half as much again. A run is as long as keeps every thread busy to the end, and short
  where items are large.
- **Bounded**: items that were given out and whose results were not taken yet hold at most ``limit`` bytes.
- **Left early**, by an error or by a caller that has enough, no item is begun any more; those under way are awaited.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

RUN_ITEMS = 16
RUN_BYTES = 256 << 10
"""Of a run that has more than one item."""
RUNS_PER_THREAD = 4
"""Given out at once, so that threads find work while the oldest one is awaited."""


@dataclass(slots=True)
class _Run(Generic[T]):
    """Consecutive items, and their bytes."""

    items: list[T] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Done(Generic[R]):
    """The results of a run's first items, and what prevented the others."""

    results: list[R]
    error: Exception | None


def ahead(
    items: Iterable[T], work: Callable[[T], R], size: Callable[[T], int], *, threads: int, limit: int
) -> Iterator[tuple[T, R]]:
    """Each item with what ``work`` made of it, in order; an error comes in the place of its item.

    Args:
        items: taken as they are needed.
        work: called in one of ``threads`` threads.
        size: of an item or its result, in bytes.
        threads: how many items are worked on at once.
        limit: bytes held at most; one larger item still passes, alone.
    """
    leaving = threading.Event()
    window: deque[tuple[_Run[T], Future[_Done[R]]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for run in _runs(items, size, threads):
            while window and (len(window) >= RUNS_PER_THREAD * threads or held + run.size > limit):
                held -= window[0][0].size
                yield from _taken(*window.popleft())
            window.append((run, pool.submit(_worked_off, run.items, work, leaving)))
            held += run.size
        while window:
            yield from _taken(*window.popleft())
    finally:
        leaving.set()
        pool.shutdown(cancel_futures=True)


def _runs(items: Iterable[T], size: Callable[[T], int], threads: int) -> Iterator[_Run[T]]:
    """Items in runs that grow with what was given out before, so that no thread ends long after the others."""
    run = _Run[T]()
    for position, item in enumerate(items):
        if run.items and run.size + size(item) > RUN_BYTES:
            yield run
            run = _Run()
        run.items.append(item)
        run.size += size(item)
        if len(run.items) >= min(RUN_ITEMS, 1 + position // (2 * threads)) or run.size >= RUN_BYTES:
            yield run
            run = _Run()
    if run.items:
        yield run


def _worked_off(items: list[T], work: Callable[[T], R], leaving: threading.Event) -> _Done[R]:
    results: list[R] = []
    try:
        for item in items:
            if leaving.is_set():
                break
            results.append(work(item))
    except Exception as error:  # noqa: BLE001 - it is raised where the item's result is taken
        return _Done(results, error)
    return _Done(results, None)


def _taken(run: _Run[T], future: "Future[_Done[R]]") -> Iterator[tuple[T, R]]:
    done = future.result()
    yield from zip(run.items, done.results, strict=False)
    if done.error is not None:
        raise done.error
