"""Chunks: what they hold, and what comes of them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dataset_index, packing
from pipeline.artifacts import PixelSpec
from pipeline.dataset_index import SCHEMA, Index, values
from pipeline.images import MAX_BYTES, decode
from pipeline.large_index import LargeIndex, on_disk
from pipeline.packing import CHUNK_BYTES, CHUNK_IMAGES, LEAST_BYTES, LEAST_IMAGES, Chunk
from pipeline.rows_on_disk import Rows, keep
from pipeline.shards import Shard, read_shard
from pipeline.zones import Zones

SPEC = PixelSpec(height=28, width=28, channels=3)
MD5 = b"m" * 16
OTHER = b"o" * 12
SHARD = bytes(32)


@pytest.fixture
def zones() -> Zones:
    """Empty zones in memory."""
    return synthetic.memory_zones()


def wanted(*rows: tuple[str, bytes, int]) -> Rows:
    """A listing of (key, etag, size)."""
    names = ("key", "etag", "size")
    schema = pa.schema([SCHEMA.field(name) for name in names])
    return keep(None, [pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)], schema)


def chunk(keys: Sequence[str], known: bytes = b"", *, pixels: PixelSpec = SPEC, resumable: bool = False) -> Chunk:
    """A chunk of these keys."""
    count = len(keys)
    return Chunk("cats", pixels, tuple(keys), (MD5,) * count, (1,) * count, known, resumable)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2 * CHUNK_BYTES), max_size=30))
def test_chunks_cover_everything_once_within_bounds(sizes: list[int]) -> None:
    """Every object is in one chunk, in order; a chunk exceeds its bytes only by holding a single larger object."""
    rows = [(f"{number:03d}", MD5, size) for number, size in enumerate(sizes)]
    chunks = list(packing.plan("cats", SPEC, wanted(*rows), []))
    assert [key for each in chunks for key in each.keys] == [key for key, *_ in rows]
    assert all(len(each.keys) == 1 or sum(each.sizes) <= CHUNK_BYTES for each in chunks)
    assert {each.resumable for each in chunks} <= {len(chunks) > 1}


def test_chunks_are_bounded_in_images() -> None:
    """Small objects fill chunks up to the bound of their number."""
    rows = [(str(number), MD5, 100) for number in range(2 * CHUNK_IMAGES + 1)]
    assert [len(each.keys) for each in packing.plan("cats", SPEC, wanted(*rows), [])] == [
        CHUNK_IMAGES,
        CHUNK_IMAGES,
        1,
    ]


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [
        (16_000, 100, [LEAST_IMAGES] * 4),
        (600_000, 100, [600_000 // 64] * 64),
        (640, LEAST_BYTES // 10, [10] * 64),
        (70, LEAST_BYTES // 10, [10] * 7),
        (1, 100, [1]),
    ],
)
def test_chunks_for_many_are_as_many_as_are_worth_it(count: int, size: int, lengths: list[int]) -> None:
    """There are as many as asked for, unless they would be smaller than the least, or larger than the most."""
    rows = [(f"{number:06d}", MD5, size) for number in range(count)]
    assert [len(each.keys) for each in packing.plan("cats", SPEC, wanted(*rows), [], at_least=64)] == lengths


@pytest.mark.parametrize(
    ("etag", "size", "etag_before", "size_before", "possible"),
    [
        (MD5, 5, MD5, 5, True),
        (MD5, 5, b"n" * 16, 5, False),
        (MD5, 5, OTHER, 5, True),
        (OTHER, 5, MD5, 5, True),
        (OTHER, 5, OTHER, 5, True),
        (MD5, 5, MD5, 6, False),
        (OTHER, 5, OTHER, 6, False),
    ],
)
def test_which_known_bytes_an_object_may_hold(
    etag: bytes, size: int, etag_before: bytes, size_before: int, possible: bool
) -> None:
    """A chunk carries a packed digest if sizes are equal, unless both etags are MD5s and differ."""
    nothing = dict.fromkeys(SCHEMA.names)
    known = nothing | {"key": "old", "etag": etag_before, "size": size_before, "digest": b"d" * 32}
    located = known | {"shard": SHARD, "row": 0}
    (found,) = packing.plan("cats", SPEC, wanted(("new", etag, size)), [_index(located)])
    assert found.known == (b"d" * 32 if possible else b"")


def _index(*rows: dict[str, object]) -> LargeIndex:
    return on_disk(Index(pa.Table.from_pylist(list(rows), schema=SCHEMA), {SHARD: Shard(1, 1)}))


def test_too_large_objects_are_told_from_the_listing() -> None:
    """An object over the limit gets a reason without being read; one at the limit does not."""
    (found,) = packing.too_large(wanted(("a", MD5, MAX_BYTES), ("b", MD5, MAX_BYTES + 1))).rows
    rows = found.to_pylist()
    assert [row["key"] for row in rows] == ["b"]
    assert rows[0]["reason"].startswith("too large")


def test_what_comes_of_a_chunk(zones: Zones) -> None:
    """Grey and colour go to shards of their own, equal bytes once; known bytes, damage and absence are told apart."""
    images = {
        "grey": synthetic.png(1),
        "rgb": synthetic.png(2, channels=3),
        "grey again": synthetic.png(1),
        "known": synthetic.png(3),
        "broken": synthetic.png(4)[:50],
        "empty": b"",
    }
    for key, data in images.items():
        zones.images.put(key, data)
    known = hashlib.sha256(images["known"]).digest()
    packed = packing.pack_chunk(zones.images, zones.datasets, chunk([*images, "gone"], known), decode_threads=2)
    index = dataset_index.decode(packed.segment)
    rows = {row["key"]: row for row in index.rows.to_pylist()}

    assert list(rows) == [*images, "gone"]
    assert rows["gone"]["etag"] is None
    assert all(rows[key]["digest"] == hashlib.sha256(data).digest() for key, data in images.items())
    assert rows["broken"]["reason"]
    assert rows["empty"]["reason"]
    assert rows["known"]["shard"] is None
    assert rows["known"]["reason"] is None
    assert rows["grey"]["shard"] == rows["grey again"]["shard"] != rows["rgb"]["shard"]
    assert (rows["rgb"]["channels"], rows["rgb"]["width"]) == (3, 28)
    assert packed.decoded == 3
    assert index.shards == {rows["grey"]["shard"]: Shard(1, 1), rows["rgb"]["shard"]: Shard(1, 3)}
    for key, channels in (("grey", 1), ("rgb", 3)):
        pixels, digests = read_shard(zones.datasets, "cats", rows[key]["shard"])
        expected = decode(images[key], SPEC.model_copy(update={"channels": channels}))
        assert np.array_equal(pixels[rows[key]["row"]], expected)
        assert digests[rows[key]["row"]].tobytes() == rows[key]["digest"]


def test_grey_is_packed_once_for_grey_and_rgb() -> None:
    """A grey image's one channel, repeated, is what decoding it to RGB gives, whatever its size."""
    for number, (height, width) in enumerate([(28, 28), (50, 31), (9, 13)]):
        data = synthetic.png(number, height, width)
        grey = decode(data, SPEC.model_copy(update={"channels": 1}))
        assert np.array_equal(np.repeat(grey, 3, axis=2), decode(data, SPEC))


def test_all_in_grey(zones: Zones) -> None:
    """Where all images become grey, a colour image is packed with one channel too."""
    zones.images.put("rgb", synthetic.png(2, channels=3))
    grey = SPEC.model_copy(update={"channels": 1})
    packed = packing.pack_chunk(zones.images, zones.datasets, chunk(["rgb"], pixels=grey))
    index = dataset_index.decode(packed.segment)
    assert values(index.rows["channels"]) == [3]
    assert list(index.shards.values()) == [Shard(1, 1)]


def test_results_can_be_found_again(zones: Zones) -> None:
    """What a resumable chunk left is found for the same pixels only, and passed over when it was altered."""
    zones.images.put("a", synthetic.png(1))
    packed = packing.pack_chunk(zones.images, zones.datasets, chunk(["a"], resumable=True))
    (found,) = packing.left_behind(zones.datasets, "cats", SPEC)
    assert found.rows.equals(dataset_index.decode(packed.segment).rows)
    assert not list(packing.left_behind(zones.datasets, "cats", SPEC.model_copy(update={"height": 32})))
    (stored,) = zones.datasets.listing(packing.work_folder("cats"))
    zones.datasets.put(stored.key, packed.segment[:-1])
    assert not list(packing.left_behind(zones.datasets, "cats", SPEC))


def test_the_same_chunk_writes_the_same_shard(zones: Zones) -> None:
    """Packed again, a chunk finds its shard written and its result equal."""
    for number in range(20):
        zones.images.put(str(number), synthetic.png(number))
    work = chunk([str(number) for number in range(20)])
    first = packing.pack_chunk(zones.images, zones.datasets, work, decode_threads=3)
    assert packing.pack_chunk(zones.images, zones.datasets, work, decode_threads=1) == first
    assert len(list(zones.datasets.listing("cats/shards"))) == 1
