"""What nothing refers to (``unreferenced`` says what that is), found and removed.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import (
    aliases,
    batches,
    buckets,
    checkpoints,
    dataset_versions,
    packing,
    registry,
    store_check,
    training_runs,
    unreferenced,
)
from pipeline.artifacts import Record
from pipeline.errors import (
    Corrupted,
    InvalidInput,
    InvalidSettings,
    LeaseHeld,
    LeaseLost,
    NotFound,
    ObjectMissing,
    StoreError,
)
from pipeline.leases import TTL_S, Lease
from pipeline.progress import OnProgress, Progress, silent
from pipeline.settings import ZONES, Settings, Zone
from pipeline.store import Store, StoredObject
from pipeline.store_users import BATCHES
from pipeline.unreferenced import Garbage, Limits
from pipeline.zones import READ_BACK_ZONES, Zones

log = logging.getLogger(__name__)

BATCH = 200
"""Objects removed between two looks at the lease."""

RUN = re.compile(r"[0-9a-f]{16}")


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
    for number, heap in enumerate(_heaps(zones, now, limits, settings.cache), 1):
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
    yield from _batch_heaps(zones.predictions, now["models"], limits)
    for model in zones.predictions.folders() if limits.predictions else ():
        yield Heap(
            f"prediction log of {model}",
            zones.predictions,
            partial(_find_predictions, zones.predictions, model, now["models"], limits),
        )
    for zone in READ_BACK_ZONES:
        store: Store = getattr(zones, zone)
        yield Heap(f"zone {zone}", store, partial(_find_scratch, store, zone, now[zone], limits))


def _batch_heaps(store: Store, now: datetime, limits: Limits) -> Iterator[Heap]:
    """What has no plan, listing or lease any more is complete, and no garbage."""
    for model in store.folders(BATCHES):
        for name in store.folders(f"{BATCHES}/{model}/{batches.WORK}"):
            place = batches.Place(model, name)
            yield Heap(
                f"batch prediction {name} of model {model}",
                store,
                partial(_find_in_batch, store, place, now, limits),
                partial(batches.hold, store, place, wait_s=2 * batches.LEASE_TTL_S),
            )


def _named(store: Store) -> list[str]:
    return [folder for folder in store.folders() if folder != store_check.FOLDER]


def _run_heap(store: Store, run: str, now: datetime, limits: Limits) -> Heap:
    """Nobody writes to a finished run any more; an unfinished one is taken over before it is given up."""
    find = partial(_find_in_run, store, run, now, limits)
    name = f"training run {run}"
    if training_runs.is_finished(store, run):
        return Heap(name, store, find)
    return Heap(name, store, find, partial(training_runs.acquire, store, run, wait_s=2 * TTL_S))


def _find_in_dataset(store: Store, dataset: str, now: datetime, limits: Limits, cache: Path) -> list[Garbage]:
    listing = list(store.listing(dataset))
    return unreferenced.dataset_garbage(listing, dataset_versions.named_keys(store, dataset, cache), now, limits)


def _find_in_run(store: Store, run: str, now: datetime, limits: Limits) -> list[Garbage]:
    try:
        best = training_runs.find(store, run).checkpoint
    except NotFound:  # it is not finished
        best = None
    return unreferenced.run_garbage(list(store.listing(run)), best, now, limits)


def _find_in_model(store: Store, model: str, now: datetime, limits: Limits) -> list[Garbage]:
    live = aliases.versions_in_use(store, model)
    return unreferenced.model_garbage(list(store.listing(model)), live, now, limits)


def _find_in_batch(store: Store, place: batches.Place, now: datetime, limits: Limits) -> list[Garbage]:
    made, work = (list(store.listing(folder)) for folder in (place.folder, place.work))
    return unreferenced.batch_garbage(made, work, now, limits)


def _find_predictions(store: Store, model: str, now: datetime, limits: Limits) -> list[Garbage]:
    """Nobody needs a file of a past day to stay, and none is written any more: no lease."""
    days = unreferenced.days_of_predictions(store.folders(model), now, limits)
    return [
        unreferenced.garbage("predictions", "predictions of days that are kept no more", each)
        for day in days
        for each in store.listing(f"{model}/{day}")
    ]


def _find_scratch(store: Store, zone: Zone, now: datetime, limits: Limits) -> list[Garbage]:
    listing = store.listing(store_check.FOLDER)
    return unreferenced.older(
        [unreferenced.garbage(zone, "proofs of the store", each) for each in listing], now, limits.older_than
    )


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
        found += [unreferenced.garbage(zone, "unfinished uploads", each) for each in keys]
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
    """What says that other objects are there goes before these; what a batch was made by, after what it made."""
    if key.startswith(f"{BATCHES}/"):
        return batches.removal_rank(key)
    return 0 if packing.is_work(key) or key.endswith(f"/{checkpoints.MANIFEST}") else 1
