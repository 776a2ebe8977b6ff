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

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from pipeline import (
    dataset_index,
    dataset_versions,
    freed_memory,
    images,
    large_index,
    packing,
    preparation,
    quarantine,
    raw,
    selection,
)
from pipeline.artifacts import DatasetVersion, PixelSpec, PrepareConfig, Record
from pipeline.dataset_index import NOTHING, Index, pc, values
from pipeline.dataset_versions import Prepared
from pipeline.errors import Conflict, DatasetRejected, InvalidImage, LeaseLost
from pipeline.large_index import LargeIndex
from pipeline.packing import Chunk, Found, PackedChunk
from pipeline.preparation import Work
from pipeline.progress import OnProgress, Progress, silent
from pipeline.rows_on_disk import Rows
from pipeline.selection import Selection
from pipeline.zones import Zones

log = logging.getLogger(__name__)

ATTEMPTS = 3
LEFT_BEHIND = 16
"""Chunks that a killed preparation has done, by and large."""
PROBES = 32
PROBE_BYTES = 16 << 20
Pack: TypeAlias = Callable[[Chunk], PackedChunk]
MapChunks: TypeAlias = Callable[[Pack, Iterable[Chunk]], Iterable[PackedChunk]]
Mapped: TypeAlias = Callable[[Work, Rows], Iterable[PackedChunk]]


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


def prepare(
    zones: Zones,
    dataset: str,
    config: PrepareConfig,
    *,
    map_chunks: MapChunks = map,
    chunks: int = 1,
    decode_threads: int | None = None,
    cache: Path | None = None,
    on_progress: OnProgress = silent,
) -> PrepareResult:
    """Make a dataset version of what is stored for ``dataset``, or find the one that exists.

    Args:
        zones: read: images; written: datasets.
        dataset: its name.
        config: what a person chose.
        map_chunks: how chunks are packed: takes a function and chunks, returns a result per chunk, in any order;
            by default one after the other in this process, since each one uses all cores already.
        chunks: how many there should be at least, where they would not be too small.
        decode_threads: images decoded at once per chunk; by default one per core.
        cache: a folder of this machine in which the index is kept, so that it need not be read from the store again.
        on_progress: told after the listing and after each chunk.

    Raises:
        NotFound: nothing is stored for the dataset.
        InvalidInput: its name cannot be one, or its labels.csv cannot be read.
        DatasetRejected: no dataset can be made of these images; the message says why, and where the list is.
        Conflict: what it had packed was removed each time that it was tried.
    """
    mapped = partial(_mapped, zones, map_chunks=map_chunks, at_least=chunks, decode_threads=decode_threads)
    once = partial(_prepare, mapped=mapped, cache=cache, on_progress=on_progress)
    for _ in range(ATTEMPTS - 1):
        try:
            return once(zones, dataset, config)
        except (Conflict, LeaseLost) as error:
            log.warning("preparing %s once more: %s", dataset, error)
            _clear_work(zones, dataset)
    return once(zones, dataset, config)


def _prepare(
    zones: Zones,
    dataset: str,
    config: PrepareConfig,
    *,
    mapped: Mapped,
    cache: Path | None,
    on_progress: OnProgress,
) -> PrepareResult:
    """One attempt.

    Raises:
        Conflict: something that it relied on was removed meanwhile (``garbage``).
    """
    raw.check_dataset_name(dataset)
    freed_memory.keep_little()
    candidates = preparation.Listing(cache)
    found = raw.list_raw(zones.images, dataset, candidates.add)
    listing = candidates.rows()
    on_progress(Progress("listing images", len(listing), len(listing)))
    before = dataset_versions.read_prepared(zones.datasets, dataset, cache)
    work = _begin(zones, dataset, config, listing, before)
    freed_memory.give_back()
    read = partial(_read, mapped=mapped, on_progress=on_progress)
    work, chosen = _settle(work, config, read)

    left_out = preparation.left_out(work, chosen, found.problems, config)
    listed = quarantine.write(zones.datasets, dataset, left_out)
    if chosen.problem:
        where = f"; {quarantine.hint(f'{zones.datasets.url}/{listed}')}" if listed else ""
        raise DatasetRejected(f"Dataset {dataset!r}: {chosen.problem}{where}.")
    version = DatasetVersion(
        dataset=dataset, version=chosen.version, classes=chosen.classes, pixels=chosen.pixels, counts=chosen.counts
    )
    index = preparation.index_of(work, chosen)
    freed_memory.give_back()
    new = dataset_versions.publish(zones.datasets, version, config, index, before=before, cache=cache)
    _clear_work(zones, dataset)
    used = int((chosen.label != selection.LEFT_OUT).sum())
    return PrepareResult(
        version=version,
        new=new,
        images=sum(version.counts.values()),
        reused=preparation.reused(index, work.before),
        read=work.read,
        decoded=work.decoded,
        duplicates=used - sum(version.counts.values()),
        quarantined=len(left_out),
        reasons=Counter(line["reason"].partition(":")[0] for line in left_out),
        skipped=found.skipped,
        quarantine=listed,
    )


def _clear_work(zones: Zones, dataset: str) -> None:
    zones.datasets.delete([done.key for done in zones.datasets.listing(packing.work_folder(dataset))])


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
        lines.append(quarantine.hint(result.quarantine))
    return lines


def _begin(zones: Zones, dataset: str, config: PrepareConfig, listing: Rows, before: Prepared | None) -> Work:
    """What is known of the listed objects, from the last preparation and from one that was killed."""
    old = large_index.on_disk(Index(NOTHING, {}), listing.folder) if before is None else before.index
    facts = large_index.unchanged(old, listing)
    unknown = preparation.unknown(listing, facts)
    size = _first_size(zones, config, facts, unknown)
    target = PixelSpec(height=size, width=size, channels=1 if config.colour == "grey" else 3, fit=config.fit)
    if before and preparation.as_packed(before.manifest.version.pixels) != preparation.as_packed(target):
        old = old.changed(dataset_index.without_locations)
    as_needed = partial(large_index.as_needed, grey=target.channels == 1)
    old = as_needed(old)
    facts = large_index.unchanged(old, listing)
    if len(unknown):
        left = map(as_needed, _left_behind(zones, dataset, target, listing))
        facts = large_index.resolve([facts, *left, packing.too_large(unknown)])
    return Work(dataset, listing, large_index.share_locations(facts, old), old, target)


def _left_behind(zones: Zones, dataset: str, target: PixelSpec, listing: Rows) -> Iterator[LargeIndex]:
    """What a preparation that was killed had read of the listed objects, if it had."""
    parts = (([part.rows.sort_by("key")], part.shards) for part in packing.left_behind(zones.datasets, dataset, target))
    if found := large_index.all_on_disk(listing.folder, parts, LEFT_BEHIND):
        yield large_index.unchanged(large_index.resolve(found), listing)


def _settle(work: Work, config: PrepareConfig, read: Callable[[Work, Rows], Work]) -> tuple[Work, Selection]:
    """Read what is not known, then what is not packed as it must be, until nothing is left to read."""
    todo = preparation.unknown(work.listing, work.facts)
    while True:
        work = read(work, todo)
        freed_memory.give_back()
        chosen = selection.select(preparation.candidates(work, config), config)
        if chosen.problem:
            return work, chosen
        if preparation.as_packed(chosen.pixels) != preparation.as_packed(work.target):
            target = chosen.pixels.model_copy(update={"channels": work.target.channels})
            facts, before = (index.changed(dataset_index.without_locations) for index in (work.facts, work.before))
            work = replace(work, target=target, facts=facts, before=before)
        todo = preparation.lacking(work, chosen)
        if not len(todo):
            return work, chosen


def _mapped(
    zones: Zones, work: Work, todo: Rows, *, map_chunks: MapChunks, at_least: int, decode_threads: int | None
) -> Iterable[PackedChunk]:
    """The objects in ``todo``, packed chunk by chunk."""
    chunks = packing.plan(work.dataset, work.target, todo, (work.before, work.facts), at_least=at_least)
    pack = partial(packing.pack_chunk, zones.images, zones.datasets, decode_threads=decode_threads)
    return map_chunks(pack, chunks)


def _read(work: Work, todo: Rows, *, mapped: Mapped, on_progress: OnProgress) -> Work:
    """``work`` after the objects in ``todo`` were read, and packed where their bytes are new."""
    if not len(todo):
        return work
    found = Found(todo.folder)
    for packed in mapped(work, todo):
        found.add(packed)
        freed_memory.give_back()
        on_progress(Progress("reading images", found.read, len(todo), note=f"{found.decoded:,} decoded"))
    facts = large_index.resolve([work.facts, found.index()])
    return replace(
        work,
        listing=preparation.without(work.listing, found.gone),
        facts=large_index.share_locations(facts, work.before),
        vanished=(*work.vanished, *found.gone),
        read=work.read + found.read,
        decoded=work.decoded + found.decoded,
    )


def _first_size(zones: Zones, config: PrepareConfig, known: LargeIndex, unknown: Rows) -> int:
    """What ``auto`` makes of the images that are known, or of the headers of a few that are not."""
    sides = np.fromiter(preparation.longest_sides(known), np.int64)
    if config.size == "auto" and not len(sides) and len(unknown):
        sides = np.fromiter(_probed(zones, unknown), np.int64)
    return selection.pixel_spec(sides, np.ones(len(sides), np.int64), config).height


def _probed(zones: Zones, unknown: Rows) -> Iterator[int]:
    """The longer sides of some images, one in a hundred and ``PROBES`` at most."""
    count = min(PROBES, 1 + len(unknown) // 100)
    some = pa.concat_tables(unknown.take(np.linspace(0, len(unknown) - 1, count).astype(np.int64)))
    some = some.filter(pc.less_equal(some["size"], PROBE_BYTES))
    for data in raw.read_raw(zones.images, values(some["key"]), values(some["size"])):
        try:
            header = images.read_header(data or b"")
        except InvalidImage:
            continue
        yield max(header.width, header.height)
