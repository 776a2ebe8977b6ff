"""When a version that failed is tried again: ever more rarely, since each try downloads and loads it."""

import time
from typing import Final

LONGEST_WAIT_S: Final = 60.0
"""Between two tries of a version that does not load."""


class Tries:
    """Remembers the last version that failed."""

    def __init__(self, shortest_wait_s: float) -> None:
        """Nothing has failed yet."""
        self._shortest_wait_s = shortest_wait_s
        self._version: str | None = None
        self._failures = 0
        self._retry_at = 0.0

    def may_try(self, version: str | None) -> bool:
        """Whether a version may be tried now; one that did not fail last always may."""
        return version != self._version or time.monotonic() >= self._retry_at

    def refused(self, version: str | None) -> None:
        """A version failed, by its own fault."""
        self._failures = self._failures + 1 if version == self._version else 1
        self._wait(version, min(LONGEST_WAIT_S, self._shortest_wait_s * 2**self._failures))

    def unanswered(self, version: str | None) -> None:
        """A version could not be had, which says nothing against it."""
        self._wait(version, self._shortest_wait_s)

    def forget(self) -> None:
        """Nothing is wrong any more."""
        self._version, self._failures, self._retry_at = None, 0, 0.0

    def _wait(self, version: str | None, seconds: float) -> None:
        self._version, self._retry_at = version, time.monotonic() + seconds
