"""Dataset versions as others see them: finding one, its images and labels, and the training loader.

- What ``latest`` and ``find`` return is complete: its manifest was written last (``dataset_versions`` has the layout).
- The loader orders images by digest, so that training does not depend on where pixels happen to be stored. It reads
  each shard once, verifies it by its SHA-256 and each row by its digest, and repeats grey where a version is RGB.
- Pixels that exceed what memory may hold lie in a local file (``pixel_file``), in the same order: the setting decides
  where they are, never what is learned.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import dataset_versions, freed_memory, index_segments
from pipeline.artifacts import DatasetVersion, Split
from pipeline.dataset_index import Column, digests_of, pc, values
from pipeline.dataset_versions import DatasetManifest, read_manifest
from pipeline.errors import Corrupted, NotFound
from pipeline.images import encode_png
from pipeline.parts import part_of
from pipeline.pixel_file import PixelFile
from pipeline.progress import OnProgress, Progress, silent
from pipeline.raw import read_raw
from pipeline.shards import DIGEST_BYTES, read_shard, shard_key
from pipeline.store import Store

__all__ = [
    "DatasetManifest",
    "LoadedSplit",
    "encoded_images",
    "find",
    "holds_others",
    "images_of",
    "labels_of",
    "latest",
    "load_split",
    "read_index",
    "read_manifest",
    "shape_of",
    "split_digests",
]

SHARDS_AT_ONCE = 6
FEW_SHARDS = 1
"""At once, where pixels shall not be in memory."""
BLOCK_IMAGES = 1024
BLOCK_BYTES = 64 << 20

Keep: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.uint8]], None]
"""Takes positions (n,) and the pixels that belong there, uint8 (n, height, width, channels)."""


@dataclass(frozen=True, slots=True)
class LoadedSplit:
    """A split, in the order of image digests.

    Attributes:
        pixels: uint8 (N, height, width, channels).
        labels: int64 (N,), class indices.
        digests: uint8 (N, 32), SHA-256 of the encoded images.
        file: what ``pixels`` is mapped from; None where they are in memory.
        places: int64 (N,), where only a part was loaded: where each image lies among the pixels of all parts, one
            part's after the other's. ``pixels`` holds one part then, labels and digests are still of all.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]
    file: PixelFile | None = None
    places: NDArray[np.int64] | None = None

    def sample(self, count: int) -> NDArray[np.uint8]:
        """The first ``count`` images, which are random ones, since a digest is: uint8 (n, height, width, channels)."""
        return self.pixels[:count]

    def release(self) -> None:
        """Let go of the memory of what was read of ``pixels``, where they are not meant to be in memory."""
        if self.file is not None:
            self.file.release()


def latest(datasets: Store, dataset: str) -> DatasetVersion:
    """The version that the last finished preparation returned.

    Raises:
        NotFound: the dataset was never prepared.
    """
    pointer = dataset_versions.read_latest(datasets, dataset)
    if pointer is None:
        raise NotFound(f"Dataset {dataset!r} has no version yet: prepare it first.")
    return find(datasets, dataset, pointer.version)


def find(datasets: Store, dataset: str, version: str) -> DatasetVersion:
    """A complete version by its name.

    Raises:
        NotFound: there is none.
    """
    return read_manifest(datasets, dataset, version).version


def read_index(datasets: Store, version: DatasetVersion) -> pa.Table:
    """All rows of a version's index (``dataset_index.SCHEMA``), by key, unused images among them.

    Raises:
        NotFound: there is no such version.
        Corrupted: a part of it was altered.
    """
    manifest = read_manifest(datasets, version.dataset, version.version)
    return index_segments.read(datasets, version.dataset, manifest.segments)


def split_digests(datasets: Store, version: DatasetVersion, split: Split) -> set[bytes]:
    """The SHA-256 (32 bytes) of every encoded image in a split."""
    return set(values(images_of(datasets, version, split)["digest"]))


def labels_of(datasets: Store, version: DatasetVersion, split: Split) -> dict[bytes, str]:
    """The label of every image in a split, by its digest, ordered by digest."""
    rows = images_of(datasets, version, split)
    labels = (version.classes[label] for label in values(rows["label"]))
    return dict(zip(values(rows["digest"]), labels, strict=True))


def load_split(
    datasets: Store,
    version: DatasetVersion,
    split: Split,
    *,
    memory_mb: int = 4096,
    scratch: Path | None = None,
    part: int = 0,
    parts: int = 1,
    on_progress: OnProgress = silent,
) -> LoadedSplit:
    """All pixels of a split, or an equal part of them, in memory if they fit there, else in a local file.

    Args:
        datasets: the datasets zone.
        version: what ``latest``, ``find`` or a preparation returned.
        split: which one.
        memory_mb: how much memory the pixels may take, in MiB.
        scratch: folder of the file, which is gone when nobody uses the result any more; by default the system's own.
        part: which of ``parts``, from 0 on. They are cut along the shards, so that a shard is read for two parts only
            where it lies on the border.
        parts: how many processes share the pixels.
        on_progress: told after each shard.

    Raises:
        InvalidInput: the pixels fit neither into ``memory_mb`` nor into ``scratch``.
        Corrupted: a shard, or an image in it, is not what was written.
    """
    fits = version.counts[split] // parts * int(np.prod(shape_of(version))) <= memory_mb << 20
    if not fits:
        freed_memory.keep_little()
    rows = images_of(datasets, version, split)
    freed_memory.give_back()
    places, ours = (None, rows) if parts == 1 else _shared_out(rows, part, parts)
    if fits or not len(ours):
        file, pixels = None, _read_pixels(datasets, version, ours, on_progress)
    else:
        with PixelFile(scratch, (len(ours), *shape_of(version))) as file:
            _copy_pixels(datasets, version, ours, file.write, on_progress, at_once=FEW_SHARDS)
            pixels = file.mapped()
    freed_memory.give_back()
    return LoadedSplit(pixels, rows["label"].to_numpy().astype(np.int64), digests_of(rows["digest"]), file, places)


def encoded_images(
    images: Store, datasets: Store, version: DatasetVersion, digests: Sequence[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """Each image of ``digests``, in their order, with its encoded bytes.

    These are the raw object's where it still has that SHA-256, else the stored pixels as a PNG.

    Raises:
        NotFound: an image is not in this version.
        Corrupted: a shard, or an image in it, is not what was written.
    """
    index = images_of(datasets, version, None, "key", "size")
    positions = pc.index_in(pa.array(digests, pa.binary(DIGEST_BYTES)), value_set=index["digest"].combine_chunks())
    if positions.null_count:
        raise NotFound(f"{positions.null_count:,} of the images are not in {version.dataset!r} {version.version}.")
    rows = index.take(positions)
    ends = np.cumsum(rows["size"].to_numpy())
    start = 0
    while start < len(rows):
        fitting = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + BLOCK_BYTES)) - start
        block = rows.slice(start, max(1, min(fitting, BLOCK_IMAGES)))
        yield from _encoded(images, datasets, version, block)
        start += len(block)


def images_of(datasets: Store, version: DatasetVersion, split: Split | None, *more: str) -> pa.Table:
    """One row for each image of a split, or of all, ordered by digest, with ``more`` columns of the index.

    Columns: digest; label, a class index; shard and row of its pixels. It takes about 50 bytes per image.
    """
    columns = ["digest", "label", "shard", "row", *more]
    manifest = read_manifest(datasets, version.dataset, version.version)
    classes = pa.array(version.classes, pa.string())
    scanned = index_segments.scan(datasets, version.dataset, manifest.segments, [*columns, "split"])
    parts = (_chosen(rows.filter(_in_split(rows, split)).select(columns), classes) for rows in scanned)
    return _distinct(pa.concat_tables(parts).unify_dictionaries())


def _in_split(rows: pa.Table, split: Split | None) -> Column:
    return pc.is_valid(rows["split"]) if split is None else pc.fill_null(pc.equal(rows["split"], split), False)


def _chosen(rows: pa.Table, classes: Column) -> pa.Table:
    """The rows, with a class index for a label and the name of each shard once."""
    rows = rows.set_column(1, "label", pc.index_in(rows["label"], value_set=classes))
    return rows.set_column(2, "shard", rows["shard"].dictionary_encode())


def _distinct(rows: pa.Table) -> pa.Table:
    """The first row of each digest, ordered by digest."""
    rows = rows.combine_chunks()
    rows = rows.sort_by([("digest", "ascending"), *(("key", "ascending"),) * ("key" in rows.column_names)])
    digests = np.ascontiguousarray(digests_of(rows["digest"])).view("V32").ravel()
    first = np.ones(len(rows), np.bool_)
    first[1:] = digests[1:] != digests[:-1]
    return (rows if first.all() else rows.filter(pa.array(first))).combine_chunks()


def _shared_out(rows: pa.Table, part: int, parts: int) -> tuple[NDArray[np.int64], pa.Table]:
    """Where each row lies among all parts (``LoadedSplit.places``), and the rows of one part, a shard's together."""
    shard: Column = rows["shard"].combine_chunks()
    names = pc.rank(shard.dictionary, tiebreaker="dense").to_numpy()  # whatever numbers the shards have here
    order: NDArray[np.int64] = np.lexsort((rows["row"].to_numpy(), names[shard.indices.to_numpy()]))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places, rows.take(order[part_of(len(order), part, parts)])


def _encoded(images: Store, datasets: Store, version: DatasetVersion, rows: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    digests: list[bytes] = values(rows["digest"])
    stored = zip(digests, read_raw(images, values(rows["key"]), values(rows["size"])), strict=True)
    found = {digest: data for digest, data in stored if data is not None and hashlib.sha256(data).digest() == digest}
    lost = rows.filter(pa.array([digest not in found for digest in digests]))
    for digest, pixels in zip(values(lost["digest"]), _read_pixels(datasets, version, lost, silent), strict=True):
        found[digest] = encode_png(pixels)
    for digest in digests:
        yield digest, found[digest]


def _read_pixels(
    datasets: Store, version: DatasetVersion, rows: pa.Table, on_progress: OnProgress
) -> NDArray[np.uint8]:
    """The pixels of index rows, in their order: uint8 (n, height, width, channels)."""
    pixels = np.empty((len(rows), *shape_of(version)), np.uint8)
    _copy_pixels(datasets, version, rows, pixels.__setitem__, on_progress)
    return pixels


def _copy_pixels(
    datasets: Store,
    version: DatasetVersion,
    rows: pa.Table,
    keep: Keep,
    on_progress: OnProgress,
    *,
    at_once: int = SHARDS_AT_ONCE,
) -> None:
    """Hand the pixels of index rows to ``keep``, a shard at a time, in several threads."""
    digests = digests_of(rows["digest"])
    row = rows["row"].to_numpy()
    shard: Column = rows["shard"].combine_chunks()
    order = np.argsort(shard.indices.to_numpy(), kind="stable")
    needed, first = np.unique(shard.indices.to_numpy()[order], return_index=True)
    names = values(shard.dictionary.take(pa.array(needed)))

    def copy(name: bytes, positions: NDArray[np.int64]) -> int:
        stored, stored_digests = read_shard(datasets, version.dataset, name)
        chosen = row[positions]
        if chosen.max() >= len(stored) or (stored_digests[chosen] != digests[positions]).any():
            raise holds_others(datasets, version, name)
        for start in range(0, len(positions), BLOCK_IMAGES):
            block = slice(start, start + BLOCK_IMAGES)
            # A grey image's one channel is repeated where the version is RGB.
            pixels = stored[chosen[block]]
            keep(positions[block], np.broadcast_to(pixels, (len(pixels), *shape_of(version))))
        return len(positions)

    done = 0
    with ThreadPoolExecutor(at_once, thread_name_prefix="load") as pool:
        for count in pool.map(copy, names, np.split(order, first)[1:]):
            done += count
            on_progress(Progress("loading images", done, len(rows)))


def holds_others(datasets: Store, version: DatasetVersion, shard: bytes) -> Corrupted:
    """The error that a shard has other images than the index of a version says."""
    return Corrupted(
        f"{datasets.url}/{shard_key(version.dataset, shard)} holds other images than {version.version} says: "
        f"delete {datasets.url}/{version.dataset}/ and prepare the dataset again."
    )


def shape_of(version: DatasetVersion) -> tuple[int, int, int]:
    """Height, width and channels of each of its images."""
    return version.pixels.height, version.pixels.width, version.pixels.channels
