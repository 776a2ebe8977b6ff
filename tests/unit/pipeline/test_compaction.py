"""Which shards are rewritten, and what becomes of their rows."""

import hashlib

import numpy as np
import pyarrow as pa
import synthetic

from pipeline import compaction
from pipeline.artifacts import PixelSpec
from pipeline.compaction import shards_to_rewrite
from pipeline.dataset_index import SCHEMA, Index
from pipeline.large_index import on_disk
from pipeline.shards import Shard, ShardWriter, read_shard

GREY = PixelSpec(height=28, width=28, channels=1)


def name(number: int) -> bytes:
    """A shard's name."""
    return bytes([number]) * 32


def test_a_shard_with_many_dead_rows_is_rewritten() -> None:
    """Over a fifth of dead rows is too many; a fifth is not."""
    shards = {name(1): Shard(1000, 1), name(2): Shard(1000, 1)}
    assert shards_to_rewrite(GREY, shards, {name(1): 800, name(2): 799}) == [name(2)]


def test_small_shards_are_merged_within_the_budget() -> None:
    """Tiny shards beside a large one are merged per kind; shards that are not tiny in comparison stay."""
    shards = {name(0): Shard(40_000, 1)} | {name(number): Shard(2, 1 + 2 * (number % 2)) for number in range(1, 11)}
    live = {key: shard.rows for key, shard in shards.items()}
    chosen = shards_to_rewrite(GREY, shards, live)
    assert sorted(chosen) == [name(number) for number in range(1, 11)]
    few = {key: shard for key, shard in shards.items() if key != name(0)}
    assert shards_to_rewrite(GREY, few, {key: live[key] for key in few}) == []


def test_twenty_additions_of_one_percent_merge_nothing_costly() -> None:
    """However shards of 1 % each pile up, what is copied at once is below a fifth of a percent."""
    shards = {name(0): Shard(10_000, 1)}
    for number in range(1, 200):
        shards[name(number)] = Shard(sum(shard.rows for shard in shards.values()) // 100, 1)
        chosen = shards_to_rewrite(GREY, shards, {key: shard.rows for key, shard in shards.items()})
        copied = sum(shards[each].rows for each in chosen)
        assert copied <= 0.002 * sum(shard.rows for shard in shards.values())


def test_rows_are_copied_and_found() -> None:
    """After compaction every image that a key holds is where its row says; images that are gone are not copied."""
    datasets = synthetic.memory_zones().datasets
    writer = ShardWriter(datasets, "cats")
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(20)]
    for number, digest in enumerate(digests):
        writer.add(digest, np.full((28, 28, 1 + 2 * (number % 2)), number, np.uint8))
    writer.finish()
    nothing = dict.fromkeys(SCHEMA.names)
    rows = [
        nothing | {"key": f"{number}{copy}", "etag": b"e", "digest": digest, "shard": place.shard, "row": place.row}
        for number, digest in enumerate(digests)
        if number >= 10
        for copy in ("a", "b")
        for place in [writer.locations[digest]]
    ]
    index = on_disk(Index(pa.Table.from_pylist(rows, schema=SCHEMA), writer.shards))
    live = compaction.live_rows(index)
    assert {name: rows.tolist() for name, rows in live.items()} == {name: [*range(5, 10)] for name in writer.shards}

    compacted = compaction.compact(datasets, "cats", GREY, index)
    after = pa.concat_tables(compacted.rows).to_pylist()
    assert [row["digest"] for row in after] == [row["digest"] for row in rows]
    assert {row["shard"] for row in after}.isdisjoint(writer.shards)
    for row in after:
        pixels, stored = read_shard(datasets, "cats", row["shard"])
        assert compacted.shards[row["shard"]] == Shard(5, pixels.shape[3])
        assert stored[row["row"]].tobytes() == row["digest"]
        assert (pixels[row["row"]] == digests.index(row["digest"])).all()
    assert compaction.compact(datasets, "cats", GREY, compacted) is compacted
