"""Images in shards without a preparation, for benchmarks of what reads them."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import DatasetVersion, PixelSpec
from pipeline.shards import DIGEST_BYTES, ShardWriter
from pipeline.split_layout import SplitLayout, arranged
from pipeline.store import Store

DATASET = "streaming"


def packed(store: Store, pixels: NDArray[np.uint8], labels: NDArray[np.int64], rows: int | None = None) -> SplitLayout:
    """Pack images into shards, in their order, and say where they are.

    Args:
        store: the datasets zone.
        pixels: uint8 (N, H, W, C).
        labels: int64 (N,).
        rows: of a shard; by default as many as the product packs.
    """
    height, width, channels = pixels.shape[1:]
    spec = PixelSpec(height=height, width=width, channels=channels)
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    version = DatasetVersion(dataset=DATASET, version="0" * 16, classes=classes, pixels=spec, counts={})
    writer = ShardWriter(store, DATASET)
    digests = [hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(len(labels))]
    for number, digest in enumerate(digests):
        writer.add(digest, pixels[number])
        if rows and (number + 1) % rows == 0:
            writer.finish()
    writer.finish()
    places = [writer.locations[digest] for digest in digests]
    names = sorted(writer.shards)
    shard = np.searchsorted(np.array(names, "S32"), np.array([place.shard for place in places], "S32"))
    row = np.array([place.row for place in places])
    joined = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return arranged(version, names, shard=shard, row=row, label=labels, digest=joined)
