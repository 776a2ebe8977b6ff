"""Everything that a store holds, read and checked: ``safelight store verify``.

- **What is complete must be whole.** A manifest, result or report says what belongs to it, and each of those objects
  must have the bytes that it names. What nothing complete refers to is unfinished work, and no finding.
- **Records, too:** each seal, each dataset version's name (which is the digest of its rows), each alias's history, and
  each raw image whose etag is the one that was prepared.
- **Others may write meanwhile.** Manifests are written last and deleted first, so that what a manifest names is there.
  A finding counts only if the object that refers to it is still there afterwards; aliases and pointers are read again.
- Objects pass through memory a few at a time. What stays is, of one dataset at a time, 32 bytes for each packed image,
  one version's index as in preparation, and key, etag and digest of each raw object that is stored.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise, tee
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from pipeline import aliases, checkpoints, dataset_index, dataset_versions, registry, selection
from pipeline.aliases import AliasState
from pipeline.artifacts import DatasetVersion, EvaluationReport, ExportedModel, Record, StoredFile, TrainingRun
from pipeline.dataset_index import Index, digests_of, pc, values
from pipeline.errors import SafelightError, StoreUnavailable
from pipeline.progress import OnProgress, Progress, silent
from pipeline.registry import ModelManifest
from pipeline.sealing import unsealed
from pipeline.shards import DIGEST_BYTES, shard_key
from pipeline.store import Store, StoredObject
from pipeline.zones import Zones

UNKNOWN_TIME = datetime.min.replace(tzinfo=UTC)
NAMED_BY_DIGEST = re.compile(r"[^/]+/(?P<kind>shards|index|quarantine)/(?P<digest>[0-9a-f]{16,64})\.[a-z]+")
DATASET_MANIFEST = re.compile(r"(?P<dataset>[^/]+)/(?P<version>[0-9a-f]{16})/manifest\.json")
RUN_RECORD = re.compile(
    r"[^/]+/(?P<what>result|evaluation/evaluation|export/export|checkpoints/[^/]+/checkpoint)\.json"
)
ALIAS = re.compile(r"(?P<model>[^/]+)/aliases/(?P<alias>[^/]+)\.json")
LISTING: dict[str, Any] = {"key": pa.string(), "etag": pa.binary(), "size": pa.int64()}
FACTS = ["key", "etag", "size", "digest"]
READINGS = 5
"""How often a pointer is read again that moved while what it pointed at was looked for."""


class Broken(Record):
    """An object that is not as it must be: its address, and what is wrong with it, as a clause."""

    address: str
    fault: str


class Verification(Record):
    """How many objects of each kind were checked, and which of them are broken."""

    counts: dict[str, int]
    broken: tuple[Broken, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """An object with the bytes that it must have, and the key of what names it, in the same zone."""

    file: StoredFile
    kind: str
    named_by: str


@dataclass(slots=True)
class Ledger:
    """What was checked so far."""

    on_progress: OnProgress
    counts: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)

    def count(self, kind: str) -> None:
        """One more object of that kind was looked at."""
        self.counts[kind] += 1
        self.on_progress(Progress("verifying the store", self.counts.total(), unit="objects", note=kind))

    def fault(self, store: Store, key: str, fault: object, named_by: str | None = None) -> None:
        """``key`` is broken, unless what names it has been deleted meanwhile: then it was on its way out."""
        if store.head(named_by or key) is not None:
            self.broken.setdefault(f"{store.url}/{key}", str(fault).removeprefix(f"{store.url}/{key} ").rstrip("."))


def verify(zones: Zones, *, on_progress: OnProgress = silent) -> Verification:
    """Read everything that is complete, and say what is not as it was written.

    Raises:
        StoreUnavailable: the store stayed away.
    """
    ledger = Ledger(on_progress)
    for dataset in zones.datasets.folders():
        _verify_dataset(zones, dataset, ledger)
    _verify_parts(zones.checkpoints, _run_parts(zones.checkpoints, ledger), ledger)
    _verify_parts(zones.models, _model_parts(zones.models, ledger), ledger)
    for found in zones.models.listing():
        if match := ALIAS.fullmatch(found.key):
            _verify_alias(zones.models, found.key, match["model"], match["alias"], ledger)
    broken = tuple(Broken(address=address, fault=fault) for address, fault in sorted(ledger.broken.items()))
    return Verification(counts=dict(sorted(ledger.counts.items())), broken=broken)


def _verify_parts(store: Store, parts: Iterable[Part], ledger: Ledger) -> None:
    """Read each part and compare it with what is promised, several at a time."""
    promised, ahead = tee(parts)
    objects = (StoredObject(part.file.key, part.file.size, "", UNKNOWN_TIME) for part in ahead)
    for part, (_, data) in zip(promised, store.read_many(objects), strict=True):
        ledger.count(part.kind)
        if data is None:
            ledger.fault(store, part.file.key, f"is missing, though {part.named_by} names it", part.named_by)
        elif hashlib.sha256(data).hexdigest() != part.file.sha256:
            ledger.fault(store, part.file.key, f"was altered: {part.named_by} names other bytes", part.named_by)


def _verify_dataset(zones: Zones, dataset: str, ledger: Ledger) -> None:
    store = zones.datasets
    # Manifests first: what they name is stored before them.
    manifests = [match for found in store.listing(dataset) if (match := DATASET_MANIFEST.fullmatch(found.key))]
    packed = _packed_digests(store, dataset, ledger)
    listing = _listing(zones.images, dataset)
    prepared = _facts(dataset_index.NOTHING.rows)
    for match in manifests:
        index = _checked_version(store, match["dataset"], match["version"], packed, ledger)
        rows = dataset_index.unchanged(index, listing).rows
        prepared = _facts(pa.concat_tables([prepared, rows.select(FACTS)]))
    _verify_latest(store, dataset, ledger)
    _verify_raw_images(zones.images, prepared, ledger)


def _packed_digests(store: Store, dataset: str, ledger: Ledger) -> dict[bytes, NDArray[np.uint8]]:
    """Check what is named by its own digest; the image digests (n, 32) in each shard, by the shard's name."""
    packed: dict[bytes, NDArray[np.uint8]] = {}
    named = (found for found in store.listing(dataset) if NAMED_BY_DIGEST.fullmatch(found.key))
    for found, data in store.read_many(named):
        match = NAMED_BY_DIGEST.fullmatch(found.key)
        if match is None or data is None:
            continue
        ledger.count({"shards": "shards", "index": "index segments"}.get(match["kind"], "quarantine lists"))
        if not hashlib.sha256(data).hexdigest().startswith(match["digest"]):
            ledger.fault(store, found.key, "was altered: its name is the digest of other bytes")
        elif match["kind"] == "shards":
            packed[bytes.fromhex(match["digest"])] = _digests_in(store, found.key, data, ledger)
    return packed


def _digests_in(store: Store, key: str, shard: bytes, ledger: Ledger) -> NDArray[np.uint8]:
    try:
        tensors = safetensors.numpy.load(shard)
    except SafetensorError:
        tensors = {}
    if tensors.keys() != {"pixels", "digests"} or len(tensors["pixels"]) != len(tensors["digests"]):
        ledger.fault(store, key, "is no shard")
        return np.empty((0, DIGEST_BYTES), np.uint8)
    return np.array(tensors["digests"])


def _checked_version(
    store: Store, dataset: str, name: str, packed: dict[bytes, NDArray[np.uint8]], ledger: Ledger
) -> Index:
    """Check a dataset version; its index, empty where that cannot be read."""
    key = f"{dataset}/{name}/manifest.json"
    ledger.count("dataset versions")
    try:
        manifest = dataset_versions.read_manifest(store, dataset, name)
        index = dataset_versions.read_segments(store, dataset, manifest.segments)
    except StoreUnavailable:
        raise
    except SafelightError as error:
        ledger.fault(store, key, error)
        return dataset_index.NOTHING
    if said := _version_fault(manifest.version, index.rows, packed):
        ledger.fault(store, key, said)
    return index


def _version_fault(version: DatasetVersion, rows: pa.Table, packed: dict[bytes, NDArray[np.uint8]]) -> str | None:
    """What is wrong with a version whose index has these rows."""
    used = rows.filter(pc.is_valid(rows["split"])).sort_by([("digest", "ascending")])
    digests, first = np.unique(digests_of(used["digest"]), axis=0, return_index=True)
    images = used.take(first)
    label = pc.index_in(images["label"], value_set=pa.array(version.classes, pa.string())).to_numpy(False)
    split = pc.index_in(images["split"], value_set=pa.array(selection.SPLITS, pa.string())).to_numpy(False)
    content = selection.Images(digests, np.nan_to_num(label, nan=-1).astype(np.int64), np.zeros(len(images), np.int64))
    codes = split.astype(np.int64) + selection.TRAIN
    if selection.version_of(version.classes, version.pixels, content, codes) != version.version:
        return "does not hold the images, labels and splits that its name is the digest of"
    lost = [shard for shard, row, digest in _places(images) if not _is_packed(packed, shard, row, digest)]
    return f"names {len(lost):,} images that are not packed in {shard_key(version.dataset, lost[0])}" if lost else None


def _places(images: pa.Table) -> Iterator[tuple[bytes, int, bytes]]:
    columns = [values(images[name]) for name in ("shard", "row", "digest")]
    return zip(*columns, strict=True)


def _is_packed(packed: dict[bytes, NDArray[np.uint8]], shard: bytes, row: int, digest: bytes) -> bool:
    digests = packed.get(shard)
    return digests is not None and row < len(digests) and digests[row].tobytes() == digest


def _verify_latest(store: Store, dataset: str, ledger: Ledger) -> None:
    key = f"{dataset}/latest.json"

    def fault() -> str | None:
        latest = dataset_versions.read_latest(store, dataset)
        if latest is None:
            return "cannot be read" if store.head(key) else None
        dataset_versions.read_manifest(store, dataset, latest.version)
        dataset_versions.read_segments(store, dataset, (latest.extra,) if latest.extra else ())
        return None

    _verify_pointer(store, key, fault, ledger)


def _listing(images: Store, dataset: str) -> pa.Table:
    """Key, etag (as an index has it) and size of each raw object."""
    rows = [(found.key, dataset_index.short_etag(found.etag), found.size) for found in images.listing(dataset)]
    keys, etags, sizes = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table({"key": keys, "etag": etags, "size": sizes}, schema=pa.schema(LISTING))


def _facts(rows: pa.Table) -> pa.Table:
    """What index rows say of the bytes of raw objects, once each: versions share nearly all of it."""
    return rows.filter(pc.is_valid(rows["digest"])).select(FACTS).group_by(FACTS).aggregate([])


def _verify_raw_images(images: Store, facts: pa.Table, ledger: Ledger) -> None:
    """Each raw object that is still the one that was prepared has the bytes that were prepared."""
    columns: Any = [values(facts[name]) for name in ("key", "size")]
    objects = (StoredObject(key, size, "", UNKNOWN_TIME) for key, size in zip(*columns, strict=True))
    reading = images.read_many(objects)
    for etag, digest, (found, data) in zip(values(facts["etag"]), values(facts["digest"]), reading, strict=True):
        ledger.count("raw images")
        if data is None or hashlib.sha256(data).digest() == digest:
            continue
        now = images.head(found.key)
        if now is not None and dataset_index.short_etag(now.etag) == etag:
            ledger.fault(images, found.key, "holds other bytes than when it was prepared, under the same etag")


def _records(store: Store, keys: re.Pattern[str], kind: str, ledger: Ledger) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of each stored record whose key is of that form."""
    for found, data in store.read_many(found for found in store.listing() if keys.fullmatch(found.key)):
        if data is not None:
            ledger.count(kind)
            yield found.key, data


def _run_parts(store: Store, ledger: Ledger) -> Iterator[Part]:
    """What the results, evaluations, exports and checkpoints of training runs name."""
    for key, data in _records(store, RUN_RECORD, "records of training runs", ledger):
        try:
            yield from (Part(file, kind, key) for kind, file in _named_in_run(store, key, data))
        except StoreUnavailable:
            raise
        except SafelightError as error:
            ledger.fault(store, key, error)


def _named_in_run(store: Store, key: str, data: bytes) -> Iterator[tuple[str, StoredFile]]:
    if key.endswith("/result.json"):
        best = unsealed(TrainingRun, data, key).checkpoint
        yield "checkpoints", checkpoints.parsed(store, best, store.get(best))[1]
    elif key.endswith(f"/{checkpoints.MANIFEST}"):
        yield "checkpoints", checkpoints.parsed(store, key, data)[1]
    elif key.endswith("/export.json"):
        for file in unsealed(ExportedModel, data, key).files.values():
            yield "exported files", file
    else:
        for file in unsealed(EvaluationReport, data, key).files.values():
            yield "evaluation files", file


def _model_parts(store: Store, ledger: Ledger) -> Iterator[Part]:
    """What the manifests of model versions name."""
    for key, data in _records(store, registry.MANIFEST_KEY, "model versions", ledger):
        try:
            manifest = unsealed(ModelManifest, data, key)
        except SafelightError as error:
            ledger.fault(store, key, error)
            continue
        if said := _manifest_fault(key, manifest):
            ledger.fault(store, key, said)
        yield from (Part(file, "model files", key) for file in manifest.files.values())


def _manifest_fault(key: str, manifest: ModelManifest) -> str | None:
    folder = key.removesuffix("manifest.json")
    if {file.key for file in manifest.files.values()} != {folder + name for name in registry.FILES}:
        return "does not name the files of a model version"
    return None


def _verify_alias(store: Store, key: str, model: str, alias: str, ledger: Ledger) -> None:
    def fault() -> str | None:
        found = aliases.read_alias(store, model, alias)
        if found is None:
            return None
        if found[0].version is not None:
            registry.read_manifest(store, model, found[0].version)
        return history_fault(found[0])

    ledger.count("aliases")
    _verify_pointer(store, key, fault, ledger)


def history_fault(state: AliasState) -> str | None:
    """What is wrong with an alias's history; None if every change is there once, in order, the last is its state."""
    history = state.history
    if not history or (history[-1].generation, history[-1].nonce, history[-1].version) != (
        state.generation,
        state.nonce,
        state.version,
    ):
        return "does not end its history with its own state"
    if any(two.generation != one.generation + 1 for one, two in pairwise(history)):
        return "has a gap in its history"
    if len({change.nonce for change in history}) != len(history):
        return "has one nonce twice in its history"
    return None


def _verify_pointer(store: Store, key: str, fault: Callable[[], str | None], ledger: Ledger) -> None:
    """Report ``fault``, unless the pointer moved while it was looked for: then look again."""
    said: object = None
    for _ in range(READINGS):
        before = store.head(key)
        try:
            said = fault()
        except StoreUnavailable:
            raise
        except SafelightError as error:
            said = error
        after = store.head(key)
        if said is None or after is None or (before is not None and before.etag == after.etag):
            break
    if said is not None:
        ledger.fault(store, key, said)
