"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747): 70,000 grey images, 28 by 28, MIT licence.

Taken from Debian's package where it is installed, else from a cache folder that torchvision's download fills.
"""

import gzip
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Split
from pipeline.errors import InvalidInput

NAME = "fashion-mnist"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADED = Path("FashionMNIST") / "raw"
PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}
IMAGES_FILE = "{}-images-idx3-ubyte.gz"
LABELS_FILE = "{}-labels-idx1-ubyte.gz"
UBYTE = 0x08
LEAST = 2 * len(CLASSES)
"""A training and a test image of each class."""

Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images uint8 (N, 28, 28) and labels uint8 (N,) of one split."""


def download(folder: Path) -> None:
    """Let torchvision put the published files below ``folder``."""
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415 - slow to import, and seldom needed

    FashionMNIST(str(folder), download=True)


def load(cache: Path, *, installed: Path = INSTALLED, fetch: Callable[[Path], None] = download) -> dict[Split, Part]:
    """Both splits.

    Args:
        cache: where a download is kept, and found again.
        installed: where an operating system's package puts the files.
        fetch: downloads into the folder that it is given, in torchvision's layout.

    Raises:
        InvalidInput: the files are neither here nor to be had, or damaged.
    """
    folder = installed if _is_complete(installed) else cache / DOWNLOADED
    if not _is_complete(folder):
        try:
            fetch(cache)
        except (OSError, RuntimeError) as error:
            raise InvalidInput(
                "Fashion-MNIST is not on this machine and cannot be downloaded: connect to a network, "
                "or install Debian's copy with apt-get install dataset-fashion-mnist."
            ) from error
    return {split: _part(folder, prefix) for split, prefix in PREFIXES.items()}


def subset(labels: Mapping[Split, NDArray[np.uint8]], limit: int | None) -> list[tuple[Split, int]]:
    """Split and index of ``limit`` images, in the published proportions of splits and classes; all without a limit.

    A larger limit gives the same images and more.

    Raises:
        InvalidInput: the limit leaves a class without a training or test image.
    """
    if limit is not None and limit < LEAST:
        raise InvalidInput(f"A limit of {limit} images is too small: each class needs a training and a test image.")
    order = sorted(
        (place / len(indices), split, label, int(index))
        for split, of_split in labels.items()
        for label in range(len(CLASSES))
        for indices in [np.flatnonzero(of_split == label)]
        for place, index in enumerate(indices)
    )
    return [(split, index) for _, split, _, index in order[:limit]]


def _is_complete(folder: Path) -> bool:
    names = [name.format(prefix) for prefix in PREFIXES.values() for name in (IMAGES_FILE, LABELS_FILE)]
    return all((folder / name).is_file() for name in names)


def _part(folder: Path, prefix: str) -> Part:
    images, labels = (_idx(folder / name.format(prefix)) for name in (IMAGES_FILE, LABELS_FILE))
    if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) >= len(CLASSES):
        raise InvalidInput(f"{folder} holds other files than Fashion-MNIST's: delete it and import again.")
    return images, labels


def _idx(path: Path) -> NDArray[np.uint8]:
    """An array in the IDX format: two zeros, type, number of dimensions, sizes, values; all big-endian."""
    try:
        data = gzip.decompress(path.read_bytes())
        zeros, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
        if (zeros, kind) == (0, UBYTE):
            return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise InvalidInput(f"{path} is damaged: delete it and import again.") from error
    raise InvalidInput(f"{path} is damaged: delete it and import again.")
