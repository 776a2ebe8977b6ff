"""Fashion-MNIST as a training has it, for benchmarks that train without a preparation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import fashion_mnist
from pipeline.artifacts import DatasetVersion, PixelSpec
from pipeline.datasets import LoadedSplit
from pipeline.shards import DIGEST_BYTES

DATASET = DatasetVersion(
    dataset=fashion_mnist.NAME,
    version="0" * 16,
    classes=fashion_mnist.CLASSES,
    pixels=PixelSpec(height=28, width=28, channels=1),
    counts={},
)


def held(images: NDArray[np.uint8], labels: NDArray[np.integer[Any]]) -> LoadedSplit:
    """A split of images, uint8 (N, 28, 28) or (N, 28, 28, 1), with labels (N,) and without digests."""
    pixels = images.reshape(len(images), 28, 28, 1).copy()  # torch wants what may be written to
    return LoadedSplit(pixels, labels.astype(np.int64), np.zeros((len(labels), DIGEST_BYTES), np.uint8))
