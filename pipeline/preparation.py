"""What a preparation knows of the raw images at each moment, and what follows from it.

Two tables meet here by key, both on disk: what is listed now, and what is known of it. Only what the rules decide by is
in memory for all images at once (``Candidates`` and ``Selection``, some 60 bytes for each).
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import dataset_index, freed_memory, quarantine
from pipeline.artifacts import PixelSpec, PrepareConfig
from pipeline.dataset_index import SCHEMA, Column, digests_of, pc, values
from pipeline.large_index import LargeIndex, prefixes
from pipeline.raw import RawImage
from pipeline.rows_on_disk import Rows, Sorter, in_step, keep
from pipeline.selection import FREE, LEFT_OUT, SPLITS, TRAIN, Candidates, Selection, distinct
from pipeline.shards import DIGEST_BYTES

VANISHED = "deleted while the dataset was prepared"
NAMED_IN_VAIN = "named in keep, but no such image is stored"

LISTED: dict[str, Any] = {
    "key": pa.string(),
    "etag": pa.binary(),
    "etag_text": pa.string(),
    "size": pa.int64(),
    "label": pa.string(),
    "given": pa.string(),
}
LISTING = pa.schema(LISTED)
LISTED_AT_ONCE = 4096


class Listing:
    """A table of ``LISTING`` that grows by candidates, in whatever order, and ends up on disk, by key."""

    def __init__(self, folder: Path | None) -> None:
        self._sorter = Sorter(folder, LISTING)
        self._rows: list[tuple[object, ...]] = []

    def add(self, image: RawImage) -> None:
        """One more row."""
        short = dataset_index.short_etag(image.etag)
        self._rows.append((image.key, short, image.etag, image.size, image.label, image.split))
        if len(self._rows) == LISTED_AT_ONCE:
            self._close()

    def rows(self) -> Rows:
        """All rows so far."""
        self._close()
        return self._sorter.rows()

    def _close(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(LISTED)
        self._sorter.add(pa.table(dict(zip(LISTED, columns, strict=True)), schema=LISTING))
        self._rows.clear()


@dataclass(frozen=True, slots=True)
class Work:
    """Where a preparation stands.

    Attributes:
        listing: candidates (``LISTING``) that are still stored.
        facts: index rows of those that were read; their shards hold ``target``.
        before: what the last preparation knew, with keys that are gone or hold other bytes now.
        target: what images become; 1 channel where all are packed in grey, else 3.
        vanished: keys that were listed and are gone.
        read: objects whose bytes were fetched.
        decoded: images that were decoded.
    """

    dataset: str
    listing: Rows
    facts: LargeIndex
    before: LargeIndex
    target: PixelSpec
    vanished: tuple[str, ...] = ()
    read: int = 0
    decoded: int = 0

    def pages(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Listed objects, and for each of them its facts, nulls where there are none; a few thousand at a time."""
        for listed, facts in in_step(self.listing, self.facts.rows):
            yield listed, dataset_index.aligned(facts, listed["key"])


def unknown(listing: Rows, facts: LargeIndex) -> Rows:
    """The listed objects of which nothing is known."""
    pages = in_step(listing, facts.rows)
    found = (listed.filter(pc.invert(_is_in(listed["key"], known["key"]))) for listed, known in pages)
    return keep(listing.folder, found, LISTING)


def lacking(work: Work, chosen: Selection) -> Rows:
    """One listed object for each image that is used and has no pixels yet."""
    used = chosen.label != LEFT_OUT
    digests = [np.empty((0, DIGEST_BYTES), np.uint8)]
    positions = [np.empty(0, np.int64)]
    for start, _, facts in _numbered(work):
        without_pixels = pc.is_null(facts["shard"]).to_numpy() & used[start : start + len(facts)]
        digests.append(digests_of(facts["digest"])[without_pixels])
        positions.append(start + np.flatnonzero(without_pixels))
    _, first = np.unique(np.concatenate(digests), axis=0, return_index=True)
    wanted = np.sort(np.concatenate(positions)[first])
    return keep(work.listing.folder, work.listing.take(wanted), LISTING)


def without(listing: Rows, keys: Collection[str]) -> Rows:
    """The listed objects, those with these keys apart."""
    if not keys:
        return listing
    gone = pa.array(keys, pa.string())
    return keep(listing.folder, (rows.filter(pc.invert(_is_in(rows["key"], gone))) for rows in listing), LISTING)


def longest_sides(index: LargeIndex) -> Iterator[int]:
    """The longest side of some images at a time, in pixels, as they are stored."""
    for rows in index.rows:
        longest = pc.max(pc.max_element_wise(rows["width"], rows["height"])).as_py()
        if longest is not None:
            yield longest


def candidates(work: Work, config: PrepareConfig) -> Candidates:
    """What the rules decide by: a row per listed object, all of which were read."""
    classes = sorted({label for listed in work.listing for label in values(listed["label"].unique())})
    count = len(work.listing)
    digests, image = distinct(_digests(work))
    found = Candidates(
        classes=tuple(classes),
        label=np.empty(count, np.int32),
        given=np.empty(count, np.int8),
        named=np.empty(count, np.bool_),
        readable=np.empty(count, np.bool_),
        images=digests,
        image=image,
        side=np.empty(count, np.int32),
        channels=np.empty(count, np.int8),
    )
    labels, splits = pa.array(classes, pa.string()), pa.array(SPLITS, pa.string())
    for start, listed, facts in _numbered(work):
        own = slice(start, start + len(listed))
        found.label[own] = pc.index_in(listed["label"], value_set=labels)
        found.given[own] = pc.fill_null(pc.index_in(listed["given"], value_set=splits), FREE - TRAIN)
        found.given[own] += TRAIN
        found.named[own] = _named(work, listed, config)
        found.readable[own] = pc.is_null(facts["reason"])
        found.side[own] = pc.fill_null(pc.max_element_wise(facts["width"], facts["height"]), 0)
        found.channels[own] = pc.fill_null(facts["channels"], 0)
    freed_memory.give_back()
    return found


def index_of(work: Work, chosen: Selection) -> LargeIndex:
    """What is known of each listed object, and what the version makes of it."""
    rows = (_decided(facts, start, chosen) for start, _, facts in _numbered(work))
    return LargeIndex(keep(work.listing.folder, rows, SCHEMA), work.facts.shards)


def reused(index: LargeIndex, before: LargeIndex) -> int:
    """How many images that a version uses were packed before it."""
    return len(np.intersect1d(_prefixes_where(index, "split"), _prefixes_where(before, "shard")))


def left_out(
    work: Work, chosen: Selection, problems: Iterable[tuple[str, str]], config: PrepareConfig
) -> list[dict[str, Any]]:
    """A line for each key that claims to be an image and is not used, or that a person named in vain."""
    lines = [quarantine.line(key, reason) for key, reason in problems]
    lines += [quarantine.line(key, VANISHED) for key in work.vanished]
    stored: set[str] = set()
    for start, listed, facts in _numbered(work):
        lines += _left_out(listed, facts["reason"], start, chosen)
        stored |= set(values(listed["key"].filter(_named(work, listed, config))))
    lines += [quarantine.line(key, NAMED_IN_VAIN) for key in config.keep if not stored & {key, f"{work.dataset}/{key}"}]
    return sorted(lines, key=lambda line: (line["key"], line["reason"]))


def as_packed(pixels: PixelSpec) -> PixelSpec:
    """What shards must have in common to be of one version: all but the channels, because grey is packed as grey."""
    return pixels.model_copy(update={"channels": 3})


def _numbered(work: Work) -> Iterator[tuple[int, pa.Table, pa.Table]]:
    """Pages, each with the position of its first row among all."""
    start = 0
    for listed, facts in work.pages():
        yield start, listed, facts
        start += len(listed)


def _digests(work: Work) -> NDArray[np.uint8]:
    """The digest of each listed object, zeros where it could not be read."""
    digests = np.empty((len(work.listing), DIGEST_BYTES), np.uint8)
    for start, listed, facts in _numbered(work):
        digests[start : start + len(listed)] = digests_of(facts["digest"])
    freed_memory.give_back()
    return digests


def _decided(rows: pa.Table, start: int, chosen: Selection) -> pa.Table:
    """Index rows, which begin at position ``start``, with label and split."""
    own = slice(start, start + len(rows))
    unused = chosen.label[own] == LEFT_OUT
    for name, names, codes in (
        ("label", chosen.classes, chosen.label[own]),
        ("split", SPLITS, chosen.split[own] - TRAIN),
    ):
        column = pa.array(names, pa.string()).take(pa.array(codes, pa.int32(), mask=unused))
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return rows


def _left_out(listed: pa.Table, reasons: Column, start: int, chosen: Selection) -> list[dict[str, Any]]:
    """The lines of one page, which begins at position ``start``."""
    told = {at: reason for at, reason in enumerate(values(reasons)) if reason is not None}
    told |= {at: chosen.reasons[start + at] for at in range(len(listed)) if start + at in chosen.reasons}
    rows = listed.take(pa.array(list(told), pa.int64()))
    columns = [values(rows[name]) for name in ("key", "etag_text", "size")]
    return [quarantine.line(key, told[at], etag, size) for at, key, etag, size in zip(told, *columns, strict=True)]


def _prefixes_where(index: LargeIndex, column: str) -> NDArray[np.uint64]:
    """8 bytes of each digest, enough to count them, of rows in which ``column`` is not null."""
    parts = (prefixes(rows.filter(pc.is_valid(rows[column]))) for rows in index.rows)
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _named(work: Work, listed: pa.Table, config: PrepareConfig) -> Column:
    """Which listed keys ``keep`` names, in full or relative to the dataset, as labels.csv does."""
    named = [*config.keep, *(f"{work.dataset}/{key}" for key in config.keep)]
    return _is_in(listed["key"], pa.array(named, pa.string()))


def _is_in(column: Column, found: Column) -> Column:
    return pc.is_in(column, value_set=found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found)
