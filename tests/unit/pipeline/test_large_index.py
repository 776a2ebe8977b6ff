"""An index on disk says what an index in memory says, however few of its rows are looked at together."""

import hashlib

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline import dataset_index, large_index
from pipeline.dataset_index import NOTHING, SCHEMA
from pipeline.large_index import LargeIndex, all_on_disk
from pipeline.rows_on_disk import keep
from pipeline.shards import Shard

SHARDS = {bytes([number]) * 32: Shard(10, 1) for number in range(3)}
LISTED = pa.schema([SCHEMA.field(name) for name in ("key", "etag", "size")])

states = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), max_size=8)
places = st.dictionaries(
    st.sampled_from("abcdefgh"), st.tuples(st.integers(0, 3), st.integers(-1, 2), st.integers(0, 2)), max_size=8
)


def index(rows: dict[str, dict[str, object]]) -> pa.Table:
    """The rows of an index, by key."""
    nothing = dict.fromkeys(SCHEMA.names)
    listed = [nothing | {"key": key, "etag": b"e", "size": 1} | rows[key] for key in sorted(rows)]
    return pa.Table.from_pylist(listed, schema=SCHEMA)


def of(state: dict[str, int]) -> pa.Table:
    """Rows in which a number stands for what a row says; 0 is a key that is gone."""
    return index({key: {"etag": bytes([number]) if number else None, "size": number} for key, number in state.items()})


def placed(state: dict[str, tuple[int, int, int]]) -> pa.Table:
    """Rows of (image, shard or -1 for none, row)."""
    return index(
        {
            key: {
                "digest": hashlib.sha256(bytes([image])).digest(),
                "shard": bytes([shard]) * 32 if shard >= 0 else None,
                "row": row if shard >= 0 else None,
                "width": 28 if shard >= 0 else None,
            }
            for key, (image, shard, row) in state.items()
        }
    )


def large(*tables: pa.Table) -> list[LargeIndex]:
    """The same on disk, two rows in a block."""
    return [LargeIndex(keep(None, [each], SCHEMA, block_rows=2), SHARDS) for each in tables]


def rows(of: LargeIndex) -> pa.Table:
    """All rows, in memory."""
    return pa.concat_tables([NOTHING, *of.rows]).combine_chunks()


@given(st.lists(states, min_size=1, max_size=5), st.booleans())
def test_segments_are_resolved(found: list[dict[str, int]], keep_gone: bool) -> None:
    """The last row of each key counts, and rows of gone keys only where they are asked for."""
    parts = [of(state) for state in found]
    expected = dataset_index.resolve(parts, keep_gone=keep_gone)
    assert rows(large_index.resolve(large(*parts), keep_gone=keep_gone)).equals(expected)
    together = all_on_disk(None, (([part], SHARDS) for part in parts), len(parts))
    assert rows(large_index.resolve(together, keep_gone=keep_gone)).equals(expected)


@given(states, states)
def test_changes_are_found(before: dict[str, int], after: dict[str, int]) -> None:
    """What turns one index into another is the same segment."""
    old, new = of(before), of({key: number or 1 for key, number in after.items()})
    expected = dataset_index.difference(old, new)
    assert rows(large_index.difference(*large(old, new))).equals(expected)


@given(states, states)
def test_what_is_unchanged_stays_known(known: dict[str, int], listed: dict[str, int]) -> None:
    """Rows of listed keys stay where etag and size are as they were."""
    listing = of({key: number or 1 for key, number in listed.items()}).select(LISTED.names)
    expected = dataset_index.unchanged(of(known), listing)
    on_disk = keep(None, [listing], LISTED, block_rows=2)
    assert rows(large_index.unchanged(*large(of(known)), on_disk)).equals(expected)


@given(places, places)
def test_places_are_shared(own: dict[str, tuple[int, int, int]], others: dict[str, tuple[int, int, int]]) -> None:
    """Of equal bytes under any two keys, here or there, all rows get the first place, and only they change."""
    expected = dataset_index.share_locations(placed(own), placed(others))
    shared = large_index.share_locations(*large(placed(own), placed(others)))
    assert rows(shared).equals(expected)
    assert shared.shards == SHARDS
