"""What a preparation knows of the raw images at each moment, and what follows from it: tables in, tables out, no I/O.

Three tables meet here by key: what is listed now, what is known of it (an ``Index``), and what the rules made of it (a
``Selection``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import dataset_index, quarantine
from pipeline.artifacts import PixelSpec, PrepareConfig
from pipeline.dataset_index import Column, Index, digests_of, pc, values
from pipeline.raw import RawImage
from pipeline.selection import LEFT_OUT, SPLITS, TRAIN, Candidates, Selection

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
    """A table of ``LISTING`` that grows by candidates: a row takes half of what the record takes."""

    def __init__(self) -> None:
        self._tables = [LISTING.empty_table()]
        self._rows: list[tuple[object, ...]] = []

    def add(self, image: RawImage) -> None:
        """One more row."""
        short = dataset_index.short_etag(image.etag)
        self._rows.append((image.key, short, image.etag, image.size, image.label, image.split))
        if len(self._rows) == LISTED_AT_ONCE:
            self._close()

    def table(self) -> pa.Table:
        """All rows so far."""
        self._close()
        return pa.concat_tables(self._tables)

    def _close(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(LISTED)
        self._tables.append(pa.table(dict(zip(LISTED, columns, strict=True)), schema=LISTING))
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
    listing: pa.Table
    facts: Index
    before: Index
    target: PixelSpec
    vanished: tuple[str, ...] = ()
    read: int = 0
    decoded: int = 0


def unknown(listing: pa.Table, facts: Index) -> pa.Table:
    """The listed objects of which nothing is known."""
    known = pc.is_in(listing["key"], value_set=facts.rows["key"].combine_chunks())
    return listing.filter(pc.invert(known))


def lacking(work: Work, chosen: Selection) -> pa.Table:
    """One listed object for each image that is used and has no pixels yet."""
    facts = dataset_index.aligned(work.facts.rows, work.listing["key"])
    without_pixels = pc.and_(pc.is_null(facts["shard"]), pa.array(chosen.label != LEFT_OUT))
    positions = np.flatnonzero(without_pixels.to_numpy())
    _, first = np.unique(digests_of(facts["digest"])[positions], axis=0, return_index=True)
    return work.listing.take(np.sort(positions[first]))


def candidates(work: Work, config: PrepareConfig) -> Candidates:
    """What the rules decide by: a row per listed object, all of which were read."""
    listing = work.listing
    facts = dataset_index.aligned(work.facts.rows, listing["key"])
    classes = sorted(values(listing["label"].unique()))
    sides = pc.max_element_wise(facts["width"], facts["height"])
    return Candidates(
        classes=tuple(classes),
        label=_numbers(pc.index_in(listing["label"], value_set=pa.array(classes, pa.string()))),
        given=_numbers(pc.index_in(listing["given"], value_set=pa.array(SPLITS, pa.string())), -1) + TRAIN,
        named=_named(work, config).to_numpy(),
        readable=pc.is_null(facts["reason"]).to_numpy(),
        digest=digests_of(facts["digest"]),
        side=_numbers(sides),
        channels=_numbers(facts["channels"]),
    )


def index_of(work: Work, chosen: Selection) -> Index:
    """What is known of each listed object, and what the version makes of it."""
    rows = dataset_index.aligned(work.facts.rows, work.listing["key"])
    unused = chosen.label == LEFT_OUT
    for name, names, codes in (
        ("label", chosen.classes, chosen.label),
        ("split", SPLITS, chosen.split - TRAIN),
    ):
        column = pa.array(names, pa.string()).take(pa.array(codes, pa.int64(), mask=unused))
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return Index(rows, work.facts.shards)


def left_out(
    work: Work, chosen: Selection, problems: Iterable[tuple[str, str]], config: PrepareConfig
) -> list[dict[str, Any]]:
    """A line for each key that claims to be an image and is not used, or that a person named in vain."""
    reasons = dataset_index.aligned(work.facts.rows, work.listing["key"])["reason"]
    unreadable = np.flatnonzero(pc.is_valid(reasons).to_numpy())
    why = dict(zip(unreadable.tolist(), values(reasons.take(unreadable)), strict=True)) | chosen.reasons
    rows = work.listing.take(pa.array(list(why), pa.int64()))
    columns = [values(rows[name]) for name in ("key", "etag_text", "size")]
    lines = [quarantine.line(key, why[at], etag, size) for at, key, etag, size in zip(why, *columns, strict=True)]
    lines += [quarantine.line(key, reason) for key, reason in problems]
    lines += [quarantine.line(key, VANISHED) for key in work.vanished]
    stored = set(values(work.listing["key"].filter(_named(work, config))))
    lines += [quarantine.line(key, NAMED_IN_VAIN) for key in config.keep if not stored & {key, f"{work.dataset}/{key}"}]
    return sorted(lines, key=lambda line: (line["key"], line["reason"]))


def as_packed(pixels: PixelSpec) -> PixelSpec:
    """What shards must have in common to be of one version: all but the channels, because grey is packed as grey."""
    return pixels.model_copy(update={"channels": 3})


def _named(work: Work, config: PrepareConfig) -> Column:
    """Which listed keys ``keep`` names, in full or relative to the dataset, as labels.csv does."""
    named = [*config.keep, *(f"{work.dataset}/{key}" for key in config.keep)]
    return pc.is_in(work.listing["key"], value_set=pa.array(named, pa.string()))


def _numbers(column: Any, instead: int = 0) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = pc.fill_null(column, instead).to_numpy().astype(np.int64)
    return numbers
