"""From raw images to shards, a chunk at a time: which objects must be read (pure), and the reading, decoding, packing.

- A chunk is what one worker does: thousands of images, never one. It is a small frozen record, and so is its result, so
  that chunks can be mapped over threads, processes or machines; only the pixels are large, and they go to the store.
- Bytes that are packed already are read (their digest must be known) but not decoded. Two objects of one size may hold
  the same bytes unless the etags of both are MD5s and differ, so a chunk carries just the digests that it could meet.
- A chunk's result can be left in the store as well, so that a preparation of many chunks that was killed goes on where
  it was. What is left there is an index segment like any other, and deleting it costs nothing but time.
- Memory: what ``read_many`` has in flight, a few batches that are being decoded, and one shard per kind.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import dataset_index, images
from pipeline.artifacts import PixelSpec
from pipeline.dataset_index import MD5_BYTES, SCHEMA, Index, pc, values
from pipeline.errors import InvalidImage
from pipeline.large_index import LargeIndex
from pipeline.raw import read_raw
from pipeline.rows_on_disk import Rows, Sorter, keep
from pipeline.shards import DIGEST_BYTES, Shard, ShardWriter, row_bytes
from pipeline.store import Store

CHUNK_IMAGES = 10_000
CHUNK_BYTES = 256 << 20
LEAST_IMAGES = 4_000
LEAST_BYTES = 32 << 20
"""Chunks are not made smaller for the sake of their number: a worker should have a second of work, by and large."""
BATCH_IMAGES = 64
FACTS = pa.schema([SCHEMA.field(name) for name in ("digest", "reason", "width", "height", "channels")])
BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images to read, and what to make of them.

    Attributes:
        dataset: whose shards the pixels go to.
        pixels: what an image becomes; 1 channel packs every image in grey, 3 packs grey images in grey all the same.
        keys: in the images zone; ``etags`` (as the index has them) and ``sizes`` in bytes go with them.
        known: digests, 32 bytes each, of images that need not be decoded.
        resumable: leave the result in the store as well.
    """

    dataset: str
    pixels: PixelSpec
    keys: tuple[str, ...]
    etags: tuple[bytes, ...]
    sizes: tuple[int, ...]
    known: bytes
    resumable: bool


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """What came of a chunk: a segment with a row per key (a key that has vanished is gone), and images decoded."""

    segment: bytes
    decoded: int


def work_folder(dataset: str) -> str:
    """Where results of chunks are left."""
    return f"{dataset}/work"


def is_work(key: str) -> bool:
    """Whether a key of the datasets zone is a result of a chunk."""
    return key.split("/")[1:2] == ["work"]


def plan(
    dataset: str, pixels: PixelSpec, wanted: Rows, known: Sequence[LargeIndex], *, at_least: int = 1
) -> Iterator[Chunk]:
    """Chunks that read ``wanted`` (key, etag, size), given all that is known of images that are packed.

    There are ``at_least`` so many, so that as many workers have something to do, unless they would be too small.
    """
    sizes = np.concatenate([np.empty(0, np.int64), *(rows["size"].to_numpy() for rows in wanted)])
    bounds = _chunk_bounds(sizes, at_least)
    for start, end in bounds:
        yield _chunk(dataset, pixels, wanted.slice(start, end), known, resumable=len(bounds) > 1)


def too_large(wanted: Rows) -> LargeIndex:
    """Rows of the objects in ``wanted`` (key, etag, size) that no reader should fetch, let alone decode."""
    return LargeIndex(keep(wanted.folder, map(_too_large, wanted), SCHEMA), {})


def pack_chunk(raw: Store, datasets: Store, chunk: Chunk, *, decode_threads: int | None = None) -> PackedChunk:
    """Read, check, decode and pack the images of a chunk.

    Args:
        raw: the images zone.
        datasets: the datasets zone.
        chunk: what to do.
        decode_threads: images decoded at once; by default one per core.
    """
    # Images are decoded in threads already; OpenCV's own would only fight with them.
    cv2.setNumThreads(1)
    writer = ShardWriter(datasets, chunk.dataset)
    facts, decoded = [FACTS.empty_table()], 0
    for batch in _examined(raw, chunk, decode_threads or os.cpu_count() or 1):
        for examined in batch:
            if examined is not None and examined.pixels is not None:
                writer.add(examined.digest, examined.pixels)
                decoded += 1
        facts.append(_facts(batch))
    writer.finish()
    index = Index(_result_rows(chunk, pa.concat_tables(facts), writer), writer.shards)
    segment = dataset_index.encode(index)
    if chunk.resumable:
        datasets.put(f"{_same_work(chunk.dataset, chunk.pixels)}/{hashlib.sha256(segment).hexdigest()}", segment)
    return PackedChunk(segment, decoded)


class Found:
    """What came of chunks, whose results may come in any order, put aside on disk.

    Attributes:
        read: objects that were read.
        decoded: images that were decoded.
        gone: keys that have vanished.
    """

    def __init__(self, folder: Path | None) -> None:
        self.read = self.decoded = 0
        self.gone: list[str] = []
        self._rows = Sorter(folder, SCHEMA)
        self._shards: dict[bytes, Shard] = {}

    def add(self, packed: PackedChunk) -> None:
        """Take the result of one more chunk."""
        part = dataset_index.decode(packed.segment)
        self._rows.add(part.rows)
        self._shards |= part.shards
        self.gone += values(part.rows["key"].filter(pc.is_null(part.rows["etag"])))
        self.read += len(part.rows)
        self.decoded += packed.decoded

    def index(self) -> LargeIndex:
        """All that was found, keys that have vanished included."""
        return LargeIndex(self._rows.rows(), self._shards)


def left_behind(datasets: Store, dataset: str, pixels: PixelSpec) -> Iterator[Index]:
    """Results of chunks that a preparation to these pixels left; one that was altered is passed over."""
    for found, data in datasets.read_many(datasets.listing(_same_work(dataset, pixels))):
        if data is not None and found.key.endswith(hashlib.sha256(data).hexdigest()):
            yield dataset_index.decode(data)


@dataclass(frozen=True, slots=True)
class Examined:
    """An object that was read: its digest, and pixels with header, a reason against it, or neither (known bytes)."""

    digest: bytes
    header: images.ImageHeader | None = None
    pixels: NDArray[np.uint8] | None = None
    reason: str | None = None


def examine(data: bytes, pixels: PixelSpec, known: frozenset[bytes]) -> Examined:
    """What an object's bytes are; decodes them unless their digest is known."""
    digest = hashlib.sha256(data).digest()
    if digest in known:
        return Examined(digest)
    try:
        header, decoded = images.decode_with_header(data, pixels)
    except InvalidImage as error:
        return Examined(digest, reason=str(error))
    return Examined(digest, header, decoded)


def _same_work(dataset: str, pixels: PixelSpec) -> str:
    return f"{work_folder(dataset)}/{pixels.height}x{pixels.width}-{pixels.fit}-{pixels.format}"


def _examined(raw: Store, chunk: Chunk, threads: int) -> Iterator[list[Examined | None]]:
    """The images of the chunk, in order, some at a time, decoded ahead in threads; None where the object is gone."""
    step = range(0, len(chunk.known), DIGEST_BYTES)
    known = frozenset(chunk.known[start : start + DIGEST_BYTES] for start in step)
    reading = read_raw(raw, chunk.keys, chunk.sizes)

    def examine_all(batch: Sequence[bytes | None]) -> list[Examined | None]:
        return [None if data is None else examine(data, chunk.pixels, known) for data in batch]

    window: deque[Future[list[Examined | None]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for batch in _batches(reading, chunk.pixels):
            window.append(pool.submit(examine_all, batch))
            if len(window) > threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def _batches(reading: Iterable[bytes | None], pixels: PixelSpec) -> Iterator[list[bytes | None]]:
    """Several images per task of the pool, because a small one takes less time than handing it over."""
    count = max(1, min(BATCH_IMAGES, BATCH_BYTES // row_bytes(pixels.height, pixels.width, 3)))
    batch: list[bytes | None] = []
    size = 0
    for data in reading:
        batch.append(data)
        size += len(data or b"")
        if len(batch) >= count or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _facts(found: Sequence[Examined | None]) -> pa.Table:
    """What is known of some objects; nothing but nulls where one is gone."""
    each = [examined or Examined(b"") for examined in found]
    headers = [examined.header for examined in each]
    columns: dict[str, Any] = {
        "digest": [examined.digest or None for examined in each],
        "reason": [examined.reason for examined in each],
        "width": [header and header.width for header in headers],
        "height": [header and header.height for header in headers],
        "channels": [header and header.channels for header in headers],
    }
    return pa.table(columns, schema=FACTS)


def _result_rows(chunk: Chunk, facts: pa.Table, writer: ShardWriter) -> pa.Table:
    """The rows of a chunk's segment; a row without etag where the object is gone."""
    gone = pc.is_null(facts["digest"]).to_numpy()
    where = [writer.locations.get(digest) for digest in values(facts["digest"])]
    return _rows(
        pa.array(chunk.keys, pa.string()),
        pa.array(chunk.etags, pa.binary(), mask=gone),
        pa.array(chunk.sizes, pa.int64(), mask=gone),
        **{name: facts[name] for name in FACTS.names},
        shard=[location and location.shard for location in where],
        row=[location and location.row for location in where],
    )


def _too_large(wanted: pa.Table) -> pa.Table:
    rows = wanted.filter(pc.greater(wanted["size"], images.MAX_BYTES))
    reasons = [f"too large: {size:,} bytes, the limit is {images.MAX_BYTES:,}" for size in values(rows["size"])]
    return _rows(rows["key"], rows["etag"], rows["size"], reason=pa.array(reasons, pa.string()))


def _rows(key: Any, etag: Any, size: Any, **columns: Any) -> pa.Table:
    """Index rows with the given columns; the others are null."""
    nothing = {field.name: pa.nulls(len(key), field.type) for field in SCHEMA}
    return pa.table({**nothing, "key": key, "etag": etag, "size": size, **columns}, schema=SCHEMA)


def _chunk(dataset: str, pixels: PixelSpec, rows: pa.Table, known: Sequence[LargeIndex], *, resumable: bool) -> Chunk:
    keys, etags, sizes = (tuple(values(rows[name])) for name in ("key", "etag", "size"))
    may_hold = {digest for index in known for part in index.rows for digest in _may_hold(part, rows)}
    return Chunk(dataset, pixels, keys, etags, sizes, b"".join(sorted(may_hold)), resumable)


def _chunk_bounds(sizes: NDArray[np.int64], at_least: int) -> list[tuple[int, int]]:
    """Where chunks begin and end: as many objects as fit into both bounds, one at least."""
    before = np.concatenate([[0], np.cumsum(sizes)])
    most_images = min(CHUNK_IMAGES, max(LEAST_IMAGES, len(sizes) // at_least))
    most_bytes = min(CHUNK_BYTES, max(LEAST_BYTES, int(before[-1]) // at_least))
    bounds = []
    start = 0
    while start < len(sizes):
        end = int(np.searchsorted(before, before[start] + most_bytes, side="right")) - 1
        end = max(start + 1, min(end, start + most_images))
        bounds.append((start, end))
        start = end
    return bounds


def _may_hold(known: pa.Table, rows: pa.Table) -> list[bytes]:
    """Digests of packed images whose bytes an object of ``rows`` may hold, by what the listing says."""
    located = known.filter(pc.is_valid(known["shard"]))
    same_size = located.filter(pc.is_in(located["size"], value_set=rows["size"].combine_chunks()))
    same_etag = pc.is_in(same_size["etag"], value_set=rows["etag"].combine_chunks())
    told = pc.equal(pc.binary_length(same_size["etag"]), MD5_BYTES)
    all_told = pc.all(pc.equal(pc.binary_length(rows["etag"]), MD5_BYTES)).as_py()
    possible = same_size.filter(pc.or_(same_etag, pc.invert(told))) if all_told else same_size
    return values(possible["digest"])
