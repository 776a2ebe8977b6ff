"""The index of a dataset version: a row for every key that was looked at. Its format, written and read here alone.

- **The index accretes.** Rows live in immutable segments (Parquet, named by the SHA-256 of their bytes), and a manifest
  lists its segments in order: a later row overrides earlier rows of the same key, and a row without an etag says that
  the key is gone. So a new version writes what changed, and what a machine has read once it need not read again.
- A row holds facts about an object (key, etag, size → digest, width, height, channels, shard and row of its pixels, or
  the reason why it cannot be read), which stay true while key, etag and size do, and what one version made of it: label
  and split, both null where the version leaves it out. Unreadable keys have rows too, so that they are not read again.
- What follows from rows is decided here by functions of tables; ``large_index`` calls them with the rows of a range of
  keys at a time.
- A segment carries, in its file metadata, the shards that its rows name, so that any segment can be read by itself.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.shards import DIGEST_BYTES, Shard

pc: Any = pyarrow.compute
Column: TypeAlias = Any
"""A ``pa.ChunkedArray`` or ``pa.Array``: pyarrow's stubs cannot tell what its compute functions make of them."""

COLUMNS: dict[str, Any] = {
    "key": pa.string(),
    "etag": pa.binary(),
    "size": pa.int64(),
    "digest": pa.binary(DIGEST_BYTES),
    "reason": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "channels": pa.int8(),
    "shard": pa.binary(DIGEST_BYTES),
    "row": pa.int32(),
    "label": pa.string(),
    "split": pa.string(),
}
SCHEMA = pa.schema(COLUMNS)
SHARDS = "shards"
MD5_BYTES = 16
ROWS_AT_ONCE = 4_096
"""Read of a segment that is scanned."""
ROWS_TOGETHER = 4_096
"""In a row group of a segment: more would only take more memory while it is written."""
PLACE = ("width", "height", "channels", "shard", "row")
"""What is known of an image, whatever its key."""
DICTIONARIES: Any = ["reason", "width", "height", "channels", "shard", "label", "split"]


@dataclass(frozen=True, slots=True)
class Index:
    """What a segment holds: rows (a table of ``SCHEMA``) and, by name, the shards that they point into."""

    rows: pa.Table
    shards: Mapping[bytes, Shard]


NOTHING = SCHEMA.empty_table()


def values(column: Column) -> list[Any]:
    """A column's values as Python has them."""
    found: list[Any] = column.to_pylist()
    return found


def short_etag(etag: str) -> bytes:
    """An etag as rows hold it: an MD5's 16 bytes, 12 bytes of another etag's SHA-256, nothing where there is none."""
    text = etag.strip('"')
    if len(text) == 2 * MD5_BYTES and all(digit in "0123456789abcdef" for digit in text):
        return bytes.fromhex(text)
    return hashlib.sha256(text.encode()).digest()[:12] if text else b""


def encode(index: Index) -> bytes:
    """A segment: equal bytes for equal rows in equal order."""
    return encode_parts([index.rows], index.shards)


def encode_parts(parts: Iterable[pa.Table], shards: Mapping[bytes, Shard]) -> bytes:
    """As ``encode``, rows in several tables; equal bytes for equal rows in tables of equal lengths."""
    named: set[bytes] = set()
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        SCHEMA,
        compression="zstd",
        compression_level=3,
        # What follows keeps the segment of a small change small: statistics and a second schema help nobody here.
        write_statistics=False,
        store_schema=False,
        use_dictionary=DICTIONARIES,
        column_encoding={"key": "DELTA_BYTE_ARRAY", "row": "DELTA_BINARY_PACKED"},
    ) as writer:
        for rows in parts:
            named |= set(values(rows["shard"].unique().drop_null()))
            writer.write_table(rows, ROWS_TOGETHER)
        if named:
            counts = {name.hex(): (shards[name].rows, shards[name].channels) for name in sorted(named)}
            writer.add_key_value_metadata({SHARDS: json.dumps(counts, separators=(",", ":"))})
    return buffer.getvalue()


def decode(data: bytes) -> Index:
    """The rows and shards of a segment whose bytes were verified."""
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        rows = file.read(use_threads=False).cast(SCHEMA)
        return Index(rows.replace_schema_metadata(None), _shards_of(file))


def shards_of(data: bytes) -> dict[bytes, Shard]:
    """The shards of a segment whose bytes were verified."""
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return _shards_of(file)


def _shards_of(file: pq.ParquetFile) -> dict[bytes, Shard]:
    shards = json.loads((file.metadata.metadata or {}).get(SHARDS.encode(), b"{}"))
    return {bytes.fromhex(name): Shard(*counts) for name, counts in shards.items()}


def scan(data: bytes, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a segment whose bytes were verified, ``ROWS_AT_ONCE`` rows at a time."""
    schema = pa.schema({name: COLUMNS[name] for name in columns})
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        for rows in file.iter_batches(ROWS_AT_ONCE, columns=list(columns), use_threads=False):
            yield pa.Table.from_batches([rows]).select(list(columns)).cast(schema)


def resolve(segments: Iterable[pa.Table], *, keep_gone: bool = False) -> pa.Table:
    """What rows of segments say together: the last one of each key, by key; of gone keys only with ``keep_gone``."""
    rows = pa.concat_tables([NOTHING, *(part for part in segments if len(part))])
    if not _in_order(rows["key"]):
        numbered = pa.table({"key": rows["key"], "number": np.arange(len(rows))})
        last = numbered.group_by("key").aggregate([("number", "max")]).sort_by("key")
        rows = rows.take(last["number_max"])
    if not keep_gone and rows["etag"].null_count:
        rows = rows.filter(pc.is_valid(rows["etag"]))
    return rows.combine_chunks()


def _in_order(keys: Column) -> bool:
    """Whether each key is greater than the one before it."""
    whole: Column = _array(keys)
    return bool(pc.all(pc.less(whole.slice(0, max(0, len(whole) - 1)), whole.slice(1))).as_py())


def digests_of(column: Column) -> NDArray[np.uint8]:
    """A column of digests as uint8 (N, 32); zeros where it is null."""
    filled = pc.fill_null(column, pa.scalar(bytes(DIGEST_BYTES), pa.binary(DIGEST_BYTES))).combine_chunks()
    whole = np.frombuffer(filled.buffers()[1] or b"", np.uint8).reshape(-1, DIGEST_BYTES)
    return whole[filled.offset : filled.offset + len(filled)]


def aligned(table: pa.Table, keys: Column) -> pa.Table:
    """The row of each of ``keys`` in ``table``, whose keys are unique; nulls where there is none."""
    return table.take(pc.index_in(keys, value_set=table["key"].combine_chunks()))


def difference(before: pa.Table, after: pa.Table) -> pa.Table:
    """The segment that turns ``before`` into ``after``: changed and new rows, and one for each key that is gone."""
    if not len(before):
        return after if _in_order(after["key"]) else after.sort_by("key")
    old = aligned(before, after["key"])
    same: Column = pa.array([True] * len(after), pa.bool_())
    for column in SCHEMA.names:
        same = pc.and_(same, _equal(old[column], after[column]))
    gone = before["key"].filter(pc.invert(pc.is_in(before["key"], value_set=_array(after["key"]))))
    nothing = {field.name: pa.nulls(len(gone), field.type) for field in SCHEMA}
    removed = pa.table({**nothing, "key": gone}, schema=SCHEMA)
    return pa.concat_tables([after.filter(pc.invert(same)), removed]).sort_by("key").combine_chunks()


def unchanged(rows: pa.Table, listing: pa.Table) -> pa.Table:
    """The rows whose key, etag and size are those of ``listing`` (columns key, etag, size)."""
    now = aligned(listing, rows["key"])
    same = pc.and_(_equal(now["etag"], rows["etag"]), _equal(now["size"], rows["size"]))
    told: Column = pc.not_equal(rows["etag"], pa.scalar(b"", pa.binary()))
    return rows.filter(pc.and_(same, pc.fill_null(told, False))).combine_chunks()


def located(rows: pa.Table) -> pa.Table:
    """Digest and place (``PLACE``) of all rows that point into a shard."""
    return rows.filter(pc.is_valid(rows["shard"])).select(["digest", *PLACE])


def share_locations(rows: pa.Table, others: pa.Table) -> pa.Table:
    """Every row of an image with the first place that a row of its digest has, here or in ``others``."""
    places = pa.concat_tables([located(rows), located(others)])
    places = places.sort_by([("shard", "ascending"), ("row", "ascending")])
    first = pc.index_in(rows["digest"], value_set=_array(places["digest"]), skip_nulls=True)
    found = pc.is_valid(first)
    for column in PLACE:
        shared = pc.if_else(found, places[column].take(first), rows[column])
        rows = rows.set_column(SCHEMA.get_field_index(column), SCHEMA.field(column), shared)
    return rows


def without_locations(rows: pa.Table, where: Column | None = None) -> pa.Table:
    """Rows that point into no shard, all of them or those in which ``where`` is true."""
    for column in ("shard", "row"):
        field = SCHEMA.field(column)
        nothing = pa.nulls(len(rows), field.type)
        kept = nothing if where is None else pc.if_else(where, nothing, rows[column])
        rows = rows.set_column(SCHEMA.get_field_index(column), field, kept)
    return rows


def as_needed(rows: pa.Table, shards: Mapping[bytes, Shard], *, grey: bool) -> pa.Table:
    """Without places in shards of other channels than needed: 1 for an image stored in grey, or for all; else 3."""
    names = list(shards)
    channels = pa.array([shards[name].channels for name in names], pa.int8())
    packed = channels.take(pc.index_in(rows["shard"], value_set=pa.array(names, pa.binary(DIGEST_BYTES))))
    needed: Column = pa.scalar(1, pa.int8()) if grey else rows["channels"]
    return without_locations(rows, pc.fill_null(pc.not_equal(packed, needed), False))


MERGE_AT_LEAST = 4
MERGE_ANYWAY = 512


def merge_window(sizes: Sequence[int], budget: float) -> range:
    """The most neighbours that are worth merging into one; empty if none are.

    They are ``MERGE_AT_LEAST`` or more, together within ``budget``, and none is larger than all others together: what
    is copied ends up in something twice its size, so that n additions copy each row O(log n) times. More than
    ``MERGE_ANYWAY`` pieces are merged whatever it costs.
    """
    bound = float("inf") if len(sizes) > MERGE_ANYWAY else budget
    best = range(0)
    for start in range(len(sizes)):
        total = largest = 0
        for end in range(start, len(sizes)):
            total += sizes[end]
            largest = max(largest, sizes[end])
            if total > bound:
                break
            count = end + 1 - start
            if count >= max(MERGE_AT_LEAST, len(best) + 1) and 2 * largest <= total:
                best = range(start, end + 1)
    return best


def _equal(left: Column, right: Column) -> Column:
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    return pc.or_(both_null, pc.fill_null(pc.equal(left, right), False))


def _array(column: Column) -> Column:
    return column.combine_chunks()
