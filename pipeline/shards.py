"""The shard format: checked pixels of many images in one immutable object, written and read here alone.

- A shard is a safetensors file of two tensors: ``pixels`` uint8 (n, height, width, channels) and ``digests`` uint8
  (n, 32), the SHA-256 of each image's encoded bytes. Nothing else is in it: labels and splits change, pixels do not.
- What is being written fills one array row by row, so that nothing is stacked; the library copies it once more into the
  file, and a file once more into arrays. Shards are small so that this may be.
- Its key is the SHA-256 of its bytes, so it is written once, shared between versions and verified by its name alone.
- An image that is stored in grey has one channel here, any other three, in separate shards: a dataset in which the
  first colour image arrives decodes nothing again, because the loader repeats grey where a version is RGB.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline.errors import Corrupted, ObjectMissing
from pipeline.store import Store

SHARD_BYTES = 2 << 20
"""Pixels in a shard at most: few enough to hold several, and enough for many images per request."""
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Shard:
    """How many rows a shard has, those of images that are gone included, and channels per pixel."""

    rows: int
    channels: int


@dataclass(frozen=True, slots=True)
class Location:
    """Where an image's pixels are: a shard's name (the 32 bytes of its SHA-256) and a row of it."""

    shard: bytes
    row: int


def shard_key(dataset: str, name: bytes) -> str:
    """The key of a shard in the datasets zone."""
    return f"{dataset}/shards/{name.hex()}.safetensors"


def row_bytes(height: int, width: int, channels: int) -> int:
    """What one image takes in a shard, in bytes."""
    return height * width * channels + DIGEST_BYTES


def read_shard(datasets: Store, dataset: str, name: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A shard's pixels uint8 (n, height, width, channels) and digests uint8 (n, 32).

    Raises:
        Corrupted: it is gone, or its bytes are not those that were written.
    """
    key = shard_key(dataset, name)
    try:
        data = datasets.get_verified(key, name.hex())
    except (Corrupted, ObjectMissing) as error:
        what = "is gone" if isinstance(error, ObjectMissing) else "was altered"
        raise Corrupted(
            f"{datasets.url}/{key} {what}: delete {datasets.url}/{dataset}/ and prepare the dataset again."
        ) from error
    tensors = load(data)
    return tensors["pixels"], tensors["digests"]


class _Open:
    """A shard that is not written yet: its rows so far, in an array that has room for as many as a shard may have."""

    def __init__(self, row: tuple[int, ...]) -> None:
        self._pixels = np.empty((max(1, SHARD_BYTES // math.prod(row)), *row), np.uint8)
        self.digests: list[bytes] = []

    def add(self, digest: bytes, pixels: NDArray[np.uint8]) -> None:
        """Take a row; there must be room for it."""
        self._pixels[len(self.digests)] = pixels
        self.digests.append(digest)

    def is_full(self) -> bool:
        """Whether there is no room for another row."""
        return len(self.digests) == len(self._pixels)

    def encoded(self) -> bytes:
        """The whole file."""
        digests = np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, DIGEST_BYTES)
        return save({"pixels": self._pixels[: len(digests)], "digests": digests})


class ShardWriter:
    """Packs images into shards and writes each one as soon as it is full.

    Attributes:
        locations: by image digest; complete after ``finish``.
        shards: by name; complete after ``finish``.
    """

    def __init__(self, datasets: Store, dataset: str) -> None:
        self.locations: dict[bytes, Location] = {}
        self.shards: dict[bytes, Shard] = {}
        self._datasets = datasets
        self._dataset = dataset
        self._open: dict[int, _Open] = {}
        self._taken: set[bytes] = set()

    def add(self, digest: bytes, pixels: NDArray[np.uint8]) -> None:
        """Take an image's pixels, uint8 (height, width, channels); a digest that was taken before is left out."""
        if digest in self._taken:
            return
        self._taken.add(digest)
        channels = pixels.shape[2]
        if channels not in self._open:
            self._open[channels] = _Open(pixels.shape)
        self._open[channels].add(digest, pixels)
        if self._open[channels].is_full():
            self._write(channels)

    def finish(self) -> None:
        """Write what is not written yet."""
        for channels in sorted(self._open):
            self._write(channels)

    def _write(self, channels: int) -> None:
        shard = self._open.pop(channels)
        data = shard.encoded()
        name = hashlib.sha256(data).digest()
        key = shard_key(self._dataset, name)
        if self._datasets.write_once(key, data) != data:
            raise Corrupted(
                f"{self._datasets.url}/{key} does not hold the bytes that its name promises: it was altered; delete it "
                "and prepare again."
            )
        self.shards[name] = Shard(len(shard.digests), channels)
        self.locations |= {digest: Location(name, row) for row, digest in enumerate(shard.digests)}
