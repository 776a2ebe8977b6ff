"""Tables that memory shall not hold: their rows, in the order of keys, in local files without a name.

- A table is written once and read a block at a time, as often as needed: what is in memory does not grow with it.
  Several tables are read **in step**, a range of keys after the other, so that whatever follows from the rows of a key
  is found by looking at a few thousand rows of each.
- A block is an Arrow record batch, written and read with plain calls: pages of a mapped file would count as this
  process's memory, and a full disk would be answered with a signal.
- A file has no name, so that it is gone with the process, however that ends, and it is closed when nobody uses a table
  in it any more.
"""

import operator
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc
from numpy.typing import NDArray

from pipeline.errors import InvalidInput

pc: Any = pyarrow.compute

BLOCK_ROWS = 4_096


class _File:
    """A file without a name in ``folder``, or in the system's own for temporary files where that cannot be written."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.size = 0
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self.number = _opened(folder)
        except OSError:
            # A cache that cannot be written is no obstacle.
            self.number = _opened(None)
        weakref.finalize(self, os.close, self.number)

    def append(self, data: Any) -> int:
        """Write ``data`` behind the rest; where that is."""
        start = self.size
        try:
            while len(data):
                written = os.pwrite(self.number, data, self.size)
                self.size += written
                data = data[written:]
        except OSError as error:
            where = self.folder or tempfile.gettempdir()
            raise InvalidInput(f"{where} cannot hold a dataset's index ({error.strerror}): free some space.") from error
        return start

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self.number, size, start)


@dataclass(frozen=True, slots=True)
class _Block:
    """Where a record batch lies."""

    start: int
    size: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A table on disk; iterating gives its rows in order, a block at a time."""

    schema: pa.Schema
    file: _File
    blocks: tuple[_Block, ...]

    def __len__(self) -> int:
        return sum(block.rows for block in self.blocks)

    def __iter__(self) -> Iterator[pa.Table]:
        return map(self.read, self.blocks)

    @property
    def folder(self) -> Path | None:
        """Where tables that are made of this one should lie."""
        return self.file.folder

    def slice(self, start: int, end: int) -> pa.Table:
        """The rows from position ``start`` to ``end``, in memory."""
        found, first = [self.schema.empty_table()], 0
        for block in self.blocks:
            low, high = max(start - first, 0), min(end - first, block.rows)
            if low < high:
                found.append(self.read(block).slice(low, high - low))
            first += block.rows
        return pa.concat_tables(found)

    def take(self, positions: NDArray[np.int64]) -> Iterator[pa.Table]:
        """The rows at these positions, which ascend, a block at a time."""
        first = 0
        for block in self.blocks:
            low, high = np.searchsorted(positions, (first, first + block.rows))
            if low < high:
                yield self.read(block).take((positions[low:high] - first).astype(np.int64))
            first += block.rows

    def read(self, block: _Block) -> pa.Table:
        """The rows of one block."""
        data = pa.py_buffer(self.file.read(block.start, block.size))
        return pa.Table.from_batches([pa.ipc.read_record_batch(data, self.schema)])


def keep(folder: Path | None, tables: Iterable[pa.Table], schema: pa.Schema, *, block_rows: int = BLOCK_ROWS) -> Rows:
    """The rows of some tables, one after the other, as one table on disk.

    Raises:
        InvalidInput: there is no room for them.
    """
    return keep_each(folder, [tables], schema, block_rows=block_rows)[0]


def keep_each(
    folder: Path | None, groups: Iterable[Iterable[pa.Table]], schema: pa.Schema, *, block_rows: int = BLOCK_ROWS
) -> list[Rows]:
    """As ``keep``, a table for each group, all in one file."""
    file = _File(folder)
    return [
        Rows(schema, file, tuple(_written(file, table) for table in _in_blocks(tables, block_rows)))
        for tables in groups
    ]


@dataclass(frozen=True, slots=True)
class _Sorted:
    """A block whose rows are in order, and its first and last key."""

    first: str
    last: str
    block: _Block


class Sorter:
    """Tables in any order become one, by key.

    Where they hardly overlap, as pages of a listing do, only a few blocks are in memory at once.
    """

    def __init__(self, folder: Path | None, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = _File(folder)
        self._blocks: list[_Sorted] = []

    def add(self, table: pa.Table) -> None:
        """Take some rows, a few thousand."""
        for rows in _in_blocks([table.sort_by("key")], BLOCK_ROWS):
            self._blocks.append(_Sorted(rows["key"][0].as_py(), rows["key"][-1].as_py(), _written(self._file, rows)))

    def rows(self) -> Rows:
        """All of them."""
        runs: list[list[_Sorted]] = []
        for each in sorted(self._blocks, key=operator.attrgetter("first")):
            run = next((run for run in runs if run[-1].last < each.first), None)
            if run is None:
                runs.append([each])
            else:
                run.append(each)
        tables = [Rows(self._schema, self._file, tuple(each.block for each in run)) for run in runs]
        if len(tables) == 1:
            return tables[0]
        merged = (pa.concat_tables(step).sort_by("key") for step in in_step(*tables))
        return keep(self._file.folder, merged, self._schema)


def in_step(*tables: Rows) -> Iterator[tuple[pa.Table, ...]]:
    """One range of keys after the other: the rows that each table has there.

    Args:
        tables: with a column ``key``; in each one no key is lower than the one before it.
    """
    waiting = [list(reversed(table.blocks)) for table in tables]
    held = [table.schema.empty_table() for table in tables]
    while True:
        for number, table in enumerate(tables):
            if waiting[number] and not len(held[number]):
                held[number] = table.read(waiting[number].pop())
        if not any(len(rows) for rows in held):
            return
        # Beyond the last key of what was read of a table it may have more.
        ends = [rows["key"][-1].as_py() for rows, more in zip(held, waiting, strict=True) if more]
        counts = [_up_to(rows, min(ends)) if ends else len(rows) for rows in held]
        yield tuple(rows.slice(0, count) for rows, count in zip(held, counts, strict=True))
        held = [rows.slice(count) for rows, count in zip(held, counts, strict=True)]


def _up_to(rows: pa.Table, key: str) -> int:
    """How many rows have no key beyond ``key``."""
    count: int = pc.sum(pc.less_equal(rows["key"], key)).as_py() or 0
    return count


def _in_blocks(tables: Iterable[pa.Table], block_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``block_rows``, the last one apart."""
    held: Sequence[pa.Table] = []
    count = 0
    for table in tables:
        held = [*held, table]
        count += len(table)
        if count >= block_rows:
            whole = pa.concat_tables(held)
            full = count - count % block_rows
            yield from (whole.slice(start, block_rows) for start in range(0, full, block_rows))
            held, count = [whole.slice(full)], count - full
    if count:
        yield pa.concat_tables(held)


def _written(file: _File, table: pa.Table) -> _Block:
    (batch,) = table.combine_chunks().to_batches()
    data = batch.serialize()
    return _Block(file.append(memoryview(data)), data.size, len(table))


def _opened(folder: Path | None) -> int:
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return os.dup(file.fileno())
