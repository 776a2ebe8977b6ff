"""The prediction log: what was answered, to the predictions zone as Parquet, off the hot path.

- **``note`` only appends**, under a lock that nobody holds for longer than an append. A thread turns what was noted
  into Arrow columns, a few hundred rows at a time, and into a file every ``flush_s`` seconds or ``FILE_ROWS`` rows,
  whichever comes first; another thread stores the files (``prediction_outbox``): a store that hangs holds up neither.
- **Bounded**: calls that wait to become columns, columns that wait to become a file, files that wait for the store;
  each in bytes, the first two also in rows. Beyond a bound the oldest rows go, and are counted.
- **Complete under a normal stop**, in ``STOP_S`` at most. A process that is killed loses what it had not stored, and
  leaves no half file: a file is one request.
- The date in a key is the UTC day of its rows: a flush that spans midnight is two files.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final

import numpy as np
from arro3.core import RecordBatch
from numpy.typing import NDArray

from pipeline.store import Store
from serving.live_model import Answers
from serving.prediction_outbox import File, Outbox
from serving.prediction_rows import Noted, batch, by_day, key, parquet, size
from serving.uploads import Upload

log = logging.getLogger(__name__)

FILE_ROWS: Final = 50_000
FILE_BYTES: Final = 16 << 20
"""Of columns in memory; reached before ``FILE_ROWS`` only where images are logged."""
WAITING_ROWS: Final = 50_000
WAITING_BYTES: Final = 32 << 20
"""Of calls that are not columns yet: as a rule those of the last ``TICK_S``."""
OUTBOX_BYTES: Final = 32 << 20
"""Of files that wait for the store: some 600,000 rows."""
ROW_BYTES: Final = 600
"""What an image's row takes as Python objects, without probabilities and image."""
SLICE: Final = 256
"""Rows that become columns at once, in half a millisecond; a call is not divided."""
TICK_S: Final = 0.25
BREATH_S: Final = 0.001
"""Between two slices, for the requests."""
STOP_S: Final = 5.0


@dataclass(slots=True)
class Gathered:
    """The columns of one day's next file."""

    batches: list[RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0


class PredictionLog:
    """The log of one process."""

    def __init__(
        self,
        predictions: Store,
        model: str,
        flush_s: float,
        lost: Callable[[int], None],
        *,
        images: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is started yet.

        Args:
            predictions: the zone; opened without patience.
            model: that is served.
            flush_s: how long a row may wait to be stored, in seconds.
            lost: told, on a thread of the log's, one at a time, how many rows will never be stored.
            images: log the images too.
            clock: seconds since the epoch.
        """
        self.images = images
        self._model = model
        self._flush_s = flush_s
        self._lost = lost
        self._clock = clock
        self._outbox = Outbox(predictions, OUTBOX_BYTES, self._lose)
        self._noted: deque[Noted] = deque()
        self._rows = self._bytes = self._dropped = 0
        self._lock, self._losing = threading.Lock(), threading.Lock()
        self._days: dict[date, Gathered] = {}
        self._since: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def note(self, answers: Answers, request_id: str, sent: Sequence[Upload | NDArray[np.uint8]] | None = None) -> None:
        """Log the answers to one call, made just now. Safe on any thread; never waits for the store.

        Args:
            answers: to all images of the call.
            request_id: of the call.
            sent: its images, kept where images are logged; of pixels, which are no image file, there is only the row.
        """
        kept = None
        if self.images and sent:
            kept = [image.data if isinstance(image, Upload) else None for image in sent]
        noted = Noted(self._clock(), request_id, answers, kept)
        rows, taken = _weight(noted)
        with self._lock:
            self._noted.append(noted)
            self._rows += rows
            self._bytes += taken
            if self._rows > WAITING_ROWS or self._bytes > WAITING_BYTES:
                self._drop_oldest()

    def start(self) -> None:
        """Begin to store what is noted."""
        self._outbox.start()
        self._thread.start()

    def stop(self) -> None:
        """Store what was noted; takes ``STOP_S`` at most where the store is away, and what is left then is lost."""
        ends = time.monotonic() + STOP_S
        self._stopping.set()
        self._thread.join(STOP_S)
        self._outbox.stop(max(0.0, ends - time.monotonic()))

    def _drop_oldest(self) -> None:
        """Under the lock."""
        while self._noted and (self._rows > WAITING_ROWS or self._bytes > WAITING_BYTES):
            self._dropped += len(self._forget_oldest().answers.digests)

    def _forget_oldest(self) -> Noted:
        """Under the lock."""
        oldest = self._noted.popleft()
        rows, taken = _weight(oldest)
        self._rows -= rows
        self._bytes -= taken
        return oldest

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            self._gather()
            if self._is_due():
                self._flush()
        self._gather()
        self._flush()

    def _gather(self) -> None:
        """Turn all that was noted into columns."""
        while some := self._taken():
            for day, noted in by_day(some).items():
                try:
                    self._add(day, batch(noted, images=self.images))
                except Exception:  # a thread that ends in silence would log nothing any more
                    log.exception("predictions could not be logged")
                    self._lose(sum(_weight(each)[0] for each in noted))
            time.sleep(BREATH_S)

    def _taken(self) -> list[Noted]:
        """The oldest calls that were noted; some at a time."""
        some: list[Noted] = []
        with self._lock:
            enough = self._rows - SLICE
            while self._noted and self._rows > enough:
                some.append(self._forget_oldest())
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._lose(dropped)
        return some

    def _add(self, day: date, rows: RecordBatch) -> None:
        """Put rows to the others of their day; what would become too large a file goes first."""
        if sum(each.rows for each in self._days.values()) + rows.num_rows > FILE_ROWS:
            self._flush()
        if self._since is None:
            self._since = time.monotonic()
        gathered = self._days.setdefault(day, Gathered())
        gathered.batches.append(rows)
        gathered.rows += rows.num_rows
        gathered.bytes += size(rows)
        if gathered.rows >= FILE_ROWS or gathered.bytes >= FILE_BYTES:
            self._flush()

    def _is_due(self) -> bool:
        """Whether the oldest row would have waited too long at the next look; it had waited for this one already."""
        return self._since is not None and time.monotonic() - self._since > self._flush_s - 2 * TICK_S

    def _flush(self) -> None:
        """A file of each day's rows."""
        days, self._days, self._since = self._days, {}, None
        for day, gathered in days.items():
            try:
                data = parquet(gathered.batches)
            except Exception:
                log.exception("a file of predictions could not be made")
                self._lose(gathered.rows)
            else:
                self._outbox.add(File(key(self._model, day, os.getpid()), data, gathered.rows))

    def _lose(self, rows: int) -> None:
        with self._losing:
            self._lost(rows)


def _weight(noted: Noted) -> tuple[int, int]:
    """Rows and bytes of what was noted."""
    rows = len(noted.answers.digests)
    taken = rows * ROW_BYTES + noted.answers.probabilities.nbytes
    return rows, taken + sum(len(image or b"") for image in noted.images) if noted.images else taken
