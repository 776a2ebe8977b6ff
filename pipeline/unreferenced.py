"""Which stored objects nothing refers to: decided from listings and from what manifests name, as plain values.

What is never garbage: raw images; whatever a complete dataset version, the pointer to the newest, a complete model
version or an alias names; the result, the best checkpoint, the export and the evaluation of a finished training run;
all of an unfinished one, unless a person gives a limit for these; a batch prediction with a manifest; and whatever this
program does not know.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import date, datetime, timedelta

from pipeline import batches, checkpoints, packing, registry, training_runs
from pipeline.artifacts import Record
from pipeline.settings import Zone
from pipeline.store import StoredObject

DATASET_PART = re.compile(r"[^/]+/(?P<kind>shards|index)/[0-9a-f]{64}\.(safetensors|parquet)")
QUARANTINE_LIST = re.compile(r"[^/]+/quarantine/[0-9a-f]{16}\.jsonl")
TURN = re.compile(r"[^/]+/(preparing|deploying)\.json")
"""Whose turn it is; renewed every few seconds, and gone when that is over."""
MADE_OF_A_RUN = {"evaluation", "export"}
KINDS = {"shards": "shards that no version names", "index": "index segments that no version names"}


class Limits(Record):
    """How old an object must be before it counts as left behind.

    Attributes:
        older_than: for all that is not named below.
        quarantine: lists of images that were left out; the next preparation writes its list again.
        predictions: files of the prediction log, by the day that their key names; None keeps them all.
        abandoned: since the last checkpoint of an unfinished training run; None keeps them all.
    """

    older_than: timedelta = timedelta(hours=24)
    quarantine: timedelta = timedelta(days=30)
    abandoned: timedelta | None = None
    predictions: timedelta | None = None


class Garbage(Record):
    """An object that nothing refers to: ``size`` in bytes, ``modified`` as the store says."""

    zone: Zone
    kind: str
    key: str
    size: int
    modified: datetime


def dataset_garbage(
    listing: Sequence[StoredObject], named: Collection[str], now: datetime, limits: Limits
) -> list[Garbage]:
    """What is garbage below ``<dataset>/``, given the keys that its versions and its pointer name.

    While a preparation leaves results of chunks, all that it might rely on stays.
    """
    found = [garbage("datasets", "old lists of images left out", each) for each in listing if _is_list(each)]
    left = [*older(found, now, limits.quarantine), *_left_turns("datasets", listing, now, limits)]
    work = [each for each in listing if packing.is_work(each.key)]
    if any(now - each.modified <= limits.older_than for each in work):
        return left
    unfinished = [garbage("datasets", "results of unfinished preparations", each) for each in work]
    parts = [
        garbage("datasets", KINDS[match["kind"]], each)
        for each in listing
        if (match := DATASET_PART.fullmatch(each.key)) and each.key not in named
    ]
    return [*older([*unfinished, *parts], now, limits.older_than), *left]


def run_garbage(listing: Sequence[StoredObject], best: str | None, now: datetime, limits: Limits) -> list[Garbage]:
    """What is garbage below ``<training run>/``, given the key of a finished run's best checkpoint.

    An unfinished run (``best`` is None) is given up as a whole, when all of it is old enough.
    """
    parts = [each for each in listing if checkpoints.is_part(each.key)]
    leases = [each for each in listing if each.key == training_runs.lease_key(each.key.partition("/")[0])]
    if best is None:
        limit = limits.abandoned
        made = [each for each in listing if each.key.split("/")[1] in MADE_OF_A_RUN]
        # The lease's own age proves nothing, and need not: it is taken before anything is removed.
        if limit is None or any(now - each.modified <= limit for each in (*parts, *made)):
            return []
        return [garbage("checkpoints", "abandoned training runs", each) for each in (*parts, *made, *leases)]
    kept = best.rpartition("/")[0] + "/"
    others = [each for each in parts if not each.key.startswith(kept)]
    found = [garbage("checkpoints", "checkpoints of finished runs but the best", each) for each in others]
    found += [garbage("checkpoints", "leases of finished runs", each) for each in leases]
    return older(found, now, limits.older_than)


def model_garbage(
    listing: Sequence[StoredObject], live: Collection[str], now: datetime, limits: Limits
) -> list[Garbage]:
    """What is garbage below ``<model>/``: old versions without a manifest and in no alias (``live``), a left lease."""
    versions: dict[str, list[StoredObject]] = defaultdict(list)
    for each in listing:
        versions[each.key.split("/")[1]].append(each)
    found = _left_turns("models", listing, now, limits)
    for version, files in versions.items():
        complete = any(registry.MANIFEST_KEY.fullmatch(each.key) for each in files)
        young = any(now - each.modified <= limits.older_than for each in files)
        if registry.VERSION_ID.fullmatch(version) and not (complete or young or version in live):
            found += [garbage("models", "files of versions without a manifest", each) for each in files]
    return found


def batch_garbage(
    made: Sequence[StoredObject], work: Sequence[StoredObject], now: datetime, limits: Limits
) -> list[Garbage]:
    """What is garbage of a batch prediction, given its own folder and that of its plan, listing and lease.

    Without a manifest it is given up as a whole, when all of it is old enough; with one, what lies apart goes.
    """
    complete = any(batches.MANIFEST_KEY.fullmatch(each.key) for each in made)
    found = work if complete else [*made, *work]
    # As with training runs, the lease's own age proves nothing.
    if any(now - each.modified <= limits.older_than for each in found if not batches.is_lease(each.key)):
        return []
    kind = "plans of finished batch predictions" if complete else "unfinished batch predictions"
    return [garbage("predictions", kind, each) for each in found]


def days_of_predictions(folders: Iterable[str], now: datetime, limits: Limits) -> list[str]:
    """Which of the folders of a model's prediction log, ``date=YYYY-MM-DD``, are of days that are kept no more."""
    if limits.predictions is None:
        return []
    last = (now - limits.predictions).date()
    return [folder for folder in folders if (day := _day(folder)) and day < last]


def _day(folder: str) -> date | None:
    """The day that a folder is named after; None where it is named otherwise."""
    name, _, day = folder.partition("=")
    try:
        return date.fromisoformat(day) if name == "date" else None
    except ValueError:
        return None


def _left_turns(zone: Zone, listing: Sequence[StoredObject], now: datetime, limits: Limits) -> list[Garbage]:
    turns = [garbage(zone, "leases of killed processes", each) for each in listing if TURN.fullmatch(each.key)]
    return older(turns, now, limits.older_than)


def _is_list(each: StoredObject) -> bool:
    return QUARANTINE_LIST.fullmatch(each.key) is not None


def garbage(zone: Zone, kind: str, each: StoredObject) -> Garbage:
    """A line of a listing of ``zone``, as garbage."""
    return Garbage(zone=zone, kind=kind, key=each.key, size=each.size, modified=each.modified)


def older(found: list[Garbage], now: datetime, limit: timedelta) -> list[Garbage]:
    """What of it is older than a limit."""
    return [each for each in found if now - each.modified > limit]
