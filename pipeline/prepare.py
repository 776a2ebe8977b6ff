"""Preparation: raw images → a checked, split, content-addressed dataset version in packed shards.

Gather (list the raw images, read what the last preparation knew of them), decide purely what must be read, read and
pack it in chunks, decide purely what the dataset is (``selection``), write: shards first, then index and manifest, then
the pointer to the newest version. Killed at any point it leaves a complete version or none, and nothing in the way.

- Only objects whose (key, etag, size) is new are read, and only bytes whose digest is new are decoded.
- Images are packed before it is known what ``auto`` makes of size: a first guess comes from images that are known, or
  from a few headers. Where it turns out wrong all images are packed again, which is rare and costs one more pass.
- What is left out is listed with its reason in ``quarantine/``, also when the run fails. The list is named by its
  content, so that a repeated run finds it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import dataset_index, dataset_versions, images, packing, raw, selection
from pipeline.artifacts import DatasetVersion, PixelSpec, PrepareConfig, Record
from pipeline.dataset_index import NOTHING, Column, Index, digests_of, located_rows, pc, values
from pipeline.dataset_versions import Prepared
from pipeline.errors import DatasetRejected, InvalidImage, NotFound
from pipeline.packing import Chunk, PackedChunk
from pipeline.progress import OnProgress, Progress, silent
from pipeline.raw import RawImage
from pipeline.selection import LEFT_OUT, SPLITS, TRAIN, Candidates, Selection
from pipeline.zones import Zones

PROBES = 32
PROBE_BYTES = 16 << 20
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

Pack: TypeAlias = Callable[[Chunk], PackedChunk]
MapChunks: TypeAlias = Callable[[Pack, Iterable[Chunk]], Iterable[PackedChunk]]


class PrepareResult(Record):
    """What a preparation did.

    Attributes:
        version: complete, whether it was new or not.
        new: False where the store held this content already.
        images: distinct images in the version.
        reused: of these, how many were not decoded now.
        read: objects that were fetched from the images zone, the few apart whose headers were looked at first.
        decoded: images that were decoded.
        duplicates: keys whose bytes another key of their class has too.
        quarantined: keys that were left out; ``reasons`` has their number by reason.
        skipped: files that are no candidates, by reason.
        quarantine: key of the list of what was left out, in the datasets zone; None if nothing was.
    """

    version: DatasetVersion
    new: bool
    images: int
    reused: int
    read: int
    decoded: int
    duplicates: int
    quarantined: int
    reasons: dict[str, int]
    skipped: dict[str, int]
    quarantine: str | None


@dataclass(frozen=True, slots=True)
class _Work:
    """Where a preparation stands.

    Attributes:
        listing: candidates (``LISTING``) that are still stored.
        facts: index rows of those that were read; their shards hold ``target``.
        before: what the last preparation knew, with keys that are gone or hold other bytes now.
        target: what images become; 1 channel where all are packed in grey, else 3.
        vanished: keys that were listed and are gone.
    """

    dataset: str
    listing: pa.Table
    facts: Index
    before: Index
    target: PixelSpec
    vanished: tuple[str, ...] = ()
    read: int = 0
    decoded: int = 0


def one_by_one(pack: Pack, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
    """Pack chunks in this process, one after the other; each one uses all cores already."""
    return map(pack, chunks)


def pack_chunk(zones: Zones, chunk: Chunk, decode_threads: int | None = None) -> PackedChunk:
    """What ``map_chunks`` does to a chunk: for those who map it elsewhere, with zones that were opened there."""
    return packing.pack_chunk(zones.images, zones.datasets, chunk, decode_threads=decode_threads)


def prepare(
    zones: Zones,
    dataset: str,
    config: PrepareConfig,
    *,
    map_chunks: MapChunks = one_by_one,
    decode_threads: int | None = None,
    cache: Path | None = None,
    on_progress: OnProgress = silent,
) -> PrepareResult:
    """Make a dataset version of what is stored for ``dataset``, or find the one that exists.

    Args:
        zones: read: images; written: datasets.
        dataset: its name.
        config: what a person chose.
        map_chunks: how chunks are packed: takes a function and chunks, returns a result per chunk, in any order.
        decode_threads: images decoded at once per chunk; by default one per core.
        cache: a folder of this machine in which the index is kept, so that it need not be read from the store again.
        on_progress: told after the listing and after each chunk.

    Raises:
        NotFound: nothing is stored for the dataset.
        InvalidInput: its name cannot be one, or its labels.csv cannot be read.
        DatasetRejected: no dataset can be made of these images; the message says why, and where the list is.
    """
    raw.check_dataset_name(dataset)
    found = raw.list_raw(zones.images, dataset)
    listing = _table(found.images)
    on_progress(Progress("listing images", len(listing), len(listing)))
    before = dataset_versions.read_prepared(zones.datasets, dataset, cache)
    work = _begin(zones, dataset, config, listing, before)
    read = partial(_read, zones, map_chunks=map_chunks, decode_threads=decode_threads, on_progress=on_progress)
    work, chosen = _settle(work, config, read)

    left_out = _left_out(work, chosen, found.problems, config)
    quarantine = _write_quarantine(zones, dataset, left_out)
    if chosen.problem:
        where = (
            f"; what was left out, and why: safelight quarantine {zones.datasets.url}/{quarantine}"
            if quarantine
            else ""
        )
        raise DatasetRejected(f"Dataset {dataset!r}: {chosen.problem}{where}.")
    version = DatasetVersion(
        dataset=dataset, version=chosen.version, classes=chosen.classes, pixels=chosen.pixels, counts=chosen.counts
    )
    index = _index(work, chosen)
    new = dataset_versions.publish(zones.datasets, version, config, index, before=before, cache=cache)
    zones.datasets.delete([done.key for done in zones.datasets.listing(packing.work_folder(dataset))])
    used = index.rows["digest"].filter(pc.is_valid(index.rows["split"]))
    packed_before = located_rows(work.before)["digest"].combine_chunks()
    return PrepareResult(
        version=version,
        new=new,
        images=sum(version.counts.values()),
        reused=int(np.sum(pc.is_in(used.unique(), value_set=packed_before).to_numpy(zero_copy_only=False))),
        read=work.read,
        decoded=work.decoded,
        duplicates=len(used) - sum(version.counts.values()),
        quarantined=len(left_out),
        reasons=Counter(line["reason"].partition(":")[0] for line in left_out),
        skipped=found.skipped,
        quarantine=quarantine,
    )


def summary(result: PrepareResult) -> list[str]:
    """What a preparation did, in lines for a person."""
    version, spec = result.version, result.version.pixels
    counts = ", ".join(f"{count:,} {split}" for split, count in version.counts.items())
    colour = "grey" if spec.channels == 1 else "RGB"
    lines = [
        f"{version.dataset} {version.version}{'' if result.new else ' (as stored before)'}: {result.images:,} images "
        f"of {spec.width}x{spec.height} {colour} in {len(version.classes):,} classes ({counts})",
        f"{result.read:,} read, {result.decoded:,} decoded, {result.reused:,} as packed before",
    ]
    if result.duplicates:
        lines.append(f"duplicates within a class, counted once: {result.duplicates:,}")
    lines += [f"skipped, {reason}: {count:,}" for reason, count in sorted(result.skipped.items())]
    lines += [f"left out, {reason}: {count:,}" for reason, count in sorted(result.reasons.items())]
    if result.quarantine:
        lines.append(f"what was left out, and why: safelight quarantine {result.quarantine}")
    return lines


def read_quarantine(zones: Zones, address: str) -> list[dict[str, Any]]:
    """A list of what was left out: key, reason, etag and size (bytes) of each image.

    Args:
        zones: read: datasets.
        address: the list's key in the datasets zone, or its URL.

    Raises:
        NotFound: there is no such list.
    """
    # The sentence that names a list ends with a full stop, which is easily copied along.
    key = address.removeprefix(f"{zones.datasets.url}/").removesuffix(".")
    data = zones.datasets.get_if_present(key) if "/quarantine/" in key else None
    if data is None:
        raise NotFound(f"{address} is no list of images left out: give the address that prepare printed.")
    return [json.loads(line) for line in data.splitlines()]


def _begin(zones: Zones, dataset: str, config: PrepareConfig, listing: pa.Table, before: Prepared | None) -> _Work:
    """What is known of the listed objects, from the last preparation and from one that was killed."""
    old = NOTHING if before is None else before.index
    facts = dataset_index.unchanged(old, listing)
    unknown = _unknown(listing, facts)
    size = _first_size(zones, config, facts, unknown)
    target = PixelSpec(height=size, width=size, channels=1 if config.colour == "grey" else 3, fit=config.fit)
    if before and _as_packed(before.manifest.version.pixels) != _as_packed(target):
        old = dataset_index.without_locations(old)
    old = dataset_index.as_needed(old, grey=target.channels == 1)
    facts = dataset_index.unchanged(old, listing)
    if len(unknown):
        left = dataset_index.resolve(packing.left_behind(zones.datasets, dataset, target))
        left = dataset_index.as_needed(dataset_index.unchanged(left, listing), grey=target.channels == 1)
        facts = dataset_index.resolve([facts, left, packing.too_large(unknown)])
    return _Work(dataset, listing, dataset_index.share_locations(facts, old), old, target)


def _settle(work: _Work, config: PrepareConfig, read: Callable[[_Work, pa.Table], _Work]) -> tuple[_Work, Selection]:
    """Read what is not known, then what is not packed as it must be, until nothing is left to read."""
    todo = _unknown(work.listing, work.facts)
    while True:
        work = read(work, todo)
        chosen = selection.select(_candidates(work, config), config)
        if chosen.problem:
            return work, chosen
        if _as_packed(chosen.pixels) != _as_packed(work.target):
            target = chosen.pixels.model_copy(update={"channels": work.target.channels})
            facts, before = (dataset_index.without_locations(index) for index in (work.facts, work.before))
            work = replace(work, target=target, facts=facts, before=before)
        todo = _lacking(work, chosen)
        if not len(todo):
            return work, chosen


def _read(
    zones: Zones,
    work: _Work,
    todo: pa.Table,
    *,
    map_chunks: MapChunks,
    decode_threads: int | None,
    on_progress: OnProgress,
) -> _Work:
    """``work`` after the objects in ``todo`` were read, and packed where their bytes are new."""
    parts, gone, done, decoded = [], [], 0, 0
    chunks = packing.plan(work.dataset, work.target, todo, located_rows(work.before, work.facts))
    for packed in map_chunks(partial(pack_chunk, zones, decode_threads=decode_threads), chunks):
        part = dataset_index.decode(packed.segment)
        parts.append(part)
        gone += values(part.rows["key"].filter(pc.is_null(part.rows["etag"])))
        done += len(part.rows)
        decoded += packed.decoded
        on_progress(Progress("reading images", done, len(todo), note=f"{decoded:,} decoded"))
    return replace(
        work,
        listing=work.listing.filter(pc.invert(pc.is_in(work.listing["key"], value_set=pa.array(gone, pa.string())))),
        facts=dataset_index.share_locations(dataset_index.resolve([work.facts, *parts]), work.before),
        vanished=(*work.vanished, *gone),
        read=work.read + done,
        decoded=work.decoded + decoded,
    )


def _table(candidates: Sequence[RawImage]) -> pa.Table:
    columns = {
        "key": [candidate.key for candidate in candidates],
        "etag": [dataset_index.short_etag(candidate.etag) for candidate in candidates],
        "etag_text": [candidate.etag for candidate in candidates],
        "size": [candidate.size for candidate in candidates],
        "label": [candidate.label for candidate in candidates],
        "given": [candidate.split for candidate in candidates],
    }
    return pa.table(columns, schema=LISTING)


def _unknown(listing: pa.Table, facts: Index) -> pa.Table:
    known = pc.is_in(listing["key"], value_set=facts.rows["key"].combine_chunks())
    return listing.filter(pc.invert(known))


def _lacking(work: _Work, chosen: Selection) -> pa.Table:
    """One listed object for each image that is used and has no pixels yet."""
    facts = dataset_index.aligned(work.facts.rows, work.listing["key"])
    lacking = pc.and_(pc.is_null(facts["shard"]), pa.array(chosen.label != LEFT_OUT))
    positions = np.flatnonzero(lacking.to_numpy())
    _, first = np.unique(digests_of(facts["digest"])[positions], axis=0, return_index=True)
    return work.listing.take(np.sort(positions[first]))


def _first_size(zones: Zones, config: PrepareConfig, known: Index, unknown: pa.Table) -> int:
    """What ``auto`` makes of the images that are known, or of the headers of a few that are not."""
    readable = known.rows.filter(pc.is_valid(known.rows["width"]))
    sides = pc.max_element_wise(readable["width"], readable["height"]).to_numpy()
    if config.size == "auto" and not len(sides) and len(unknown):
        sides = np.fromiter(_probed(zones, unknown), np.int64)
    return selection.pixel_spec(sides, np.ones(len(sides), np.int64), config).height


def _probed(zones: Zones, unknown: pa.Table) -> Iterator[int]:
    """The longer sides of some images, one in a hundred and ``PROBES`` at most."""
    count = min(PROBES, 1 + len(unknown) // 100)
    some = unknown.take(np.linspace(0, len(unknown) - 1, count).astype(np.int64))
    for data in packing.contents(zones.images, some.filter(pc.less_equal(some["size"], PROBE_BYTES))):
        try:
            header = images.read_header(data or b"")
        except InvalidImage:
            continue
        yield max(header.width, header.height)


def _candidates(work: _Work, config: PrepareConfig) -> Candidates:
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


def _index(work: _Work, chosen: Selection) -> Index:
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


def _left_out(
    work: _Work, chosen: Selection, problems: Iterable[tuple[str, str]], config: PrepareConfig
) -> list[dict[str, Any]]:
    """A line for each key that claims to be an image and is not used, or that a person named in vain."""
    reasons = dataset_index.aligned(work.facts.rows, work.listing["key"])["reason"]
    unreadable = np.flatnonzero(pc.is_valid(reasons).to_numpy())
    why = dict(zip(unreadable.tolist(), values(reasons.take(unreadable)), strict=True)) | chosen.reasons
    rows = work.listing.take(pa.array(list(why), pa.int64()))
    columns = [values(rows[name]) for name in ("key", "etag_text", "size")]
    lines = [_line(key, why[at], etag, size) for at, key, etag, size in zip(why, *columns, strict=True)]
    lines += [_line(key, reason) for key, reason in problems]
    lines += [_line(key, VANISHED) for key in work.vanished]
    stored = set(values(work.listing["key"].filter(_named(work, config))))
    lines += [_line(key, NAMED_IN_VAIN) for key in config.keep if not stored & {key, f"{work.dataset}/{key}"}]
    return sorted(lines, key=lambda line: (line["key"], line["reason"]))


def _named(work: _Work, config: PrepareConfig) -> Column:
    """Which listed keys ``keep`` names, in full or relative to the dataset, as labels.csv does."""
    named = [*config.keep, *(f"{work.dataset}/{key}" for key in config.keep)]
    return pc.is_in(work.listing["key"], value_set=pa.array(named, pa.string()))


def _line(key: str, reason: str, etag: str | None = None, size: int | None = None) -> dict[str, Any]:
    return {"key": key, "reason": reason, "etag": etag, "size": size}


def _write_quarantine(zones: Zones, dataset: str, lines: list[dict[str, Any]]) -> str | None:
    """The key of the list, stored; None where there is nothing to list."""
    if not lines:
        return None
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    key = f"{dataset}/quarantine/{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
    if zones.datasets.head(key) is None:
        zones.datasets.write_once(key, data)
    return key


def _as_packed(pixels: PixelSpec) -> PixelSpec:
    """What all shards of a version have in common."""
    return pixels.model_copy(update={"channels": 3})


def _numbers(column: Any, instead: int = 0) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = pc.fill_null(column, instead).to_numpy().astype(np.int64)
    return numbers
