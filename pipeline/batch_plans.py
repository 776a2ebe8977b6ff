"""Plans of batch predictions: what is answered, by which model version, cut into parts; stored before the first answer.

- **Whoever goes on with a batch goes by its plan**, whatever was uploaded, or became the champion, since.
- The listing is stored part by part, each one a table that whoever answers it reads: what travels is its name.
- A plan's identity is the digest of what decides the answers; how the listing is cut does not.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import Digest, Name, Record, StoredFile, digest_of
from pipeline.batches import FORMAT, WORK, Part, Place, Segment, record
from pipeline.dataset_index import values
from pipeline.errors import InvalidInput
from pipeline.images import MAX_BYTES
from pipeline.rows_on_disk import Rows
from pipeline.sealing import sealed
from pipeline.store import Store
from pipeline.store_users import BATCHES

PART_OBJECTS: Final = 10_000
PART_BYTES: Final = 2 << 30
"""Of the images of a part: what is done again where a process was killed in the middle of one."""
PART_NUMBERS: Final = 4_000_000
"""Probabilities of a part."""

LISTED_COLUMNS: Final[dict[str, Any]] = {"key": pa.string(), "size": pa.int64(), "etag": pa.string()}
LISTED: Final = pa.schema(LISTED_COLUMNS)


class Plan(Record):
    """What a batch is made of, and by.

    Attributes:
        identity: digest of the source, the prefix, the listing and the model version.
        source: URL of the store that keys are relative to.
        prefix: the folder there.
        asked: the version or alias that was asked for.
        version: the version that this was when it was asked.
        listed_at: when the listing was finished.
        segments: the listing, by part.
    """

    format: Literal[1] = FORMAT
    identity: Digest
    source: str
    prefix: str
    model: Name
    asked: str
    version: str
    listed_at: datetime
    objects: int
    segments: tuple[Segment, ...]


def address(prefix: str, images: str) -> tuple[str, str]:
    """The URL of a store, and the folder in it.

    Args:
        prefix: a folder of the images zone, or the URL of one in a bucket of the same store.
        images: the URL of the images zone.

    Raises:
        InvalidInput: it is neither.
    """
    if "://" not in prefix:
        folder = prefix.strip().strip("/")
        if not folder:
            raise InvalidInput(f"The prefix is empty: name a folder of images, or give {images} for all of them.")
        return images, folder
    if f"{prefix}/".startswith(f"{images}/"):
        return images, prefix.removeprefix(images).strip("/")
    bucket, _, folder = prefix.removeprefix("s3://").partition("/")
    if not prefix.startswith("s3://") or not bucket:
        raise InvalidInput(f"{prefix!r} is no prefix: give a folder of {images}, or s3://bucket/folder.")
    return f"s3://{bucket}", folder.strip("/")


def identity(source: str, prefix: str, model: str, version: str, listing: Rows) -> str:
    """The digest of what decides the answers; ``listing`` (``LISTED``) is by key."""
    digest = hashlib.sha256()
    for rows in listing:
        columns = (values(rows[name]) for name in LISTED.names)
        digest.update("".join(f"{key}\0{size}\0{etag}\n" for key, size, etag in zip(*columns, strict=True)).encode())
    what = {"source": source, "prefix": prefix, "model": model, "version": version, "listing": digest.hexdigest()}
    return digest_of({"format": FORMAT, **what})


def cut(listing: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """A listing in parts of at most so many rows, and of ``PART_BYTES`` to read."""
    held = LISTED.empty_table()
    for table in listing:
        held = pa.concat_tables([held, table])
        ends = _ends([0 if size > MAX_BYTES else size for size in values(held["size"])], rows)
        for start, end in zip([0, *ends[:-2]], ends[:-1], strict=False):
            yield held.slice(start, end - start)
        if len(ends) > 1:
            held = held.slice(ends[-2]).combine_chunks()
    if len(held):
        yield held


def write_listing(predictions: Store, place: Place, parts: Iterable[pa.Table]) -> tuple[Segment, ...]:
    """Store the parts of a listing."""
    segments = []
    for rows in parts:
        file = io.BytesIO()
        pq.write_table(rows, file, compression="zstd")
        data = file.getvalue()
        stored = StoredFile.of(f"{place.work}/listing/{hashlib.sha256(data).hexdigest()}.parquet", data)
        predictions.write_once(stored.key, data)
        segments.append(Segment(**stored.model_dump(), rows=len(rows)))
    return tuple(segments)


def read_listing(predictions: Store, segment: Segment) -> pa.Table:
    """The listed objects (``LISTED``) of a part.

    Raises:
        ObjectMissing: the listing was removed.
        Corrupted: it was altered.
    """
    with pq.ParquetFile(pa.BufferReader(predictions.get_verified(segment.key, segment.sha256))) as file:
        return file.read(use_threads=False)


def write_plan(predictions: Store, place: Place, plan: Plan) -> Plan:
    """Store a plan; what is stored from now on, where another one was quicker."""
    return record(Plan, predictions, place.plan, predictions.write_once(place.plan, sealed(plan, place.plan)))


def read_plan(predictions: Store, place: Place) -> Plan | None:
    """The plan of a batch that is unfinished; None where there is none.

    Raises:
        Corrupted: it was altered.
    """
    data = predictions.get_if_present(place.plan)
    return None if data is None else record(Plan, predictions, place.plan, data)


def unfinished(predictions: Store, model: str) -> Iterator[tuple[Place, Plan]]:
    """The batches of a model that have a plan and no manifest."""
    for name in predictions.folders(f"{BATCHES}/{model}/{WORK}"):
        place = Place(model, name)
        plan = read_plan(predictions, place)
        if plan is not None and predictions.head(place.manifest) is None:
            yield place, plan


def parts_of(place: Place, plan: Plan) -> list[Part]:
    """All parts of a batch."""
    return [
        Part(
            key=f"{place.folder}/part-{number:05d}.parquet",
            plan=plan.identity,
            source=plan.source,
            prefix=plan.prefix,
            model=plan.model,
            version=plan.version,
            listing=segment,
        )
        for number, segment in enumerate(plan.segments)
    ]


def _ends(sizes: Sequence[int], rows: int) -> list[int]:
    """Where parts end, the last one at the end of ``sizes``."""
    ends, start, held = [], 0, 0
    for place, size in enumerate(sizes):
        if place > start and (place - start == rows or held + size > PART_BYTES):
            ends.append(place)
            start, held = place, 0
        held += size
    return [*ends, len(sizes)]
