"""The prediction log: what was answered, to the predictions zone as Parquet, off the hot path.

- **``note`` only appends**, under a lock that nobody holds for longer than that. A thread turns blocks of rows into
  Arrow columns, and these into a file every ``flush_s`` seconds or ``FILE_ROWS`` rows, whichever comes first; another
  thread stores the files (``prediction_outbox``): a store that hangs holds up neither.
- **Bounded**: blocks that wait to become columns, columns that wait to become a file, files that wait for the store.
  Beyond a bound the oldest rows go, and are counted.
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
from serving.counts import Role
from serving.live_model import Answers
from serving.prediction_outbox import File, Outbox
from serving.prediction_rows import Block, batches, key, parquet, size
from serving.uploads import Upload

log = logging.getLogger(__name__)

FILE_ROWS: Final = 50_000
FILE_BYTES: Final = 16 << 20
"""Of columns in memory; reached before ``FILE_ROWS`` only where images are logged."""
WAITING_ROWS: Final = 50_000
WAITING_BYTES: Final = 32 << 20
"""Of images whose rows are not columns yet."""
OUTBOX_BYTES: Final = 32 << 20
"""Of files that wait for the store: some 600,000 rows."""
BLOCK_ROWS: Final = 1024
"""Rows that become columns at once, in a third of a millisecond; a call is not divided."""
TICK_S: Final = 0.25
BREATH_S: Final = 0.001
"""Between two blocks, for the requests."""
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
        self._open: dict[tuple[str, Role], Block] = {}
        self._block: Block | None = None  # of the last call; as a rule of the next one, too
        self._full: deque[Block] = deque()
        self._rows = self._bytes = self._dropped = 0
        self._lock, self._losing = threading.Lock(), threading.Lock()
        self._days: dict[date, Gathered] = {}
        self._since: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def note(self, answers: Answers, request_id: str, sent: Sequence[Upload | NDArray[np.uint8]] = ()) -> None:
        """Log the answers to one call, made just now. Safe on any thread; never waits for the store.

        Args:
            answers: to all images of the call.
            request_id: of the call.
            sent: its images, kept where images are logged; of pixels, which are no image file, there is only the row.
        """
        with self._lock:
            block = self._block
            if block is None or block.manifest is not answers.live.manifest or block.role != answers.role:
                block = self._block = self._block_of(answers)
            block.add(self._clock(), request_id, answers)
            self._rows += len(answers.digests)
            if block.images is not None:
                self._bytes += block.keep(image.data if isinstance(image, Upload) else None for image in sent)
            if len(block.times) >= BLOCK_ROWS or block.image_bytes >= FILE_BYTES:
                self._full.append(self._open.pop((answers.live.manifest.version, answers.role)))
                self._block = None
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

    def _block_of(self, answers: Answers) -> Block:
        """Where such answers are written down; under the lock."""
        version = answers.live.manifest.version, answers.role
        block = self._open.get(version)
        if block is None:
            block = self._open[version] = Block(answers.live.manifest, answers.role, images=self.images)
            self._since = self._since or time.monotonic()
        return block

    def _drop_oldest(self) -> None:
        """Under the lock."""
        while self._full and (self._rows > WAITING_ROWS or self._bytes > WAITING_BYTES):
            self._dropped += len(self._forget_oldest())

    def _forget_oldest(self) -> Block:
        """Under the lock."""
        oldest = self._full.popleft()
        self._rows -= len(oldest)
        self._bytes -= oldest.image_bytes
        return oldest

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            if self._is_due():
                self._store_all()
            else:
                self._gather()
        self._store_all()

    def _is_due(self) -> bool:
        """Whether the oldest row would have waited too long at the next look."""
        return self._since is not None and time.monotonic() - self._since > self._flush_s - TICK_S

    def _store_all(self) -> None:
        """Make files of everything that was noted until now."""
        with self._lock:
            self._full += self._open.values()
            self._open, self._block, self._since = {}, None, None
        self._gather()
        self._flush()

    def _gather(self) -> None:
        """Turn full blocks into columns."""
        while (block := self._taken()) is not None:
            try:
                for day, rows in batches(block):
                    self._add(day, rows)
            except BaseException:  # what arrow-rs panics with, too; a thread that ended would log nothing any more
                log.exception("predictions could not be logged")
                self._lose(len(block))
            time.sleep(BREATH_S)

    def _taken(self) -> Block | None:
        """The oldest block; None where there is none."""
        with self._lock:
            block = self._forget_oldest() if self._full else None
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._lose(dropped)
        return block

    def _add(self, day: date, rows: RecordBatch) -> None:
        """Put rows to the others of their day; what would become too large a file goes first."""
        if sum(each.rows for each in self._days.values()) + rows.num_rows > FILE_ROWS:
            self._flush()
        gathered = self._days.setdefault(day, Gathered())
        gathered.batches.append(rows)
        gathered.rows += rows.num_rows
        gathered.bytes += size(rows)
        if gathered.rows >= FILE_ROWS or gathered.bytes >= FILE_BYTES:
            self._flush()

    def _flush(self) -> None:
        """A file of each day's rows."""
        days, self._days = self._days, {}
        for day, gathered in days.items():
            try:
                data = parquet(gathered.batches)
            except BaseException:
                log.exception("a file of predictions could not be made")
                self._lose(gathered.rows)
            else:
                self._outbox.add(File(key(self._model, day, os.getpid()), data, gathered.rows))

    def _lose(self, rows: int) -> None:
        with self._losing:
            self._lost(rows)
