"""Index segments: what they hold, how they override each other, and how few of them there are."""

import hashlib
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import dataset_index
from pipeline.dataset_index import MERGE_ANYWAY, NOTHING, SCHEMA, Index, merge_window
from pipeline.shards import Shard

SHARDS = {bytes([number]) * 32: Shard(100 + number, 1 if number % 2 else 3) for number in range(4)}


def row(key: str, number: int, **changed: object) -> dict[str, object]:
    """A row that is read, packed and used."""
    return {
        "key": key,
        "etag": number.to_bytes(16),
        "size": number,
        "digest": hashlib.sha256(bytes([number])).digest(),
        "reason": None,
        "width": 28,
        "height": 20,
        "channels": 1,
        "shard": bytes([number % 4]) * 32,
        "row": number,
        "label": "cat",
        "split": "train",
    } | changed


def index(*rows: dict[str, object]) -> pa.Table:
    """The rows of an index."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def unreadable(key: str, number: int) -> dict[str, object]:
    """A row that only says why its object cannot be read."""
    nothing = dict.fromkeys(SCHEMA.names)
    return nothing | {"key": key, "etag": b"x", "size": number, "reason": "empty file"}


contents = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 5), max_size=8)


def of(content: dict[str, int]) -> pa.Table:
    """The rows of an index, by key: a number stands for what a row says; some are unreadable."""
    return index(*(unreadable(key, at) if at == 5 else row(key, at) for key, at in sorted(content.items())))


@given(contents)
def test_a_segment_says_what_was_written(content: dict[str, int]) -> None:
    """A segment decodes to equal rows, and to just the shards that they name."""
    written = Index(of(content), SHARDS)
    read = dataset_index.decode(dataset_index.encode(written))
    assert read.rows.equals(written.rows)
    assert read.shards == {name: SHARDS[name] for name in dataset_index.values(written.rows["shard"].unique()) if name}
    assert dataset_index.encode(read) == dataset_index.encode(written)


@given(st.lists(contents, min_size=1, max_size=6), st.integers(0, 5), st.integers(1, 6))
def test_changes_add_up(states: list[dict[str, int]], start: int, length: int) -> None:
    """Segments of changes say what the last state was, also when any neighbours among them are merged into one."""
    segments, before = [], NOTHING
    for state in states:
        segments.append(dataset_index.difference(before, of(state)))
        before = dataset_index.resolve(segments)
        assert before.equals(of(state))
    segments[start : start + length] = [
        dataset_index.resolve(segments[start : start + length], keep_gone=start > 0),
    ]
    assert dataset_index.resolve(segments).equals(of(states[-1]))


def test_no_change_is_an_empty_segment() -> None:
    """Rows that are equal, nulls included, are no change; one changed value is one row."""
    state = index(row("a", 1), unreadable("b", 2), row("c", 3))
    assert len(dataset_index.difference(state, state)) == 0
    changed = index(row("a", 1, label="dog"), unreadable("b", 2), row("c", 3))
    assert dataset_index.values(dataset_index.difference(state, changed)["key"]) == ["a"]


def test_only_the_same_key_etag_and_size_is_unchanged() -> None:
    """A row stays known while key, etag and size are as listed; a store without etags makes everything new."""
    known = index(row("a", 1), row("b", 2), row("c", 3), row("d", 4, etag=b""))
    listing = pa.table(
        {
            "key": ["a", "b", "c", "d", "e"],
            "etag": [(1).to_bytes(16), (9).to_bytes(16), (3).to_bytes(16), b"", b"x"],
            "size": [1, 2, 4, 4, 5],
        },
        schema=pa.schema({"key": pa.string(), "etag": pa.binary(), "size": pa.int64()}),
    )
    assert dataset_index.values(dataset_index.unchanged(known, listing)["key"]) == ["a"]


def test_keys_of_the_same_bytes_share_their_pixels() -> None:
    """A row whose image is packed under another key gets that place; of two places all get the first."""
    digest = row("", 1)["digest"]
    late, early = bytes([2]) * 32, bytes([1]) * 32
    missing = dict.fromkeys(("width", "height", "channels", "shard", "row"))
    known = index(
        row("a", 1, shard=late, row=7),
        row("b", 2, digest=digest, shard=early, row=8),
        row("c", 3, digest=digest, **missing),
        row("d", 3, digest=bytes(32), **missing),
        unreadable("e", 5),
    )
    shared = dataset_index.share_locations(known, NOTHING).to_pylist()
    assert [(each["shard"], each["row"], each["width"]) for each in shared] == [
        *[(early, 8, 28)] * 3,
        *[(None, None, None)] * 2,
    ]
    gone = index(row("z", 9, digest=bytes(32), shard=late, row=6))
    assert dataset_index.values(dataset_index.share_locations(known, gone)["row"]) == [8, 8, 8, 6, None]


def test_which_rows_are_packed_in_the_wrong_colour() -> None:
    """Grey images need one channel, others three unless all are grey; rows without pixels need nothing."""
    grey, rgb = bytes([1]) * 32, bytes([0]) * 32
    rows = index(
        row("a", 1, channels=1, shard=grey),
        row("b", 2, channels=1, shard=rgb),
        row("c", 3, channels=3, shard=grey),
        row("d", 4, channels=3, shard=rgb),
        unreadable("e", 5),
    )
    as_stored = dataset_index.as_needed(rows, SHARDS, grey=False)
    assert dataset_index.values(as_stored["shard"]) == [grey, None, None, rgb, None]
    in_grey = dataset_index.as_needed(rows, SHARDS, grey=True)
    assert dataset_index.values(in_grey["row"]) == [1, None, 3, None, None]
    assert dataset_index.values(dataset_index.without_locations(rows)["row"]) == [None] * 5


@pytest.mark.parametrize(
    ("etag", "stored"),
    [
        ('"0123456789abcdef0123456789abcdef"', 16),
        ("0123456789abcdef0123456789abcdef", 16),
        ('"0123456789abcdef0123456789abcdef-3"', 12),
        ("0x8D4BCC2E4835CD0", 12),
        ("", 0),
        ('""', 0),
    ],
)
def test_etags_are_kept_short(etag: str, stored: int) -> None:
    """An MD5 keeps its 16 bytes, with quotes or without; any other etag becomes 12; none stays none."""
    assert len(dataset_index.short_etag(etag)) == stored


def test_a_small_segment_is_small() -> None:
    """Ten rows take less than 3 kB and a thousand less than 80 bytes each: an addition must cost little."""
    rng = random.Random(3)
    rows = [
        row(f"cats/class/{number:06d}.png", 1, etag=rng.randbytes(16), digest=rng.randbytes(32), row=number)
        for number in range(1000)
    ]
    assert len(dataset_index.encode(Index(index(*rows[:10]), SHARDS))) < 3000
    assert len(dataset_index.encode(Index(index(*rows), SHARDS))) < 80_000


@pytest.mark.parametrize("growth", [0.0001, 0.001, 0.01, 0.1])
def test_merging_is_bounded(growth: float) -> None:
    """Over 2,000 additions no merge exceeds its budget while pieces are few, and their number stays bounded."""
    pieces, copied, added = [1_000_000], 0.0, 0.0
    for _ in range(2000):
        new = max(1, int(growth * sum(pieces)))
        pieces.append(new)
        added += new
        budget = 0.01 * sum(pieces)
        window = merge_window(pieces, budget)
        if window:
            total = sum(pieces[window.start : window.stop])
            assert len(pieces) > MERGE_ANYWAY or total <= budget
            pieces[window.start : window.stop] = [total]
            copied += total
        assert len(pieces) <= MERGE_ANYWAY + 1
    assert copied <= 12 * added


def test_what_is_worth_merging() -> None:
    """Four neighbours at least, none of them larger than the others together."""
    assert merge_window([100, 1, 1, 1], 1000) == range(0)
    assert merge_window([100, 1, 1, 1, 1], 1000) == range(1, 5)
    assert merge_window([100, 4, 1, 1, 1, 1], 1000) == range(1, 6)
    assert merge_window([100, 4, 1, 1, 1, 1], 4) == range(2, 6)
    assert merge_window([], 1000) == range(0)
