"""Everything that a store holds, read and checked: ``safelight store verify``.

- **What is complete must be whole.** A manifest, result or report says what belongs to it, and each of those objects
  must have the bytes that it names. What nothing complete refers to is unfinished work, and no finding.
- **Records, too:** each seal, each dataset version's name (which is the digest of its rows), each alias's history, and
  each raw image whose etag is the one that was prepared.
- **Others may write meanwhile.** Manifests are written last and deleted first, so that what a manifest names is there.
  A finding counts only if the object that refers to it is still there afterwards; aliases and pointers are read again.
- Objects pass through memory a few at a time. What stays is said in ``dataset_verification``.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, tee

from pipeline import aliases, batches, checkpoints, registry
from pipeline.aliases import AliasState
from pipeline.artifacts import EvaluationReport, ExportedModel, Record, StoredFile, TrainingRun
from pipeline.batches import BatchManifest
from pipeline.dataset_verification import verify_dataset
from pipeline.errors import SafelightError, StoreUnavailable
from pipeline.findings import Ledger, verify_pointer
from pipeline.progress import OnProgress, silent
from pipeline.registry import ModelManifest
from pipeline.sealing import unsealed
from pipeline.store import Store, promised
from pipeline.store_users import BATCHES
from pipeline.zones import Zones

RUN_RECORD = re.compile(
    r"[^/]+/(?P<what>result|evaluation/evaluation|export/export|checkpoints/[^/]+/checkpoint)\.json"
)
ALIAS = re.compile(r"(?P<model>[^/]+)/aliases/(?P<alias>[^/]+)\.json")


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


def verify(zones: Zones, *, on_progress: OnProgress = silent) -> Verification:
    """Read everything that is complete, and say what is not as it was written.

    Raises:
        StoreUnavailable: the store stayed away.
    """
    ledger = Ledger(on_progress)
    for dataset in zones.datasets.folders():
        verify_dataset(zones.images, zones.datasets, dataset, ledger)
    _verify_parts(zones.checkpoints, _run_parts(zones.checkpoints, ledger), ledger)
    _verify_parts(zones.models, _model_parts(zones.models, ledger), ledger)
    _verify_parts(zones.predictions, _batch_parts(zones.predictions, ledger), ledger)
    for found in zones.models.listing():
        if match := ALIAS.fullmatch(found.key):
            _verify_alias(zones.models, found.key, match["model"], match["alias"], ledger)
    broken = tuple(Broken(address=address, fault=fault) for address, fault in sorted(ledger.broken.items()))
    return Verification(counts=dict(sorted(ledger.counts.items())), broken=broken)


def _verify_parts(store: Store, parts: Iterable[Part], ledger: Ledger) -> None:
    """Read each part and compare it with what is promised, several at a time."""
    named, ahead = tee(parts)
    objects = (promised(part.file.key, part.file.size) for part in ahead)
    for part, (_, data) in zip(named, store.read_many(objects), strict=True):
        ledger.count(part.kind)
        if data is None:
            ledger.fault(store, part.file.key, f"is missing, though {part.named_by} names it", part.named_by)
        elif hashlib.sha256(data).hexdigest() != part.file.sha256:
            ledger.fault(store, part.file.key, f"was altered: {part.named_by} names other bytes", part.named_by)


def _records(
    store: Store, keys: re.Pattern[str], kind: str, ledger: Ledger, folder: str = ""
) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of each stored record whose key is of that form, below a folder."""
    for found, data in store.read_many(found for found in store.listing(folder) if keys.fullmatch(found.key)):
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


def _batch_parts(store: Store, ledger: Ledger) -> Iterator[Part]:
    """What the manifests of batch predictions name."""
    for key, data in _records(store, batches.MANIFEST_KEY, "batch predictions", ledger, BATCHES):
        try:
            manifest = unsealed(BatchManifest, data, key)
        except SafelightError as error:
            ledger.fault(store, key, error)
            continue
        yield from (Part(file, "files of batch predictions", key) for file in manifest.parts)


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
        canary = found[0].canary
        for version in (found[0].version, canary.challenger if canary else None):
            if version is not None:
                registry.read_manifest(store, model, version)
        return history_fault(found[0])

    ledger.count("aliases")
    verify_pointer(store, key, fault, ledger)


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
