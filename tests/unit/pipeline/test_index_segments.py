"""Segments of an index in the store: what they say together, however they are read."""

import hashlib

import pyarrow as pa
import pytest
import synthetic

from pipeline import dataset_index, index_segments, large_index
from pipeline.dataset_index import SCHEMA, Index
from pipeline.index_segments import Segment
from pipeline.large_index import LargeIndex, on_disk


def index(*numbers: int) -> LargeIndex:
    """An index in which the number in a key stands for what its row says."""
    nothing = dict.fromkeys(SCHEMA.names)
    rows = [
        nothing | {"key": f"cats/a/{number}", "etag": b"e", "digest": hashlib.sha256(str(number).encode()).digest()}
        for number in numbers
    ]
    rows = [row | {"row": place, "split": "train"} for place, row in enumerate(rows)]
    return on_disk(Index(pa.Table.from_pylist(rows, schema=SCHEMA), {}))


@pytest.mark.parametrize("share", [0.0, 10.0], ids=["unmerged", "merged"])
def test_rows_are_scanned_as_they_are_read(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """A few rows at a time, newer segments still override older ones, and keys that are gone stay away."""
    monkeypatch.setattr(dataset_index, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(index_segments, "MERGED_SHARE", share)
    datasets = synthetic.memory_zones().datasets
    segments: tuple[Segment, ...] = ()
    before, most = None, 0
    for numbers in ((*range(1, 30),), (*range(5, 33),), (*range(1, 20), 40), (2, 41)):
        now = index(*numbers)
        change = large_index.difference(before, now)
        segments = index_segments.write_change(datasets, "cats", segments, change, pixel_bytes=0, cache=None)
        read = index_segments.read(datasets, "cats", segments)
        assert read.equals(pa.concat_tables(now.rows).combine_chunks())
        scanned = index_segments.scan(datasets, "cats", segments, ["key", "digest", "row", "split"])
        together = pa.concat_tables(scanned).sort_by("key")
        assert together.equals(read.select(together.column_names))
        before, most = now, max(most, len(segments))
    assert most > 1
