"""Keeping shards few and full: rows are copied, never decoded, and little of it in any one preparation.

- A shard of which more than a fifth are rows of images that are gone is rewritten without them.
- Small shards are merged as ``dataset_index.merge_window`` says, with a budget in proportion to all that is stored, so
  that an addition writes little more than what it adds. Their number is bounded all the same.
"""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.artifacts import PixelSpec
from pipeline.dataset_index import COLUMNS, SCHEMA, Index, merge_window, pc, values
from pipeline.shards import SHARD_BYTES, Shard, ShardWriter, read_shard, row_bytes
from pipeline.store import Store

DEAD_SHARE = 0.2
COPIED_SHARE = 0.002
"""Pixels copied by merging in one preparation at most, as a share of all pixels."""


def compact(datasets: Store, dataset: str, pixels: PixelSpec, index: Index) -> Index:
    """``index`` after shards were rewritten where that is due; the shards that it named before stay stored."""
    live = live_rows(index)
    names = shards_to_rewrite(pixels, index.shards, live)
    if not names:
        return index
    writer = ShardWriter(datasets, dataset)
    for name in names:
        rows, digests = read_shard(datasets, dataset, name)
        kept = index.rows.filter(pc.equal(index.rows["shard"], pa.scalar(name, pa.binary(32))))
        for row in sorted(values(kept["row"].unique())):
            writer.add(digests[row].tobytes(), rows[row])
    writer.finish()
    return _relocated(index, writer)


def live_rows(index: Index) -> dict[bytes, int]:
    """How many rows of each shard belong to an image that some key still holds."""
    located = index.rows.filter(pc.is_valid(index.rows["shard"]))
    counts = located.group_by("shard").aggregate([("row", "count_distinct")])
    return dict(zip(values(counts["shard"]), values(counts["row_count_distinct"]), strict=True))


def shards_to_rewrite(pixels: PixelSpec, shards: Mapping[bytes, Shard], live: Mapping[bytes, int]) -> list[bytes]:
    """Names of shards whose live rows should be copied into new ones, in the order in which to copy them."""
    dead = sorted(name for name, rows in live.items() if rows < (1 - DEAD_SHARE) * shards[name].rows)
    sizes = {name: rows * row_bytes(pixels.height, pixels.width, shards[name].channels) for name, rows in live.items()}
    budget = min(COPIED_SHARE * sum(sizes.values()), SHARD_BYTES)
    chosen = dead
    for channels in (1, 3):
        small = [name for name in live if shards[name].channels == channels and 2 * sizes[name] < SHARD_BYTES]
        small = sorted(set(small) - set(dead), key=lambda name: (sizes[name], name))
        window = merge_window([sizes[name] for name in small], budget)
        chosen = chosen + [small[number] for number in window]
    return chosen


def _relocated(index: Index, writer: ShardWriter) -> Index:
    """``index`` with the places that the writer gave to the images that it copied."""
    digests = pa.array(list(writer.locations), pa.binary(32))
    places = writer.locations.values()
    moved = pc.index_in(index.rows["digest"], value_set=digests, skip_nulls=True)
    rows = index.rows
    for name in ("shard", "row"):
        new = pa.array([getattr(place, name) for place in places], COLUMNS[name])
        column = pc.if_else(pc.is_valid(moved), new.take(moved), rows[name])
        rows = rows.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return Index(rows, {**index.shards, **writer.shards})
