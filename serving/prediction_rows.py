"""A row of the prediction log, and the Parquet file of many: writer and layout in one place.

- **One row per image.** Plain strings, a UTC timestamp and a float, so that every warehouse reads a file without us.
  The digest is what ``sha256sum`` prints of the image as it was sent, so a person can look for a file that they have.
- Rows become Arrow columns a few hundred at a time (``batch``): columns take a tenth of the memory of Python's
  objects, and none of these steps keeps the interpreter from the requests for long.
- arrow-rs writes the file (``docs/decisions/prediction-log.md``).
"""

import re
import socket
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from io import BytesIO
from itertools import repeat
from typing import Any, Final, NamedTuple

from arro3.core import Array, DataType, RecordBatch, Table
from arro3.io import write_parquet

from serving.live_model import Answers

MICROSECONDS: Final = 1_000_000
COMPRESSION: Final = "zstd(1)"
TIME: Final = DataType.timestamp("us", tz="UTC")
REPEATED: Final = DataType.dictionary(DataType.int32(), DataType.string())
COLUMNS: Final[Mapping[str, DataType]] = {
    "time": TIME,
    "request_id": DataType.string(),
    "image_sha256": DataType.string(),
    "label": REPEATED,
    "probability": DataType.float32(),
    "model": REPEATED,
    "model_version": REPEATED,
    "dataset_version": REPEATED,
    "role": REPEATED,
}
IMAGE: Final = "image"
"""The last column, of bytes, where images are logged too."""
UNIQUE: Final = ("time", "request_id", "image_sha256", "probability", IMAGE)
"""Columns in which a dictionary would be larger than what it replaces."""


class Noted(NamedTuple):
    """What the hot path leaves behind of one call.

    Attributes:
        at: when it was answered, in seconds since the epoch.
        request_id: of the call.
        answers: to its images.
        images: as they were sent; None where images are not logged, and for pixels.
    """

    at: float
    request_id: str
    answers: Answers
    images: Sequence[bytes | None] | None


def by_day(noted: Sequence[Noted]) -> dict[date, list[Noted]]:
    """The calls of each UTC day."""
    days: dict[date, list[Noted]] = defaultdict(list)
    for each in noted:
        days[datetime.fromtimestamp(each.at, UTC).date()].append(each)
    return days


def batch(noted: Sequence[Noted], *, images: bool) -> RecordBatch:
    """The rows of some calls; with column ``image`` where ``images`` are logged."""
    values = columns([(each, place) for each in noted for place in range(len(each.answers.digests))])
    arrays = {name: _array(values[name], kind) for name, kind in COLUMNS.items()}
    if images:
        sent = [data for each in noted for data in each.images or repeat(None, len(each.answers.digests))]
        arrays[IMAGE] = Array(sent, DataType.binary())
    return RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def columns(rows: Sequence[tuple[Noted, int]]) -> dict[str, list[Any]]:
    """The values of each column, given calls and which of their images is meant."""
    answers = [each.answers for each, _ in rows]
    manifests = [each.live.manifest for each in answers]
    best = [each.answers.best[place][0] for each, place in rows]
    return {
        "time": [round(each.at * MICROSECONDS) for each, _ in rows],
        "request_id": [each.request_id for each, _ in rows],
        "image_sha256": [each.answers.digests[place].hex() for each, place in rows],
        "label": [manifest.classes[index] for manifest, index in zip(manifests, best, strict=True)],
        "probability": [
            each.answers.probabilities.item(place, index) for (each, place), index in zip(rows, best, strict=True)
        ],
        "model": [manifest.model for manifest in manifests],
        "model_version": [manifest.version for manifest in manifests],
        "dataset_version": [manifest.dataset.version for manifest in manifests],
        "role": [each.role for each in answers],
    }


def parquet(batches: Sequence[RecordBatch]) -> bytes:
    """A file of some batches: one row group, statistics on each column."""
    file = BytesIO()
    table = Table.from_batches(batches)
    write_parquet(
        table,
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


def _array(values: list[Any], kind: DataType) -> Array:
    """Values of a column; arro3 makes timestamps and dictionaries from what they are made of."""
    if kind == REPEATED:
        return Array(values, DataType.string()).cast(kind)
    if kind == TIME:
        return Array(values, DataType.int64()).cast(kind)
    return Array(values, kind)
