"""Shards: packed, named by their content, verified."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy
import synthetic

from pipeline import shards
from pipeline.errors import Corrupted
from pipeline.shards import SHARD_BYTES, Location, Shard, ShardWriter
from pipeline.store import Store


@pytest.fixture
def datasets() -> Store:
    """An empty zone in memory."""
    return synthetic.memory_zones().datasets


def digest(number: int) -> bytes:
    """The digest that stands for an image."""
    return hashlib.sha256(bytes([number])).digest()


def test_full_shards_are_written_as_they_fill(datasets: Store) -> None:
    """No shard holds more pixels than the bound, all rows are found again, and order is kept."""
    side = 1024
    per_shard = SHARD_BYTES // (side * side)
    writer = ShardWriter(datasets, "cats")
    for number in range(per_shard + 2):
        writer.add(digest(number), np.full((side, side, 1), number, np.uint8))
    writer.finish()
    assert sorted(shard.rows for shard in writer.shards.values()) == [2, per_shard]
    for number in range(per_shard + 2):
        place = writer.locations[digest(number)]
        pixels, digests = shards.read_shard(datasets, "cats", place.shard)
        assert (pixels[place.row] == number).all()
        assert digests[place.row].tobytes() == digest(number)


@pytest.mark.parametrize("images", [1, 7, 300])
def test_any_reader_of_safetensors_reads_a_shard(datasets: Store, images: int) -> None:
    """The library finds the same tensors in a shard's bytes, whatever the number of its rows."""
    writer = ShardWriter(datasets, "cats")
    expected = np.random.default_rng(images).integers(0, 256, (images, 5, 3, 3), dtype=np.uint8)
    names = [hashlib.sha256(number.to_bytes(2)).digest() for number in range(images)]
    for name, pixels in zip(names, expected, strict=True):
        writer.add(name, pixels)
    writer.finish()
    (shard,) = writer.shards
    tensors = safetensors.numpy.load(datasets.get(shards.shard_key("cats", shard)))
    assert np.array_equal(tensors["pixels"], expected)
    assert tensors["digests"].tobytes() == b"".join(names)
    pixels, digests = shards.read_shard(datasets, "cats", shard)
    assert np.array_equal(pixels, expected)
    assert digests.tobytes() == b"".join(names)


def test_a_digest_is_packed_once(datasets: Store) -> None:
    """An image that was taken before is left out, also after its shard was written."""
    writer = ShardWriter(datasets, "cats")
    for _ in range(2):
        writer.add(digest(1), np.zeros((8, 8, 3), np.uint8))
        writer.finish()
    ((name, shard),) = writer.shards.items()
    assert shard == Shard(1, 3)
    assert writer.locations == {digest(1): Location(name, 0)}


def test_a_shard_is_verified(datasets: Store) -> None:
    """An altered or missing shard is Corrupted, and the message says what to do; a writer notices it too."""
    writer = ShardWriter(datasets, "cats")
    writer.add(digest(1), np.zeros((8, 8, 1), np.uint8))
    writer.finish()
    (name,) = writer.shards
    key = shards.shard_key("cats", name)
    datasets.put(key, datasets.get(key)[:-1] + b"x")
    with pytest.raises(Corrupted, match="was altered: delete memory://datasets/cats/ and prepare"):
        shards.read_shard(datasets, "cats", name)
    again = ShardWriter(datasets, "cats")
    again.add(digest(1), np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(Corrupted, match=key):
        again.finish()
    datasets.delete([key])
    with pytest.raises(Corrupted, match="is gone"):
        shards.read_shard(datasets, "cats", name)
