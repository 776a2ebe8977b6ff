"""Dataset versions as others see them: finding one, its images and labels, and the training loader.

- What ``latest`` and ``find`` return is complete: its manifest was written last (``dataset_versions`` has the layout).
- The loader orders images by digest, so that training does not depend on where pixels happen to be stored. It reads
  each shard once, verifies it by its SHA-256 and each row by its digest, and repeats grey where a version is RGB.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import dataset_versions
from pipeline.artifacts import DatasetVersion, Split
from pipeline.dataset_index import digests_of, pc, values
from pipeline.dataset_versions import DatasetManifest, read_manifest
from pipeline.errors import Corrupted, InvalidInput, NotFound
from pipeline.images import encode_png
from pipeline.progress import OnProgress, Progress, silent
from pipeline.shards import DIGEST_BYTES, read_shard, row_bytes, shard_key
from pipeline.store import Store, StoredObject

__all__ = [
    "DatasetManifest",
    "LoadedSplit",
    "encoded_images",
    "find",
    "labels_of",
    "latest",
    "load_split",
    "read_index",
    "read_manifest",
    "split_digests",
]

SHARDS_AT_ONCE = 6
BLOCK_IMAGES = 1024
BLOCK_BYTES = 64 << 20
UNKNOWN_TIME = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LoadedSplit:
    """A split in memory, in the order of image digests.

    Attributes:
        pixels: uint8 (N, height, width, channels).
        labels: int64 (N,), class indices.
        digests: uint8 (N, 32), SHA-256 of the encoded images.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]


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


def read_index(datasets: Store, version: DatasetVersion, cache: Path | None = None) -> pa.Table:
    """All rows of a version's index (``dataset_index.SCHEMA``), by key, unused images among them.

    Raises:
        NotFound: there is no such version.
        Corrupted: a part of it was altered.
    """
    manifest = read_manifest(datasets, version.dataset, version.version)
    return dataset_versions.read_segments(datasets, version.dataset, manifest.segments, cache).rows


def split_digests(datasets: Store, version: DatasetVersion, split: Split) -> set[bytes]:
    """The SHA-256 (32 bytes) of every encoded image in a split."""
    return set(values(_images_of(datasets, version, split)["digest"]))


def labels_of(datasets: Store, version: DatasetVersion, split: Split) -> dict[bytes, str]:
    """The label of every image in a split, by its digest, ordered by digest."""
    rows = _images_of(datasets, version, split)
    return dict(zip(values(rows["digest"]), values(rows["label"]), strict=True))


def load_split(
    datasets: Store, version: DatasetVersion, split: Split, *, memory_mb: int = 4096, on_progress: OnProgress = silent
) -> LoadedSplit:
    """All pixels of a split.

    Args:
        datasets: the datasets zone.
        version: what ``latest``, ``find`` or a preparation returned.
        split: which one.
        memory_mb: bound of the result, in MiB.
        on_progress: told after each shard.

    Raises:
        InvalidInput: the split does not fit into ``memory_mb``.
        Corrupted: a shard, or an image in it, is not what was written.
    """
    rows = _images_of(datasets, version, split)
    needed_mb = -(-len(rows) * row_bytes(*_shape(version)) // (1 << 20))
    if needed_mb > memory_mb:
        raise InvalidInput(
            f"The {split} split of {version.dataset!r} {version.version} takes {needed_mb:,} MiB, which is more than "
            f"SAFELIGHT_TRAINING_MEMORY_MB allows ({memory_mb:,}): raise it, or prepare smaller images."
        )
    labels = pc.index_in(rows["label"], value_set=pa.array(version.classes, pa.string()))
    pixels = _read_pixels(datasets, version, rows, on_progress)
    return LoadedSplit(pixels, labels.to_numpy().astype(np.int64), digests_of(rows["digest"]))


def encoded_images(
    images: Store, datasets: Store, version: DatasetVersion, digests: Sequence[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """Each image of ``digests``, in their order, with its encoded bytes.

    These are the raw object's where it still has that SHA-256, else the stored pixels as a PNG.

    Raises:
        NotFound: an image is not in this version.
        Corrupted: a shard, or an image in it, is not what was written.
    """
    index = _images_of(datasets, version, None)
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


def _images_of(datasets: Store, version: DatasetVersion, split: Split | None) -> pa.Table:
    """One row for each image of a split, or of all, ordered by digest."""
    rows = read_index(datasets, version)
    chosen = pc.is_valid(rows["split"]) if split is None else pc.equal(rows["split"], split)
    rows = rows.filter(pc.fill_null(chosen, False)).sort_by([("digest", "ascending"), ("key", "ascending")])
    digests = digests_of(rows["digest"])
    first = np.ones(len(rows), bool)
    first[1:] = (digests[1:] != digests[:-1]).any(axis=1)
    return rows.filter(pa.array(first)).combine_chunks()


def _encoded(images: Store, datasets: Store, version: DatasetVersion, rows: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    digests: list[bytes] = values(rows["digest"])
    sizes = zip(values(rows["key"]), values(rows["size"]), strict=True)
    found = {}
    objects = (StoredObject(key, size, "", UNKNOWN_TIME) for key, size in sizes)
    for digest, (_, data) in zip(digests, images.read_many(objects), strict=True):
        if data is not None and hashlib.sha256(data).digest() == digest:
            found[digest] = data
    lost = rows.filter(pa.array([digest not in found for digest in digests]))
    for digest, pixels in zip(values(lost["digest"]), _read_pixels(datasets, version, lost, silent), strict=True):
        found[digest] = encode_png(pixels)
    for digest in digests:
        yield digest, found[digest]


def _read_pixels(
    datasets: Store, version: DatasetVersion, rows: pa.Table, on_progress: OnProgress
) -> NDArray[np.uint8]:
    """The pixels of index rows, in their order: uint8 (n, height, width, channels)."""
    pixels = np.empty((len(rows), *_shape(version)), np.uint8)
    digests = digests_of(rows["digest"])
    row = rows["row"].to_numpy()
    names = rows["shard"].combine_chunks().dictionary_encode()
    order = np.argsort(names.indices.to_numpy(), kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(names.indices.to_numpy()))[:-1])

    def copy(name: bytes, positions: NDArray[np.int64]) -> int:
        stored, stored_digests = read_shard(datasets, version.dataset, name)
        chosen = row[positions]
        if chosen.max() >= len(stored) or (stored_digests[chosen] != digests[positions]).any():
            raise Corrupted(
                f"{datasets.url}/{shard_key(version.dataset, name)} holds other images than {version.version} says: "
                f"delete {datasets.url}/{version.dataset}/ and prepare the dataset again."
            )
        pixels[positions] = stored[chosen]  # a grey image's one channel is repeated where the version is RGB
        return len(positions)

    done = 0
    with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="load") as pool:
        for count in pool.map(copy, values(names.dictionary), groups):
            done += count
            on_progress(Progress("loading images", done, len(rows)))
    return pixels


def _shape(version: DatasetVersion) -> tuple[int, int, int]:
    return version.pixels.height, version.pixels.width, version.pixels.channels
