"""Dataset versions in the object store: their manifests and the pointer to the newest, written and read here alone.

::

    <dataset>/<version>/manifest.json     written once, last: its presence means that the version is complete
    <dataset>/index/<sha256>.parquet      segments of the index (dataset_index.py), shared between versions
    <dataset>/shards/<sha256>.safetensors pixels (shards.py), shared between versions
    <dataset>/latest.json                 what the last finished preparation returned; compare-and-swap only
    <dataset>/quarantine/<digest>.jsonl   images that were left out, and why (prepare.py)
    <dataset>/work/…                      results of chunks of a preparation that has not finished (packing.py)

- Of several preparations that reach the same content the first manifest stays, whatever the layout of its shards.
- Keys can come and go while the content stays (an image is renamed, an unreadable one arrives). Then the version is the
  same and its manifest untouched, and the pointer names one **extra segment** with what has changed in the index, so
  that the next preparation reads nothing twice.
- The pointer moves last. Of two preparations at once both versions stay, and the pointer names the one that ended last.
"""

import hashlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline import compaction, dataset_index, file_cache
from pipeline.artifacts import DatasetVersion, Digest, PixelSpec, PrepareConfig, Record, utc_now
from pipeline.dataset_index import NOTHING, Index, values
from pipeline.errors import Conflict, Corrupted, InvalidInput, NotFound, ObjectMissing, StoreUnavailable
from pipeline.shards import row_bytes
from pipeline.store import Store

log = logging.getLogger(__name__)

MERGED_SHARE = 0.001
"""Bytes of segments merged in one preparation at most, as a share of all that a version stores."""
POINTER_ATTEMPTS = 100


class Segment(Record):
    """A stored segment of an index; ``size`` in bytes."""

    sha256: Digest
    rows: int
    size: int


class DatasetManifest(Record):
    """A complete dataset version, and the segments of its index, each overriding those before it."""

    format: Literal[1] = 1
    version: DatasetVersion
    created_at: datetime
    config: PrepareConfig
    segments: tuple[Segment, ...]

    def to_json(self) -> bytes:
        """Compact JSON: a manifest is written anew for every version, and most of it is digests."""
        return self.model_dump_json().encode() + b"\n"


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
    index: Index


def read_manifest(datasets: Store, dataset: str, version: str) -> DatasetManifest:
    """The manifest of a version.

    Raises:
        NotFound: there is no such version.
        InvalidInput: another release of Safelight wrote it.
    """
    manifest = find_manifest(datasets, dataset, version)
    if manifest is None:
        raise NotFound(f"Dataset {dataset!r} has no version {version!r}: prepare it again, or name another version.")
    return manifest


def find_manifest(datasets: Store, dataset: str, version: str) -> DatasetManifest | None:
    """The manifest of a version, or None.

    Raises:
        InvalidInput: another release of Safelight wrote it.
    """
    data = datasets.get_if_present(_manifest_key(dataset, version))
    try:
        return None if data is None else DatasetManifest.from_json(data)
    except ValidationError as error:
        raise InvalidInput(
            f"Version {version} of dataset {dataset!r} was written by another release of Safelight: use that one, or "
            f"delete {datasets.url}/{dataset}/ and prepare again."
        ) from error


def read_latest(datasets: Store, dataset: str) -> Latest | None:
    """The pointer to the newest version; None if nothing was prepared, or not by this release."""
    data = datasets.get_if_present(_latest_key(dataset))
    try:
        return None if data is None else Latest.from_json(data)
    except ValidationError:
        log.warning("%s/%s was written by another release", datasets.url, _latest_key(dataset))
        return None


def read_segments(datasets: Store, dataset: str, segments: Sequence[Segment], cache: Path | None = None) -> Index:
    """What segments say together.

    Raises:
        ObjectMissing: one is gone.
        Corrupted: one was altered.
    """
    return dataset_index.resolve([_read_segment(datasets, dataset, segment, cache) for segment in segments])


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
        return Prepared(manifest, segments, read_segments(datasets, dataset, segments, cache))
    except (Corrupted, ObjectMissing, InvalidInput) as error:
        log.warning("Preparing %s from the beginning: %s", dataset, error)
        return None


def publish(
    datasets: Store,
    version: DatasetVersion,
    config: PrepareConfig,
    index: Index,
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
        Corrupted: a version of that name is stored, but cannot be read.
    """
    stored = find_manifest(datasets, version.dataset, version.version)
    if stored is None:
        index = compaction.compact(datasets, version.dataset, version.pixels, index)
        segments = _append(datasets, version, index, before, cache)
        ours = DatasetManifest(version=version, created_at=utc_now(), config=config, segments=segments).to_json()
        if datasets.write_once(_manifest_key(version.dataset, version.version), ours) == ours:
            _point(datasets, version, None, cache)
            return True
        # Another preparation was first, with other shards: its manifest stays, our index becomes a change to it.
        stored = read_manifest(datasets, version.dataset, version.version)
    _point(datasets, version, _change(datasets, stored, index, cache), cache)
    return False


def _change(datasets: Store, manifest: DatasetManifest, index: Index, cache: Path | None) -> Index | None:
    """What turns the index of a manifest into ``index``; None where there is no difference."""
    dataset = manifest.version.dataset
    try:
        own = read_segments(datasets, dataset, manifest.segments, cache)
    except (Corrupted, ObjectMissing) as error:
        raise Corrupted(
            f"Version {manifest.version.version} of dataset {dataset!r} is stored but cannot be read: delete "
            f"{datasets.url}/{dataset}/ and prepare again ({error})."
        ) from error
    change = dataset_index.difference(own, index)
    return change if len(change.rows) else None


def _append(
    datasets: Store, version: DatasetVersion, index: Index, before: Prepared | None, cache: Path | None
) -> tuple[Segment, ...]:
    """Segments, stored, that say what ``index`` says: those from before and a new one, some merged into one."""
    dataset = version.dataset
    stored = () if before is None else before.segments
    change = dataset_index.difference(NOTHING if before is None else before.index, index)
    pieces: list[Segment | Index] = [*stored, change] if len(change.rows) else [*stored]
    sizes = [piece.size if isinstance(piece, Segment) else len(dataset_index.encode(piece)) for piece in pieces]
    window = dataset_index.merge_window(sizes, MERGED_SHARE * (sum(sizes) + _shard_bytes(version.pixels, index)))
    if window:
        parts = [
            _read_segment(datasets, dataset, piece, cache) if isinstance(piece, Segment) else piece
            for piece in pieces[window.start : window.stop]
        ]
        # Rows of gone keys are needed as long as a segment before them knows those keys.
        pieces[window.start : window.stop] = [dataset_index.resolve(parts, keep_gone=window.start > 0)]
    return tuple(
        piece if isinstance(piece, Segment) else _write_segment(datasets, dataset, piece, cache) for piece in pieces
    )


def _shard_bytes(pixels: PixelSpec, index: Index) -> int:
    shards = [index.shards[name] for name in values(index.rows["shard"].unique().drop_null())]
    return sum(shard.rows * row_bytes(pixels.height, pixels.width, shard.channels) for shard in shards)


def _read_segment(datasets: Store, dataset: str, segment: Segment, cache: Path | None) -> Index:
    fetch = partial(datasets.get_verified, _segment_key(dataset, segment.sha256), segment.sha256)
    return dataset_index.decode(file_cache.read(cache, segment.sha256, fetch))


def _write_segment(datasets: Store, dataset: str, index: Index, cache: Path | None) -> Segment:
    data = dataset_index.encode(index)
    segment = Segment(sha256=hashlib.sha256(data).hexdigest(), rows=len(index.rows), size=len(data))
    datasets.write_once(_segment_key(dataset, segment.sha256), data)
    file_cache.write(cache, data)
    return segment


def _point(datasets: Store, version: DatasetVersion, change: Index | None, cache: Path | None) -> None:
    """Let the pointer name ``version``; nothing is written where it says that already."""
    sha256 = change and hashlib.sha256(dataset_index.encode(change)).hexdigest()
    now = read_latest(datasets, version.dataset)
    if now and now.version == version.version and sha256 == (now.extra and now.extra.sha256):
        return
    extra = None if change is None else _write_segment(datasets, version.dataset, change, cache)
    wanted = Latest(version=version.version, extra=extra, changed_at=utc_now(), nonce=secrets.token_hex(8))
    key = _latest_key(version.dataset)
    for _ in range(POINTER_ATTEMPTS):
        found = datasets.head(key)
        try:
            datasets.compare_and_swap(key, wanted.to_json(), etag=found.etag if found else None)
        except Conflict:
            continue
        return
    raise StoreUnavailable(f"{datasets.url}/{key} could not be changed: too many preparations at once; try again.")


def _manifest_key(dataset: str, version: str) -> str:
    return f"{dataset}/{version}/manifest.json"


def _latest_key(dataset: str) -> str:
    return f"{dataset}/latest.json"


def _segment_key(dataset: str, sha256: str) -> str:
    return f"{dataset}/index/{sha256}.parquet"
