"""Files of the prediction log on their way to the store: a bounded number of bytes, the oldest given up first.

- A file is put under one key with the same bytes however often it is sent again, so that an unanswered request that did
  reach the store makes no row twice, and a reader sees a whole file or none.
- **A store that is away**: files wait and are sent again, at longer and longer intervals. **A store that refuses** (no
  right to write there, no such bucket) gets no second try: the rows are lost, counted, and the log says so once.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pipeline.errors import SafelightError, StoreUnavailable
from pipeline.store import Store

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 15.0
LAST_PAUSE_S: Final = 0.1
"""When told to stop."""


@dataclass(frozen=True, slots=True)
class File:
    """A file to be stored, and how many rows are lost with it."""

    key: str
    data: bytes
    rows: int


class Outbox:
    """Files that wait to be stored, and the thread that stores them."""

    def __init__(self, predictions: Store, limit: int, lost: Callable[[int], None]) -> None:
        """Nothing is started yet.

        Args:
            predictions: the zone; opened without patience.
            limit: bytes of files that wait; one larger file still passes, alone.
            lost: told how many rows will never be stored.
        """
        self._predictions = predictions
        self._limit = limit
        self._lost = lost
        self._files: deque[File] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._complained: str | None = None
        self._sending = False
        self._thread = threading.Thread(target=self._run, name="prediction-files", daemon=True)

    def start(self) -> None:
        """Begin to store."""
        self._thread.start()

    def add(self, file: File) -> None:
        """Take a file; the oldest are given up until what waits is within the limit again. Does not wait."""
        dropped = 0
        with self._changed:
            self._files.append(file)
            oldest = 1 if self._sending else 0  # what is under way may be stored already
            while len(self._files) > oldest + 1 and sum(len(each.data) for each in self._files) > self._limit:
                dropped += self._files[oldest].rows
                del self._files[oldest]
            self._changed.notify_all()
        if dropped:
            self._lost(dropped)

    def stop(self, within_s: float) -> None:
        """Store what waits, for so long at most; what is left then is lost, and counted."""
        with self._changed:
            self._deadline = time.monotonic() + within_s
            self._changed.notify_all()
        self._thread.join(within_s + FIRST_PAUSE_S)  # a request under way to a store that hangs would take longer
        with self._changed:
            rows = sum(each.rows for each in self._files)
            self._files.clear()
        if rows:
            log.warning(
                "%d rows of the prediction log were not stored: the object store did not take them in time", rows
            )
            self._lost(rows)

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while (file := self._next()) is not None:
            if self._sent(file):
                pause = FIRST_PAUSE_S
            else:
                self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _next(self) -> File | None:
        """The oldest file; None when there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._files or self._deadline is not None)
            over = self._deadline is not None and time.monotonic() > self._deadline
            if over or not self._files:
                return None
            self._sending = True
            return self._files[0]

    def _sent(self, file: File) -> bool:
        """Send a file; False where it should be sent again."""
        try:
            self._predictions.put(file.key, file.data)
        except StoreUnavailable as error:
            self._complain("waits", error)
            with self._changed:
                self._sending = False
            return False
        except SafelightError as error:
            self._complain("loses its rows", error)
            if self._taken():
                self._lost(file.rows)
        else:
            self._taken()
            self._complained = None
        return True

    def _taken(self) -> bool:
        """Take out the file that was sent; False if it was counted as lost meanwhile."""
        with self._changed:
            self._sending = False
            if self._files:
                self._files.popleft()
                return True
        return False

    def _wait(self, seconds: float) -> None:
        """A pause, which the end makes short: a new file is no reason to ask again, to be told to stop is one."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, seconds)
                return
        time.sleep(LAST_PAUSE_S)

    def _complain(self, what: str, error: Exception) -> None:
        """Once, until the store takes a file again or does something else."""
        if self._complained != what:
            log.warning("the prediction log %s: %s", what, error)
        self._complained = what
