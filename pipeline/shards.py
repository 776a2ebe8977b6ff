"""The shard format: checked pixels of many images in one immutable object, written and read here alone.

- A shard is a safetensors file of two tensors: ``pixels`` uint8 (n, height, width, channels) and ``digests`` uint8
  (n, 32), the SHA-256 of each image's encoded bytes. Nothing else is in it: labels and splits change, pixels do not.
- It is written and read without a copy of its pixels, which is what bounds the memory of preparation and loading: the
  header, which has to say how many rows follow, gets a fixed place and is filled in at the end.
- Its key is the SHA-256 of its bytes, so it is written once, shared between versions and verified by its name alone.
- An image that is stored in grey has one channel here, any other three, in separate shards: a dataset in which the
  first colour image arrives decodes nothing again, because the loader repeats grey where a version is RGB.
"""

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Corrupted, ObjectMissing
from pipeline.store import Store

SHARD_BYTES = 8 << 20
"""Pixels in a shard at most: few enough to hold several, and enough for many images per request."""
DIGEST_BYTES = 32
LENGTH_BYTES = 8
HEADER_BYTES = 256
"""Of the header of what is written here, its length included; blanks fill it up."""


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
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES:start])
    return _tensor(data, header["pixels"], start), _tensor(data, header["digests"], start)


def _tensor(data: bytes, entry: dict[str, Any], start: int) -> NDArray[np.uint8]:
    """A tensor of a safetensors file, given its entry in the header and where the header ends."""
    first, end = entry["data_offsets"]
    return np.frombuffer(data, np.uint8, end - first, start + first).reshape(entry["shape"])


@dataclass(slots=True)
class _Open:
    """A shard that is not written yet: its bytes so far, with room for the header."""

    row: tuple[int, ...]
    data: io.BytesIO = field(default_factory=lambda: io.BytesIO(bytes(HEADER_BYTES)))
    digests: list[bytes] = field(default_factory=list)

    def add(self, digest: bytes, pixels: NDArray[np.uint8]) -> None:
        """Take a row."""
        self.data.seek(0, io.SEEK_END)
        self.data.write(pixels.tobytes())
        self.digests.append(digest)

    def close(self) -> bytes:
        """The whole file."""
        pixels = self.data.seek(0, io.SEEK_END) - HEADER_BYTES
        self.data.write(b"".join(self.digests))
        rows, end = len(self.digests), self.data.tell() - HEADER_BYTES
        header = {
            "pixels": {"dtype": "U8", "shape": [rows, *self.row], "data_offsets": [0, pixels]},
            "digests": {"dtype": "U8", "shape": [rows, DIGEST_BYTES], "data_offsets": [pixels, end]},
        }
        room = HEADER_BYTES - LENGTH_BYTES
        self.data.seek(0)
        self.data.write(room.to_bytes(LENGTH_BYTES, "little") + json.dumps(header).encode().ljust(room))
        return self.data.getvalue()  # CPython hands over its own buffer here: no copy


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
        shard = self._open.setdefault(channels, _Open(pixels.shape))
        shard.add(digest, pixels)
        if (len(shard.digests) + 1) * pixels.nbytes > SHARD_BYTES:
            self._write(channels)

    def finish(self) -> None:
        """Write what is not written yet."""
        for channels in sorted(self._open):
            self._write(channels)

    def _write(self, channels: int) -> None:
        shard = self._open.pop(channels)
        data = shard.close()
        name = hashlib.sha256(data).digest()
        key = shard_key(self._dataset, name)
        if self._datasets.write_once(key, data) != data:
            raise Corrupted(
                f"{self._datasets.url}/{key} does not hold the bytes that its name promises: it was altered; delete it "
                "and prepare again."
            )
        self.shards[name] = Shard(len(shard.digests), channels)
        self.locations |= {digest: Location(name, row) for row, digest in enumerate(shard.digests)}
