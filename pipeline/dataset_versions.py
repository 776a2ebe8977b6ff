"""Dataset versions in the object store: their manifests and the pointer to the newest, written and read here alone.

::

    <dataset>/<version>/manifest.json     written once, last: its presence means that the version is complete
    <dataset>/index/<sha256>.parquet      segments of the index (index_segments.py), shared between versions
    <dataset>/shards/<sha256>.safetensors pixels (shards.py), shared between versions
    <dataset>/latest.json                 what the last finished preparation returned; compare-and-swap only
    <dataset>/lease.json                  held while a version becomes complete, and while garbage is removed
    <dataset>/quarantine/<digest>.jsonl   images that were left out, and why (quarantine.py)
    <dataset>/work/…                      results of chunks of a preparation that has not finished (packing.py)

- Of several preparations that reach the same content the first manifest stays, whatever the layout of its shards.
- Keys can come and go while the content stays (an image is renamed, an unreadable one arrives). Then the version is the
  same and its manifest untouched, and the pointer names one **extra segment** with what has changed in the index, so
  that the next preparation reads nothing twice.
- The pointer moves last. Of two preparations at once both versions stay, and the pointer names the one that ended last.
- **What a manifest names is stored.** A preparation may rely on parts that nothing refers to yet, which ``garbage`` may
  remove. So both hold the dataset's lease: one while it looks that every part is there and writes the manifest,
  the other while it looks what the manifests name and removes the rest.
"""

import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pipeline import compaction, freed_memory, index_segments, large_index, leases
from pipeline.artifacts import DatasetVersion, PixelSpec, PrepareConfig, Record, utc_now
from pipeline.errors import Conflict, Corrupted, NotFound, ObjectMissing, StoreUnavailable
from pipeline.index_segments import Segment, segment_key
from pipeline.large_index import LargeIndex
from pipeline.leases import Lease
from pipeline.sealing import sealed, unsealed
from pipeline.shards import row_bytes, shard_key
from pipeline.store import Store

log = logging.getLogger(__name__)

VERSION_ID = re.compile(r"[0-9a-f]{16}")

POINTER_ATTEMPTS = 100
LEASE_TTL_S = 10.0


class DatasetManifest(Record):
    """A complete dataset version, and the segments of its index, each overriding those before it."""

    format: Literal[1] = 1
    version: DatasetVersion
    created_at: datetime
    config: PrepareConfig
    segments: tuple[Segment, ...]


class Latest(Record):
    """The version that the last finished preparation returned.

    Attributes:
        extra: what has changed in its index since its manifest was written.
        nonce: makes the bytes of every state unique.
    """

    format: Literal[1] = 1
    version: str
    extra: Segment | None
    changed_at: datetime
    nonce: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the last finished preparation left behind.

    Attributes:
        segments: of the version's index, and the extra one.
        index: what they say together.
    """

    manifest: DatasetManifest
    segments: tuple[Segment, ...]
    index: LargeIndex


def manifest_key(dataset: str, version: str) -> str:
    """Where the manifest of a version is, in the datasets zone."""
    return f"{dataset}/{version}/manifest.json"


def latest_key(dataset: str) -> str:
    """Where the pointer to the newest version is, in the datasets zone."""
    return f"{dataset}/latest.json"


def read_manifest(datasets: Store, dataset: str, version: str) -> DatasetManifest:
    """The manifest of a version.

    Raises:
        NotFound: there is no such version.
        Corrupted: it was altered, or another release of Safelight wrote it.
    """
    manifest = find_manifest(datasets, dataset, version)
    if manifest is None:
        raise NotFound(f"Dataset {dataset!r} has no version {version!r}: prepare it again, or name another version.")
    return manifest


def find_manifest(datasets: Store, dataset: str, version: str) -> DatasetManifest | None:
    """The manifest of a version, or None.

    Raises:
        Corrupted: it was altered, or another release of Safelight wrote it.
    """
    key = manifest_key(dataset, version)
    data = datasets.get_if_present(key)
    try:
        return None if data is None else unsealed(DatasetManifest, data, key)
    except Corrupted as error:
        raise Corrupted(
            f"{datasets.url}/{key} is no manifest of a dataset version: {error}; delete {datasets.url}/{dataset}/ and "
            "prepare again."
        ) from error


def read_latest(datasets: Store, dataset: str) -> Latest | None:
    """The pointer to the newest version; None if nothing was prepared, or not by this release."""
    key = latest_key(dataset)
    data = datasets.get_if_present(key)
    try:
        return None if data is None else unsealed(Latest, data, key)
    except Corrupted as error:
        log.warning("%s/%s is not used: %s", datasets.url, key, error)
        return None


def read_prepared(datasets: Store, dataset: str, cache: Path | None = None) -> Prepared | None:
    """What the last finished preparation left; None if there was none, or if it cannot be read: it only saves work."""
    try:
        latest = read_latest(datasets, dataset)
        if latest is None:
            return None
        manifest = find_manifest(datasets, dataset, latest.version)
        if manifest is None:
            return None
        segments = manifest.segments if latest.extra is None else (*manifest.segments, latest.extra)
        return Prepared(manifest, segments, index_segments.read_large(datasets, dataset, segments, cache))
    except (Corrupted, ObjectMissing) as error:
        log.warning("Preparing %s from the beginning: %s", dataset, error)
        return None


def publish(
    datasets: Store,
    version: DatasetVersion,
    config: PrepareConfig,
    index: LargeIndex,
    *,
    before: Prepared | None = None,
    cache: Path | None = None,
) -> bool:
    """Make a version complete and the latest one; True unless it was complete before.

    Args:
        datasets: the datasets zone.
        version: what the index holds.
        config: how it was prepared.
        index: a row for every key that was looked at; its shards are stored.
        before: what the last finished preparation left.
        cache: folder of segments that were read or written on this machine.

    Raises:
        Conflict: what the version needs was removed meanwhile; nothing was written that names it.
        Corrupted: a version of that name is stored, but cannot be read.
    """
    stored = find_manifest(datasets, version.dataset, version.version)
    if stored is None:
        try:
            index = compaction.compact(datasets, version.dataset, version.pixels, index)
            freed_memory.give_back()
            segments = _segments_of(datasets, version, index, before, cache)
        except (Corrupted, ObjectMissing):
            _refuse_missing(datasets, version.dataset, before.segments if before else (), index)
            raise
        key = manifest_key(version.dataset, version.version)
        manifest = DatasetManifest(version=version, created_at=utc_now(), config=config, segments=segments)
        # Compact: a manifest is written anew for every version, and most of it is digests.
        ours = sealed(manifest, key, compact=True)
        with hold(datasets, version.dataset) as lease:
            _refuse_missing(datasets, version.dataset, segments, index)
            lease.check()
            if datasets.write_once(key, ours) == ours:
                _move_pointer(datasets, version, None)
                return True
        # Another preparation was first, with other shards: its manifest stays, our index becomes a change to it.
        stored = read_manifest(datasets, version.dataset, version.version)
    _point(datasets, version, _change(datasets, stored, index, cache), cache)
    return False


def hold(datasets: Store, dataset: str) -> Lease:
    """The right to make a version of a dataset complete, or to remove what none of them needs."""
    key = f"{dataset}/lease.json"
    return leases.acquire(datasets, key, f"dataset {dataset}", ttl_s=LEASE_TTL_S, on_progress=leases.say)


def named_keys(datasets: Store, dataset: str, cache: Path | None = None) -> set[str]:
    """Keys of all segments and shards that the versions of a dataset and its pointer name, or ever named in them.

    Raises:
        Corrupted: a manifest, a segment or the pointer was altered.
        ObjectMissing: a segment is gone.
    """
    latest = read_latest(datasets, dataset)
    if latest is None and datasets.head(latest_key(dataset)) is not None:
        raise Corrupted(f"{datasets.url}/{latest_key(dataset)} cannot be read: prepare the dataset again.")
    named = {latest.extra} if latest and latest.extra else set()
    for folder in filter(VERSION_ID.fullmatch, datasets.folders(dataset)):
        manifest = find_manifest(datasets, dataset, folder)
        named |= set(manifest.segments) if manifest else set()
    return {key for segment in named for key in index_segments.keys_named(datasets, dataset, segment, cache)}


def _refuse_missing(datasets: Store, dataset: str, segments: Sequence[Segment], index: LargeIndex) -> None:
    """Raise Conflict unless everything that a manifest or the pointer is about to name is stored."""
    needed = {segment_key(dataset, segment) for segment in segments}
    needed |= {shard_key(dataset, name) for name in large_index.shards_named(index)}
    stored = {found.key for folder in ("index", "shards") for found in datasets.listing(f"{dataset}/{folder}")}
    if missing := sorted(needed - stored):
        raise Conflict(
            f"{datasets.url}/{missing[0]} was removed while the dataset was prepared: prepare it again, and if that "
            f"says the same, delete {datasets.url}/{dataset}/ before."
        )


def _change(datasets: Store, manifest: DatasetManifest, index: LargeIndex, cache: Path | None) -> LargeIndex | None:
    """What turns the index of a manifest into ``index``; None where there is no difference."""
    dataset = manifest.version.dataset
    try:
        own = index_segments.read_large(datasets, dataset, manifest.segments, cache)
    except (Corrupted, ObjectMissing) as error:
        raise Corrupted(
            f"Version {manifest.version.version} of dataset {dataset!r} is stored but cannot be read: delete "
            f"{datasets.url}/{dataset}/ and prepare again ({error})."
        ) from error
    change = large_index.difference(own, index)
    return change if len(change.rows) else None


def _segments_of(
    datasets: Store, version: DatasetVersion, index: LargeIndex, before: Prepared | None, cache: Path | None
) -> tuple[Segment, ...]:
    """Segments, stored, that say what ``index`` says."""
    return index_segments.write_change(
        datasets,
        version.dataset,
        before.segments if before else (),
        large_index.difference(before.index if before else None, index),
        pixel_bytes=_shard_bytes(version.pixels, index),
        cache=cache,
    )


def _shard_bytes(pixels: PixelSpec, index: LargeIndex) -> int:
    shards = [index.shards[name] for name in large_index.shards_named(index)]
    return sum(shard.rows * row_bytes(pixels.height, pixels.width, shard.channels) for shard in shards)


def _point(datasets: Store, version: DatasetVersion, change: LargeIndex | None, cache: Path | None) -> None:
    """Let the pointer name ``version``; nothing is written where it says that already."""
    extra = None if change is None else index_segments.encoded(change)
    now = read_latest(datasets, version.dataset)
    if now and now.version == version.version and now.extra == (extra and extra.segment):
        return
    if change is None or extra is None:
        _move_pointer(datasets, version, None)
        return
    index_segments.write(datasets, version.dataset, extra, cache)
    with hold(datasets, version.dataset) as lease:
        _refuse_missing(datasets, version.dataset, (extra.segment,), change)
        lease.check()
        _move_pointer(datasets, version, extra.segment)


def _move_pointer(datasets: Store, version: DatasetVersion, extra: Segment | None) -> None:
    wanted = Latest(version=version.version, extra=extra, changed_at=utc_now(), nonce=secrets.token_hex(8))
    key = latest_key(version.dataset)
    for _ in range(POINTER_ATTEMPTS):
        found = datasets.head(key)
        try:
            datasets.compare_and_swap(key, sealed(wanted, key), etag=found.etag if found else None)
        except Conflict:
            continue
        return
    raise StoreUnavailable(f"{datasets.url}/{key} could not be changed: too many preparations at once; try again.")
