"""Segments of a dataset's index in the object store: written once, read, and merged while it costs little.

``dataset_index`` has their format, ``dataset_versions`` names them in manifests. A segment lies under the SHA-256 of
its bytes, so it is shared between versions, and this machine's cache may have it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline import dataset_index, file_cache, large_index
from pipeline.artifacts import Digest, Record
from pipeline.dataset_index import SCHEMA, Column, pc
from pipeline.large_index import LargeIndex
from pipeline.shards import shard_key
from pipeline.store import Store

MERGED_SHARE = 0.001
"""Bytes of segments merged in one preparation at most, as a share of all that a version stores."""


class Segment(Record):
    """A stored segment of an index; ``size`` in bytes."""

    sha256: Digest
    rows: int
    size: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A segment that is not stored yet, and its bytes."""

    segment: Segment
    data: bytes


def segment_key(dataset: str, segment: Segment) -> str:
    """Where a segment lies, in the datasets zone."""
    return f"{dataset}/index/{segment.sha256}.parquet"


def read(datasets: Store, dataset: str, segments: Sequence[Segment], cache: Path | None = None) -> pa.Table:
    """The rows (``SCHEMA``) that segments have together, each overriding those before it.

    Raises:
        ObjectMissing: one is gone.
        Corrupted: one was altered.
    """
    return dataset_index.resolve(
        dataset_index.decode(_bytes_of(datasets, dataset, segment, cache)).rows for segment in segments
    )


def read_large(datasets: Store, dataset: str, segments: Sequence[Segment], cache: Path | None) -> LargeIndex:
    """As ``read``, on disk, with the shards that the rows point into."""
    return large_index.resolve(_each_large(datasets, dataset, segments, cache))


def scan(datasets: Store, dataset: str, segments: Sequence[Segment], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows that ``read`` gives, some columns of them, a few thousand at a time and in no order.

    Only the keys of newer segments are held meanwhile, which override those of older ones.

    Raises:
        ObjectMissing: a segment is gone.
        Corrupted: one was altered.
    """
    newer: list[Column] = []
    for number, segment in reversed([*enumerate(segments)]):
        overridden = pa.chunked_array(newer, pa.string()).combine_chunks()
        data = _bytes_of(datasets, dataset, segment, None)
        for rows in dataset_index.scan(data, sorted({"key", "etag", *columns})):
            if number:
                newer += rows["key"].chunks
            known = pc.is_in(rows["key"], value_set=overridden)
            yield rows.filter(pc.and_not(pc.is_valid(rows["etag"]), known)).select(list(columns))


def keys_named(datasets: Store, dataset: str, segment: Segment, cache: Path | None) -> list[str]:
    """Keys of a segment and of the shards that its rows point into.

    Raises:
        ObjectMissing: it is gone.
        Corrupted: it was altered.
    """
    shards = dataset_index.shards_of(_bytes_of(datasets, dataset, segment, cache))
    return [segment_key(dataset, segment), *(shard_key(dataset, name) for name in shards)]


def encoded(index: LargeIndex) -> Encoded:
    """An index as one segment."""
    data = dataset_index.encode_parts(index.rows, index.shards)
    segment = Segment(sha256=hashlib.sha256(data).hexdigest(), rows=len(index.rows), size=len(data))
    return Encoded(segment, data)


def write(datasets: Store, dataset: str, new: Encoded, cache: Path | None) -> Segment:
    """Store a segment."""
    datasets.write_once(segment_key(dataset, new.segment), new.data)
    file_cache.write(cache, new.data)
    return new.segment


def write_change(
    datasets: Store,
    dataset: str,
    stored: Sequence[Segment],
    change: LargeIndex,
    *,
    pixel_bytes: int,
    cache: Path | None,
) -> tuple[Segment, ...]:
    """Segments, stored, that say what ``stored`` and a change to them say: these and a new one, some merged into one.

    Args:
        datasets: the datasets zone.
        dataset: its name.
        stored: segments from before.
        change: what overrides them; it may be empty.
        pixel_bytes: what the shards of the version take.
        cache: folder of segments that were read or written on this machine.

    Raises:
        ObjectMissing: a segment that should be merged is gone.
        Corrupted: one was altered.
    """
    pieces: list[Segment | Encoded] = [*stored, encoded(change)] if len(change.rows) else [*stored]
    sizes = [(piece.segment if isinstance(piece, Encoded) else piece).size for piece in pieces]
    window = dataset_index.merge_window(sizes, MERGED_SHARE * (sum(sizes) + pixel_bytes))
    if window:
        merged = pieces[window.start : window.stop]
        parts = _each_large(datasets, dataset, [piece for piece in merged if isinstance(piece, Segment)], cache)
        parts += [change] if len(parts) < len(merged) else []
        # Rows of gone keys are needed as long as a segment before them knows those keys.
        pieces[window.start : window.stop] = [encoded(large_index.resolve(parts, keep_gone=window.start > 0))]
    return tuple(piece if isinstance(piece, Segment) else write(datasets, dataset, piece, cache) for piece in pieces)


def _each_large(datasets: Store, dataset: str, segments: Sequence[Segment], cache: Path | None) -> list[LargeIndex]:
    """What each segment says, on disk."""
    each = (_bytes_of(datasets, dataset, segment, cache) for segment in segments)
    parts = ((dataset_index.scan(data, SCHEMA.names), dataset_index.shards_of(data)) for data in each)
    return large_index.all_on_disk(cache, parts, len(segments))


def _bytes_of(datasets: Store, dataset: str, segment: Segment, cache: Path | None) -> bytes:
    fetch = partial(datasets.get_verified, segment_key(dataset, segment), segment.sha256)
    return file_cache.read(cache, segment.sha256, fetch)
