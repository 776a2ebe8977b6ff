"""A store whose process is killed at one of its writes, in a process that lives on."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.errors import LeaseLost
from pipeline.store import Store


class KilledError(BaseException):
    """What a process that is killed does not get to handle."""


class MortalStore(Store):
    """A zone whose process makes so many writes, and can write nothing any more."""

    def __init__(self, store: Store, writes: int, *, after: bool = False) -> None:
        """Nothing is written yet.

        Args:
            store: the same zone, as it is seen by a process that lives.
            writes: how many go through.
            after: the last one does, but its process does not get to know.
        """
        super().__init__(store._backend, store.url, patience=store._patience)  # noqa: SLF001 - the same zone
        self.left = writes
        self.after = after

    def put(self, key: str, data: bytes) -> None:
        """Write, or die."""
        with self.dying():
            super().put(key, data)

    def write_once(self, key: str, data: bytes) -> bytes:
        """Write, or die."""
        with self.dying():
            return super().write_once(key, data)

    def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
        """Write, or die."""
        with self.dying():
            super().compare_and_swap(key, data, etag=etag)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete one by one, or die."""
        for key in keys:
            with self.dying():
                super().delete([key])

    @contextmanager
    def dying(self) -> Iterator[None]:
        """One write."""
        if self.left <= 0:
            raise _death()
        self.left -= 1
        yield
        if self.after and not self.left:
            raise _death()


def _death() -> BaseException:
    # The thread that renews a lease would die alone, and be reported; it ends by the error that it knows.
    return LeaseLost("killed") if threading.current_thread().name == "lease" else KilledError()
