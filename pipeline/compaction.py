"""Keeping shards few and full: rows are copied, never decoded, and little of it in any one preparation.

- A shard of which more than a fifth are rows of images that are gone is rewritten without them.
- Small shards are merged as ``dataset_index.merge_window`` says, with a budget in proportion to all that is stored, so
  that an addition writes little more than what it adds. Their number is bounded all the same.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts import PixelSpec
from pipeline.dataset_index import SCHEMA, merge_window, pc, values
from pipeline.large_index import LargeIndex
from pipeline.shards import SHARD_BYTES, Shard, ShardWriter, read_shard, row_bytes
from pipeline.store import Store

DEAD_SHARE = 0.2
COPIED_SHARE = 0.002
"""Pixels copied by merging in one preparation at most, as a share of all pixels."""


def compact(datasets: Store, dataset: str, pixels: PixelSpec, index: LargeIndex) -> LargeIndex:
    """``index`` after shards were rewritten where that is due; the shards that it named before stay stored."""
    live = live_rows(index)
    names = shards_to_rewrite(pixels, index.shards, {name: len(rows) for name, rows in live.items()})
    if not names:
        return index
    writer = ShardWriter(datasets, dataset)
    for name in names:
        rows, digests = read_shard(datasets, dataset, name)
        for row in live[name]:
            writer.add(digests[row].tobytes(), rows[row])
    writer.finish()
    return index.changed(partial(_relocated, moved=_places(writer)), {**index.shards, **writer.shards})


def live_rows(index: LargeIndex) -> dict[bytes, NDArray[np.int32]]:
    """By shard, which of its rows, ascending, hold an image that some key still has."""
    live: dict[bytes, NDArray[np.int32]] = {}
    for part in index.rows:
        located = part.filter(pc.is_valid(part["shard"]))
        row, shard = located["row"].to_numpy(), located["shard"].combine_chunks().dictionary_encode()
        for code, name in enumerate(values(shard.dictionary)):
            live[name] = np.union1d(live.get(name, row[:0]), row[shard.indices.to_numpy() == code])
    return live


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


def _places(writer: ShardWriter) -> pa.Table:
    """Digest, shard and row of the images that a writer copied."""
    places = writer.locations.values()
    columns = {"digest": list(writer.locations)}
    columns |= {name: [getattr(place, name) for place in places] for name in ("shard", "row")}
    return pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in columns]))


def _relocated(rows: pa.Table, moved: pa.Table) -> pa.Table:
    """The rows with the places of the images that were copied."""
    place = pc.index_in(rows["digest"], value_set=moved["digest"].combine_chunks(), skip_nulls=True)
    for name in ("shard", "row"):
        column = pc.if_else(pc.is_valid(place), moved[name].take(place), rows[name])
        rows = rows.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return rows
