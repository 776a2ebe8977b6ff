"""Tables on disk: what is read is what was written, and several are read key by key in step."""

import os
import weakref
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.rows_on_disk import Rows, Sorter, in_step, keep, keep_each

SCHEMA = pa.schema({"key": pa.string(), "number": pa.int64()})
keys = st.lists(st.text("abcé", max_size=3), unique=True).map(sorted)


def table(of: list[str], number: int = 0) -> pa.Table:
    """A row for each key."""
    return pa.table({"key": of, "number": [number] * len(of)}, schema=SCHEMA)


def whole(rows: Rows) -> pa.Table:
    """All rows, in memory."""
    return pa.concat_tables([SCHEMA.empty_table(), *rows])


@given(st.lists(keys), st.integers(1, 4))
def test_what_is_kept_is_read(parts: list[list[str]], block_rows: int) -> None:
    """All rows come back in their order, in blocks of the given length."""
    tables = [table(part, number) for number, part in enumerate(parts)]
    rows = keep(None, tables, SCHEMA, block_rows=block_rows)
    assert whole(rows).equals(pa.concat_tables([SCHEMA.empty_table(), *tables]))
    assert len(rows) == sum(map(len, parts))
    assert all(len(block) == block_rows for block in [*rows][:-1])
    assert [len(each) for each in keep_each(None, [[each] for each in tables], SCHEMA)] == [len(part) for part in parts]


@given(st.lists(keys, max_size=4), st.integers(1, 4))
def test_tables_are_read_in_step(contents: list[list[str]], block_rows: int) -> None:
    """Every row comes once, in order, and no later step has a key of an earlier one, in whichever table."""
    tables = [keep(None, [table(of)], SCHEMA, block_rows=block_rows) for of in contents]
    steps = [[step["key"].to_pylist() for step in each] for each in in_step(*tables)]
    for number, of in enumerate(contents):
        assert [key for step in steps for key in step[number]] == of
    ranges = [sorted(key.encode() for each in step for key in each) for step in steps]
    assert all(ranges)
    assert all(before[-1] < after[0] for before, after in pairwise(ranges))
    assert all(len(each) <= block_rows for step in steps[:-1] for each in step)


@given(st.lists(st.tuples(st.text("abcé", max_size=3), st.integers(0, 9)), unique_by=lambda row: row[0]))
def test_tables_in_any_order_become_one(found: list[tuple[str, int]]) -> None:
    """Whatever came when, and however the ranges of keys overlap, all rows are there by key."""
    sorter = Sorter(None, SCHEMA)
    for number in range(10):
        if of := [key for key, at in found if at == number]:
            sorter.add(table(of, number))
    rows = whole(sorter.rows()).to_pylist()
    assert rows == [{"key": key, "number": number} for key, number in sorted(found)]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """The file has no name from the beginning, and its number is free when nobody uses the table any more."""
    rows = keep(tmp_path / "cache", [table(["a"])], SCHEMA)
    assert list((tmp_path / "cache").iterdir()) == []
    closed = weakref.ref(rows.file)
    number = rows.file.number
    assert os.fstat(number).st_size > 0
    del rows
    assert closed() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Then the system's own folder for temporary files serves."""
    (tmp_path / "file").write_bytes(b"")
    assert whole(keep(tmp_path / "file", [table(["a"])], SCHEMA)).equals(table(["a"]))


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """A disk without room is an error of one sentence."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InvalidInput, match="cannot hold a dataset's index"):
            keep(tmp_path, [table([f"{number:05d}" for number in range(1000)])], SCHEMA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
