"""Threads that are at work beside a test."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Work = Callable[[threading.Event], None]
"""What a thread does until the event is set."""


@contextmanager
def at_work(works: Iterable[Work]) -> Iterator[None]:
    """A thread for each work; when the context ends, by a failure too, all are told to stop and waited for."""
    stop = threading.Event()
    threads = [threading.Thread(target=each, args=(stop,)) for each in works]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        stop.set()
        for each in threads:
            each.join()
