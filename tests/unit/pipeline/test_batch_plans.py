"""What a batch is named by, how it is cut, and where it lies."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import synthetic
from batch_predictions import MODEL
from hypothesis import given
from hypothesis import strategies as st

from pipeline import batch_plans, batches
from pipeline.batch_plans import LISTED
from pipeline.batches import Place
from pipeline.errors import InvalidInput
from pipeline.images import MAX_BYTES
from pipeline.rows_on_disk import Rows, keep

IMAGES = "s3://safelight-images"


def listing(sizes: list[int], etag: str = "e") -> pa.Table:
    """Objects of these sizes."""
    keys = [f"in/{number:05d}" for number in range(len(sizes))]
    return pa.table({"key": keys, "size": sizes, "etag": [etag] * len(sizes)}, schema=LISTED)


def on_disk(folder: Path, table: pa.Table, block_rows: int = 7) -> Rows:
    """The same, in blocks."""
    return keep(folder, [table], LISTED, block_rows=block_rows)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("pets", (IMAGES, "pets")),
        ("/pets/cats/", (IMAGES, "pets/cats")),
        (f"{IMAGES}/pets", (IMAGES, "pets")),
        (IMAGES, (IMAGES, "")),
        (f"{IMAGES}-2/pets/", (f"{IMAGES}-2", "pets")),
        ("s3://elsewhere", ("s3://elsewhere", "")),
    ],
)
def test_a_prefix_is_a_folder_or_a_url(prefix: str, expected: tuple[str, str]) -> None:
    """Within the images zone it is the zone's own, elsewhere a bucket and a folder in it."""
    assert batch_plans.address(prefix, IMAGES) == expected


@pytest.mark.parametrize("prefix", ["", " ", "/", "http://host/pets", "s3://", "s3:///pets"])
def test_what_is_no_prefix_is_refused(prefix: str) -> None:
    """An empty one would be everything by mistake; other stores are not ours to read."""
    with pytest.raises(InvalidInput, match="prefix"):
        batch_plans.address(prefix, IMAGES)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 9), st.lists(st.integers(1, 20), max_size=12))
def test_parts_are_bounded_and_lose_nothing(sizes: list[int], rows: int, pages: list[int]) -> None:
    """However a listing comes in pages: the same parts, in order, within both bounds, and never one less than full."""
    whole = listing(sizes)
    places = [0]
    for page in pages:
        places.append(min(places[-1] + page, len(whole)))
    tables = [whole.slice(start, end - start) for start, end in zip(places, [*places[1:], len(whole)], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_plans, "PART_BYTES", 100)
        parts = list(batch_plans.cut(tables, rows))
        assert [part.to_pylist() for part in parts] == [part.to_pylist() for part in batch_plans.cut([whole], rows)]
    assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()
    for part, following in pairwise(parts):
        size = sum(part["size"].to_pylist())
        assert len(part) <= rows
        assert size <= 100
        assert len(part) == rows or size + following["size"][0].as_py() > 100


def test_what_is_not_read_does_not_fill_a_part() -> None:
    """Objects that are too large to be read, films say, share a part with many others."""
    assert len(list(batch_plans.cut([listing([MAX_BYTES + 1] * 100)], 1000))) == 1


def test_identity_is_of_content(tmp_path: Path) -> None:
    """However the rows lie on disk: the same digest; another one for any other size, etag, prefix or version."""
    sizes = [1, 2, 3]

    def identity(table: pa.Table, block_rows: int = 7, prefix: str = "in", version: str = "v1") -> str:
        return batch_plans.identity(IMAGES, prefix, MODEL, version, on_disk(tmp_path, table, block_rows))

    first = identity(listing(sizes))
    assert identity(listing(sizes), block_rows=1) == first
    others = {
        identity(listing([1, 2, 4])),
        identity(listing(sizes, etag="f")),
        identity(listing(sizes), prefix="out"),
        identity(listing(sizes), version="v2"),
        identity(listing(sizes[:2])),
    }
    assert len(others | {first}) == 6


def test_a_batch_is_given_up_parts_first(tmp_path: Path) -> None:
    """Whoever finds the plan finds what it names."""
    place = Place(MODEL, "monday")
    store = synthetic.memory_store()
    segments = batch_plans.write_listing(store, place, batch_plans.cut(on_disk(tmp_path, listing([1, 2])), 1))
    keys = [f"{place.folder}/part-00000.parquet", place.plan, segments[0].key]
    assert sorted(keys, key=batches.removal_rank) == keys
    assert [batch_plans.read_listing(store, each).to_pylist() for each in segments] == [
        [row] for row in listing([1, 2]).to_pylist()
    ]
