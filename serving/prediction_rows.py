"""A row of the prediction log, and the Parquet file of many: writer and layout in one place.

- **One row per image.** Plain strings, a UTC timestamp and a float, so that every warehouse reads a file without us.
  The digest is what ``sha256sum`` prints of the image as it was sent, so a person can look for a file that they have.
- **A row is written down at once, as plain bytes at the end of arrays** (``Block``): what a request has made can go
  when it is answered. To keep it for a quarter of a second instead made requests a quarter slower, since the next ones
  then worked in memory that no cache had.
- arrow-rs writes the file (``docs/decisions/prediction-log.md``).
"""

import re
import socket
import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from io import BytesIO
from typing import Final

import numpy as np
from arro3.core import Array, DataType, RecordBatch, Table
from arro3.io import write_parquet
from numpy.typing import NDArray

from pipeline.registry import ModelManifest
from serving.counts import Role
from serving.live_model import Answers

DAY_S: Final = 86_400
MICROSECONDS: Final = 1_000_000
DIGEST_BYTES: Final = 32
COMPRESSION: Final = "zstd(1)"
TEXT: Final = DataType.string()
REPEATED: Final = DataType.dictionary(DataType.int32(), TEXT)
TIME: Final = DataType.timestamp("us", tz="UTC")
IMAGE: Final = "image"
"""The last column, of bytes, where images are logged too."""
UNIQUE: Final = ("time", "request_id", "image_sha256", "probability", IMAGE)
"""Columns in which a dictionary would be larger than what it replaces."""


class Block:
    """Some rows of what one model version answered in one role.

    Attributes:
        times: when each was answered, in seconds since the epoch.
        ids: of the requests.
        digests: SHA-256 of the images, one after the other.
        best: the class of each, by index.
        probabilities: of that class.
        images: as they were sent, None for pixels; None where images are not logged.
        image_bytes: what they take.
    """

    __slots__ = ("best", "digests", "ids", "image_bytes", "images", "manifest", "probabilities", "role", "times")

    def __init__(self, manifest: ModelManifest, role: Role, *, images: bool) -> None:
        self.manifest = manifest
        self.role = role
        self.times = array("d")
        self.ids: list[str] = []
        self.digests = bytearray()
        self.best = array("i")
        self.probabilities = array("f")
        self.images: list[bytes | None] | None = [] if images else None
        self.image_bytes = 0

    def add(self, at: float, request_id: str, answers: Answers) -> None:
        """The rows of one call."""
        probability = answers.probabilities.item
        for place, digest in enumerate(answers.digests):
            best = answers.best[place][0]
            self.times.append(at)
            self.ids.append(request_id)
            self.digests += digest
            self.best.append(best)
            self.probabilities.append(probability(place, best))

    def keep(self, images: Iterable[bytes | None]) -> int:
        """The images of the call that was added last; how many bytes they take."""
        assert self.images is not None  # noqa: S101 - whoever keeps images has said so before
        before = self.image_bytes
        for image in images:
            self.images.append(image)
            self.image_bytes += len(image or b"")
        return self.image_bytes - before

    def __len__(self) -> int:
        return len(self.times)


def batches(block: Block) -> Iterator[tuple[date, RecordBatch]]:
    """The rows of a block as columns, by the UTC day on which they were answered."""
    times = np.frombuffer(block.times, np.float64)
    columns = _columns(block, times)
    for day, some in _by_day(times):
        yield day, columns if some is None else columns.take(Array.from_numpy(some))


def parquet(gathered: Sequence[RecordBatch]) -> bytes:
    """A file of some batches: one row group, statistics on each column."""
    file = BytesIO()
    write_parquet(
        Table.from_batches(gathered),
        file,
        compression=COMPRESSION,
        # What is compressed already is only copied.
        column_compression={IMAGE: "uncompressed"},
        column_dictionary_enabled=dict.fromkeys(UNIQUE, False),
        column_encoding={"time": "delta_binary_packed"},
        skip_arrow_metadata=True,  # that we held repeated strings as numbers is nobody's business
    )
    return file.getvalue()


def size(held: RecordBatch) -> int:
    """Bytes of memory that a batch takes."""
    return sum(column.nbytes for column in held.columns)


def key(model: str, day: date, pid: int) -> str:
    """Where a file goes in the predictions zone; another one at each call."""
    host = re.sub(r"[^A-Za-z0-9.]+", "-", socket.gethostname())[:63].strip("-.") or "replica"
    return f"{model}/date={day.isoformat()}/{host}-{pid}-{uuid.uuid4()}.parquet"


def _columns(block: Block, times: NDArray[np.float64]) -> RecordBatch:
    manifest, rows = block.manifest, len(block)
    columns = {
        "time": Array.from_numpy(np.rint(times * MICROSECONDS).astype(np.int64)).cast(TIME),
        "request_id": Array(block.ids, TEXT),
        "image_sha256": Array(block.digests.hex("\n", DIGEST_BYTES).split("\n"), TEXT),
        "label": _repeated(manifest.classes, np.frombuffer(block.best, np.int32)),
        "probability": Array.from_numpy(np.frombuffer(block.probabilities, np.float32)),
        "model": _constant(manifest.model, rows),
        "model_version": _constant(manifest.version, rows),
        "dataset_version": _constant(manifest.dataset.version, rows),
        "role": _constant(block.role, rows),
    }
    if block.images is not None:
        columns[IMAGE] = Array(block.images, DataType.binary())
    return RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _repeated(values: Sequence[str], which: NDArray[np.int32]) -> Array:
    return Array(list(values), TEXT).cast(REPEATED).take(Array.from_numpy(which))


def _constant(value: str, rows: int) -> Array:
    return _repeated([value], np.zeros(rows, np.int32))


def _by_day(times: NDArray[np.float64]) -> Iterator[tuple[date, NDArray[np.int64] | None]]:
    """Each day, and which rows are of it; None: all."""
    days = np.floor_divide(times, DAY_S)
    found = np.unique(days)
    for day in found.tolist():
        which = np.flatnonzero(days == day).astype(np.int64) if len(found) > 1 else None
        yield datetime.fromtimestamp(day * DAY_S, UTC).date(), which
