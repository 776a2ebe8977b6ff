"""What nothing refers to: found by pure decisions over listings and manifests, and removed.

What is never garbage: raw images; whatever a complete dataset version, the pointer to the newest, a complete model
version or an alias names; the result, the best checkpoint, the export and the evaluation of a finished training run;
all of an unfinished one, unless a person gives a limit for these; and whatever this program does not know.

Why nothing is removed that somebody is about to need:

- **Under the lease.** A preparation holds its dataset's lease while it looks that every part is stored and then writes
  the manifest that names them; a registration holds its model's. What they could complete is listed, decided upon and
  removed here under the same lease: what is removed was named by no manifest, and none is written before it is gone.
  A preparation that finds a part gone packs it again. This holds whatever the limit.
- **The limit** (a day by default) keeps the parts of a run under way, so that it need not do its work again. It is a
  second guard as well: a process that slept through the end of its lease would have to sleep a day.
- **One clock.** Ages are differences of the store's own times: "now" is when it stored a probe object.

Unfinished work goes before what only it names, so that this, killed at any point, leaves nothing that misleads.
"""

import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import aliases, buckets, checkpoints, dataset_versions, packing, registry, store_check, training_runs
from pipeline.artifacts import Record
from pipeline.errors import (
    Corrupted,
    InvalidInput,
    InvalidSettings,
    LeaseHeld,
    LeaseLost,
    ObjectMissing,
    StoreError,
)
from pipeline.leases import TTL_S, Lease
from pipeline.progress import OnProgress, Progress, silent
from pipeline.settings import ZONES, Settings, Zone
from pipeline.store import Store, StoredObject
from pipeline.zones import READ_BACK_ZONES, Zones

log = logging.getLogger(__name__)

BATCH = 200
"""Objects removed between two looks at the lease."""

DATASET_PART = re.compile(r"[^/]+/(?P<kind>shards|index)/[0-9a-f]{64}\.(safetensors|parquet)")
QUARANTINE_LIST = re.compile(r"[^/]+/quarantine/[0-9a-f]{16}\.jsonl")
RUN = re.compile(r"[0-9a-f]{16}")
MADE_OF_A_RUN = {"evaluation", "export"}
KINDS = {"shards": "shards that no version names", "index": "index segments that no version names"}


class Limits(Record):
    """How old an object must be before it counts as left behind.

    Attributes:
        older_than: for all that is not named below.
        quarantine: lists of images that were left out; the next preparation writes its list again.
        abandoned: since the last checkpoint of an unfinished training run; None keeps them all.
    """

    older_than: timedelta = timedelta(hours=24)
    quarantine: timedelta = timedelta(days=30)
    abandoned: timedelta | None = None


class Garbage(Record):
    """An object that nothing refers to: ``size`` in bytes, ``modified`` as the store says."""

    zone: Zone
    kind: str
    key: str
    size: int
    modified: datetime


class Sweep(Record):
    """What was found, whether it was removed, and sentences on what could not be judged and was left alone."""

    garbage: tuple[Garbage, ...]
    removed: bool
    left_alone: tuple[str, ...]


Find = Callable[[], list[Garbage]]


@dataclass(frozen=True, slots=True)
class Heap:
    """What is decided upon, and removed, together; ``guard`` keeps everybody off who could begin to need it."""

    name: str
    store: Store
    find: Find
    guard: Callable[[], AbstractContextManager[Lease]] | None = None


def sweep(zones: Zones, settings: Settings, limits: Limits, *, remove: bool, on_progress: OnProgress = silent) -> Sweep:
    """Find what nothing refers to, and ``remove`` it.

    Args:
        zones: read; with ``remove`` all but the images are written.
        settings: with which they were opened: where unfinished uploads are found, and the local cache.
        limits: what is too young to be judged.
        remove: False only looks; a probe object is written and removed all the same, to learn the store's time.
        on_progress: told of every dataset, model, training run and zone.

    Raises:
        StoreError: the store did not answer or refuses; what was removed by then stays removed.
    """
    now = {zone: store_time(getattr(zones, zone)) for zone in READ_BACK_ZONES}
    garbage: list[Garbage] = []
    left_alone: list[str] = []
    for number, heap in enumerate(_heaps(zones, now, limits, settings.home / "cache"), 1):
        try:
            garbage += _swept(heap, remove=remove)
        except (Corrupted, ObjectMissing, LeaseHeld, LeaseLost, InvalidInput) as error:
            left_alone.append(f"The {heap.name} is left alone: {error}")
        on_progress(Progress("looking for garbage", number, unit="places", note=f"{len(garbage):,} objects"))
    try:
        garbage += _swept_uploads(settings, min(now.values()), limits, remove=remove)
    except (StoreError, InvalidSettings) as error:
        left_alone.append(str(error))
    return Sweep(garbage=tuple(garbage), removed=remove, left_alone=tuple(left_alone))


def dataset_garbage(
    listing: Sequence[StoredObject], named: Collection[str], now: datetime, limits: Limits
) -> list[Garbage]:
    """What is garbage below ``<dataset>/``, given the keys that its versions and its pointer name.

    While a preparation leaves results of chunks, all that it might rely on stays.
    """
    found = [_garbage("datasets", "old lists of images left out", each) for each in listing if _is_list(each)]
    lists = _older(found, now, limits.quarantine)
    work = [each for each in listing if packing.is_work(each.key)]
    if any(now - each.modified <= limits.older_than for each in work):
        return lists
    unfinished = [_garbage("datasets", "results of unfinished preparations", each) for each in work]
    parts = [
        _garbage("datasets", KINDS[match["kind"]], each)
        for each in listing
        if (match := DATASET_PART.fullmatch(each.key)) and each.key not in named
    ]
    return [*_older([*unfinished, *parts], now, limits.older_than), *lists]


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
        return [_garbage("checkpoints", "abandoned training runs", each) for each in (*parts, *made, *leases)]
    kept = best.rpartition("/")[0] + "/"
    others = [each for each in parts if not each.key.startswith(kept)]
    found = [_garbage("checkpoints", "checkpoints of finished runs but the best", each) for each in others]
    found += [_garbage("checkpoints", "leases of finished runs", each) for each in leases]
    return _older(found, now, limits.older_than)


def model_garbage(
    listing: Sequence[StoredObject], live: Collection[str], now: datetime, limits: Limits
) -> list[Garbage]:
    """What is garbage below ``<model>/``: versions without a manifest that are old and in no alias (``live``)."""
    versions: dict[str, list[StoredObject]] = defaultdict(list)
    for each in listing:
        versions[each.key.split("/")[1]].append(each)
    found = []
    for version, files in versions.items():
        complete = any(registry.MANIFEST_KEY.fullmatch(each.key) for each in files)
        young = any(now - each.modified <= limits.older_than for each in files)
        if registry.VERSION_ID.fullmatch(version) and not (complete or young or version in live):
            found += [_garbage("models", "files of versions without a manifest", each) for each in files]
    return found


def summary(swept: Sweep) -> list[str]:
    """What was found, in lines for a person: by zone and kind the number of objects and of bytes."""
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for each in swept.garbage:
        kinds[each.zone, each.kind].append(each.size)
    lines = [f"{zone:<12}{len(sizes):>9,} {sum(sizes):>16,} bytes  {kind}" for (zone, kind), sizes in kinds.items()]
    if not lines:
        return ["There is nothing that nothing refers to."]
    return [
        *lines,
        "All of this was removed." if swept.removed else "Nothing was removed; --delete removes all of this.",
    ]


def _heaps(zones: Zones, now: Mapping[Zone, datetime], limits: Limits, cache: Path) -> Iterator[Heap]:
    for dataset in _named(zones.datasets):
        yield Heap(
            f"dataset {dataset}",
            zones.datasets,
            partial(_find_in_dataset, zones.datasets, dataset, now["datasets"], limits, cache),
            partial(dataset_versions.hold, zones.datasets, dataset),
        )
    for run in _named(zones.checkpoints):
        if RUN.fullmatch(run):
            yield _run_heap(zones.checkpoints, run, now["checkpoints"], limits)
    for model in _named(zones.models):
        yield Heap(
            f"model {model}",
            zones.models,
            partial(_find_in_model, zones.models, model, now["models"], limits),
            partial(registry.hold, zones.models, model),
        )
    for zone in READ_BACK_ZONES:
        store: Store = getattr(zones, zone)
        yield Heap(f"zone {zone}", store, partial(_find_scratch, store, zone, now[zone], limits))


def _named(store: Store) -> list[str]:
    return [folder for folder in store.folders() if folder != store_check.FOLDER]


def _run_heap(store: Store, run: str, now: datetime, limits: Limits) -> Heap:
    """Nobody writes to a finished run any more; an unfinished one is taken over before it is given up."""
    find = partial(_find_in_run, store, run, now, limits)
    name = f"training run {run}"
    if training_runs.is_finished(store, run):
        return Heap(name, store, find)

    return Heap(name, store, find, partial(training_runs.acquire, store, run, wait_s=2 * TTL_S))


def _find_in_dataset(store: Store, dataset: str, now: datetime, limits: Limits, cache: Path | None) -> list[Garbage]:
    listing = list(store.listing(dataset))
    return dataset_garbage(listing, dataset_versions.named_keys(store, dataset, cache), now, limits)


def _find_in_run(store: Store, run: str, now: datetime, limits: Limits) -> list[Garbage]:
    best = training_runs.find(store, run).checkpoint if training_runs.is_finished(store, run) else None
    return run_garbage(list(store.listing(run)), best, now, limits)


def _find_in_model(store: Store, model: str, now: datetime, limits: Limits) -> list[Garbage]:
    live = {version for version in aliases.list_aliases(store, model).values() if version}
    return model_garbage(list(store.listing(model)), live, now, limits)


def _find_scratch(store: Store, zone: Zone, now: datetime, limits: Limits) -> list[Garbage]:
    listing = store.listing(store_check.FOLDER)
    return _older([_garbage(zone, "proofs of the store", each) for each in listing], now, limits.older_than)


def _swept_uploads(settings: Settings, now: datetime, limits: Limits, *, remove: bool) -> list[Garbage]:
    """Uploads in parts that nobody finishes: not this program's own, which sends every object whole."""
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    if not (settings.s3_endpoint and key and secret):
        raise InvalidSettings("Unfinished uploads were not looked for: the settings name no endpoint and credentials.")
    who = (settings.s3_endpoint, key.get_secret_value(), secret.get_secret_value(), settings.s3_region)
    found = []
    for zone in ZONES:
        url = urlsplit(settings.zone_url(zone))
        prefix = f"{url.path.strip('/')}/".lstrip("/")
        uploads = buckets.unfinished_uploads(*who, bucket=url.netloc, prefix=prefix)
        old = [each for each in uploads if now - each.begun > limits.older_than]
        if remove:
            buckets.abort_uploads(*who, bucket=url.netloc, uploads=old)
        keys = [StoredObject(each.key.removeprefix(prefix), 0, "", each.begun) for each in old]
        found += [_garbage(zone, "unfinished uploads", each) for each in keys]
    return found


def store_time(store: Store) -> datetime:
    """What time it is to the store itself."""
    key = f"{store_check.FOLDER}/{secrets.token_hex(8)}"
    store.put(key, b"")
    try:
        found = store.head(key)
    finally:
        store.delete([key])
    if found is None:
        raise ObjectMissing(f"{store.url}/{key} was removed by somebody else at once; try again.")
    return found.modified


def _swept(heap: Heap, *, remove: bool) -> list[Garbage]:
    found = heap.find()
    if not (found and remove):
        return found
    if heap.guard is None:
        _remove(heap.store, found, may_write=lambda: None)
        return found
    with heap.guard() as lease:
        found = heap.find()  # what was named meanwhile is none any more
        _remove(heap.store, [each for each in found if each.key != lease.key], may_write=lease.check)
        if any(each.key == lease.key for each in found):
            # It keeps the fence for as long as a checkpoint could bear it: until everything else is gone.
            lease.end()
    return found


def _remove(store: Store, garbage: Sequence[Garbage], *, may_write: Callable[[], None]) -> None:
    keys = sorted((each.key for each in garbage), key=_rank)
    for _, group in groupby(keys, key=_rank):
        wave = list(group)
        for start in range(0, len(wave), BATCH):
            may_write()
            store.delete(wave[start : start + BATCH])
    log.info("%s: removed %d objects", store.url, len(keys))


def _rank(key: str) -> int:
    """What says that other objects are there goes before these."""
    return 0 if packing.is_work(key) or key.endswith(f"/{checkpoints.MANIFEST}") else 1


def _is_list(each: StoredObject) -> bool:
    return QUARANTINE_LIST.fullmatch(each.key) is not None


def _garbage(zone: Zone, kind: str, each: StoredObject) -> Garbage:
    return Garbage(zone=zone, kind=kind, key=each.key, size=each.size, modified=each.modified)


def _older(found: list[Garbage], now: datetime, limit: timedelta) -> list[Garbage]:
    return [each for each in found if now - each.modified > limit]
