"""Where the images of a split lie: which shards hold them, in which rows, and what proves that they are those.

It takes 12 bytes per image. Images are numbered shard by shard, so that whoever reads a shard has its images by one
slice. A row's own proof is the SHA-256 of its image; of these, the SHA-256 of each shard's together is kept.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import datasets
from pipeline.artifacts import DatasetVersion, Split
from pipeline.dataset_index import Column, digests_of, values
from pipeline.shards import read_shard
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """N images of a split in S shards, in the order of the shards' names.

    Attributes:
        version: whose split it is.
        names: of the shards.
        starts: int64 (S + 1,), the number of each shard's first image.
        rows: int32 (N,), where each image is in its shard.
        labels: int64 (N,), class indices.
        proofs: of each shard, the SHA-256 of its images' digests one after another.
    """

    version: DatasetVersion
    names: tuple[bytes, ...]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    labels: NDArray[np.int64]
    proofs: tuple[bytes, ...]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many images each shard holds: int64 (S,)."""
        return np.diff(self.starts)

    @property
    def digest(self) -> str:
        """What two layouts have in common only if all images lie alike."""
        parts = (b"".join(self.names), self.starts.tobytes(), self.rows.tobytes())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def classes(self) -> NDArray[np.int64]:
        """The class of most images of each shard: int64 (S,)."""
        parts = np.split(self.labels, self.starts[1:-1])
        return np.array([np.bincount(part).argmax() for part in parts if len(part)], np.int64)


def layout_of(store: Store, version: DatasetVersion, split: Split) -> SplitLayout:
    """Read it from the index.

    Args:
        store: the datasets zone.
        version: complete.
        split: which one.
    """
    images = datasets.images_of(store, version, split)
    shard: Column = images["shard"].combine_chunks()
    names = sorted(values(shard.dictionary.take(shard.indices.unique())))
    rank = {name: number for number, name in enumerate(names)}
    ranks = np.array([rank.get(name, -1) for name in values(shard.dictionary)], np.int64)
    number = ranks[shard.indices.to_numpy()] if len(images) else np.empty(0, np.int64)
    return arranged(
        version,
        names,
        shard=number,
        row=images["row"].to_numpy(),
        label=images["label"].to_numpy(),
        digest=digests_of(images["digest"]),
    )


def arranged(
    version: DatasetVersion,
    names: Sequence[bytes],
    *,
    shard: NDArray[np.integer[Any]],
    row: NDArray[np.integer[Any]],
    label: NDArray[np.integer[Any]],
    digest: NDArray[np.uint8],
) -> SplitLayout:
    """The layout of N images that come in any order.

    Args:
        version: whose split it is.
        names: of the shards, in order.
        shard: (N,), the number of each image's shard among ``names``.
        row: (N,), where it is in its shard.
        label: (N,), its class index.
        digest: (N, 32), its SHA-256.
    """
    order = np.lexsort((row, shard))
    starts = np.searchsorted(shard[order], np.arange(len(names) + 1))
    digests = np.split(digest[order], starts[1:-1]) if names else []
    return SplitLayout(
        version=version,
        names=tuple(names),
        starts=starts,
        rows=row[order].astype(np.int32),
        labels=label[order].astype(np.int64),
        proofs=tuple(hashlib.sha256(part.tobytes()).digest() for part in digests),
    )


def read_images(store: Store, layout: SplitLayout, shard: int) -> NDArray[np.uint8]:
    """The images that a shard holds of the split, in the order of their numbers: uint8 (n, height, width, channels).

    Raises:
        Corrupted: the shard, or an image in it, is not what was written.
    """
    name, part = layout.names[shard], slice(layout.starts[shard], layout.starts[shard + 1])
    stored, digests = read_shard(store, layout.version.dataset, name)
    rows = layout.rows[part]
    if rows.max() >= len(stored) or hashlib.sha256(digests[rows].tobytes()).digest() != layout.proofs[shard]:
        raise datasets.holds_others(store, layout.version, name)
    # A grey image's one channel is repeated where the version is RGB.
    return np.broadcast_to(stored[rows], (len(rows), *datasets.shape_of(layout.version)))
