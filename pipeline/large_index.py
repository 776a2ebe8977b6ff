"""An index that memory shall not hold: rows on disk, by key, and what ``dataset_index`` makes of a few at a time.

Nearly everything that follows for a key follows from the rows of that key. What does not, because equal bytes may lie
under any two keys, is found by 8 bytes of each digest: they are in memory all at once, and tell which rows may matter.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import dataset_index
from pipeline.dataset_index import NOTHING, SCHEMA, Index, digests_of, pc, values
from pipeline.rows_on_disk import BLOCK_ROWS, Rows, in_step, keep, keep_each
from pipeline.shards import Shard

FEWEST_ROWS = 256
"""In a block."""
Part: TypeAlias = tuple[Iterable[pa.Table], Mapping[bytes, Shard]]
"""Rows by key, in several tables, and the shards that they point into."""


@dataclass(frozen=True, slots=True)
class LargeIndex:
    """Rows on disk (of ``SCHEMA``, one for each key) and, by name, the shards that they point into."""

    rows: Rows
    shards: Mapping[bytes, Shard]

    def changed(
        self, change: Callable[[pa.Table], pa.Table], shards: Mapping[bytes, Shard] | None = None
    ) -> "LargeIndex":
        """What ``change`` makes of its rows; it may change and leave out rows, but no key."""
        rows = keep(self.rows.folder, map(change, self.rows), SCHEMA)
        return LargeIndex(rows, self.shards if shards is None else shards)


def on_disk(index: Index, folder: Path | None = None) -> LargeIndex:
    """An index that is in memory, on disk."""
    return LargeIndex(keep(folder, [index.rows.sort_by("key")], SCHEMA), index.shards)


def all_on_disk(folder: Path | None, parts: Iterable[Part], count: int) -> list[LargeIndex]:
    """About ``count`` indexes, on disk in one file, in blocks that may be in memory at once."""
    shards: list[Mapping[bytes, Shard]] = []

    def rows() -> Iterator[Iterable[pa.Table]]:
        for tables, named in parts:
            shards.append(named)
            yield tables

    kept = keep_each(folder, rows(), SCHEMA, block_rows=max(FEWEST_ROWS, BLOCK_ROWS // max(1, count)))
    return [LargeIndex(*each) for each in zip(kept, shards, strict=True)]


def resolve(parts: Sequence[LargeIndex], *, keep_gone: bool = False) -> LargeIndex:
    """As ``dataset_index.resolve``, of one part at least."""
    steps = in_step(*(part.rows for part in parts))
    resolved = (dataset_index.resolve(step, keep_gone=keep_gone) for step in steps)
    shards = {name: shard for part in parts for name, shard in part.shards.items()}
    return LargeIndex(keep(parts[0].rows.folder, resolved, SCHEMA), shards)


def unchanged(index: LargeIndex, listing: Rows) -> LargeIndex:
    """As ``dataset_index.unchanged``."""
    same = starmap(dataset_index.unchanged, in_step(index.rows, listing))
    return LargeIndex(keep(listing.folder, same, SCHEMA), index.shards)


def difference(before: LargeIndex | None, after: LargeIndex) -> LargeIndex:
    """As ``dataset_index.difference``."""
    if before is None:
        return after
    changes = starmap(dataset_index.difference, in_step(before.rows, after.rows))
    return LargeIndex(keep(after.rows.folder, changes, SCHEMA), after.shards)


def share_locations(index: LargeIndex, others: LargeIndex) -> LargeIndex:
    """As ``dataset_index.share_locations``."""
    shards = {**others.shards, **index.shards}
    wanted = _may_share(index, others)
    if not len(wanted):
        return LargeIndex(index.rows, shards)
    found = [_of_images(dataset_index.located(rows), wanted) for rows in (*index.rows, *others.rows)]
    places = pa.concat_tables([dataset_index.located(NOTHING), *found])
    return index.changed(partial(dataset_index.share_locations, others=places), shards)


def as_needed(index: LargeIndex, *, grey: bool) -> LargeIndex:
    """As ``dataset_index.as_needed``."""
    return index.changed(partial(dataset_index.as_needed, shards=index.shards, grey=grey))


def shards_named(index: LargeIndex) -> set[bytes]:
    """Names of the shards that some row points into."""
    return {name for rows in index.rows for name in values(rows["shard"].unique().drop_null())}


def prefixes(rows: pa.Table) -> NDArray[np.uint64]:
    """The first 8 bytes of each digest."""
    digests = digests_of(rows["digest"].drop_null())
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()


def _may_share(index: LargeIndex, others: LargeIndex) -> NDArray[np.uint64]:
    """Prefixes of digests that several rows have, sorted; a row of ``others`` that says what ``index`` says is none."""
    found = [np.empty(0, np.uint64)]
    for own, other in in_step(index.rows, others.rows):
        same = dataset_index.aligned(own, other["key"])
        repeats = [pc.fill_null(pc.equal(same[name], other[name]), False) for name in ("digest", "shard", "row")]
        more = other.filter(pc.invert(pc.and_(pc.and_(*repeats[:2]), repeats[2])))
        found += [prefixes(own), prefixes(more.filter(pc.is_valid(more["shard"])))]
    unique, counts = np.unique(np.concatenate(found), return_counts=True)
    return unique[counts > 1]


def _of_images(rows: pa.Table, wanted: NDArray[np.uint64]) -> pa.Table:
    """The rows, none without a digest, whose digest has one of these prefixes."""
    return rows.filter(pa.array(np.isin(prefixes(rows), wanted)))
