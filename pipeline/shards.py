"""The shard format: checked pixels of many images in one immutable object, written and read here alone.

- A shard is a safetensors file of two tensors: ``pixels`` uint8 (n, height, width, channels) and ``digests`` uint8
  (n, 32), the SHA-256 of each image's encoded bytes. Nothing else is in it: labels and splits change, pixels do not.
- Its key is the SHA-256 of its bytes, so it is written once, shared between versions and verified by its name alone.
- An image that is stored in grey has one channel here, any other three, in separate shards: a dataset in which the
  first colour image arrives decodes nothing again, because the loader repeats grey where a version is RGB.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pipeline.errors import Corrupted, ObjectMissing
from pipeline.store import Store

SHARD_BYTES = 32 << 20
"""Pixels in a shard at most: few enough to hold several, and enough to read thousands of images per request."""
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
        tensors = load(datasets.get_verified(key, name.hex()))
    except (Corrupted, ObjectMissing) as error:
        what = "is gone" if isinstance(error, ObjectMissing) else "was altered"
        raise Corrupted(
            f"{datasets.url}/{key} {what}: delete {datasets.url}/{dataset}/ and prepare the dataset again."
        ) from error
    return tensors["pixels"], tensors["digests"]


@dataclass(slots=True)
class _Open:
    """Rows of a shard that is not written yet."""

    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)


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
        rows = self._open.setdefault(channels, _Open())
        rows.pixels.append(pixels)
        rows.digests.append(digest)
        if (len(rows.digests) + 1) * pixels.nbytes > SHARD_BYTES:
            self._write(channels)

    def finish(self) -> None:
        """Write what is not written yet."""
        for channels in sorted(self._open):
            self._write(channels)

    def _write(self, channels: int) -> None:
        rows = self._open.pop(channels)
        digests = np.frombuffer(b"".join(rows.digests), np.uint8).reshape(-1, DIGEST_BYTES)
        data = save({"pixels": np.stack(rows.pixels), "digests": digests})
        name = hashlib.sha256(data).digest()
        key = shard_key(self._dataset, name)
        if self._datasets.write_once(key, data) != data:
            raise Corrupted(
                f"{self._datasets.url}/{key} does not hold the bytes that its name promises: it was altered; delete it "
                "and prepare again."
            )
        self.shards[name] = Shard(len(digests), channels)
        self.locations |= {digest: Location(name, row) for row, digest in enumerate(rows.digests)}
