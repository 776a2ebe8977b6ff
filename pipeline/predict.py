"""Batch prediction: everything below a prefix → a row of Parquet for each object, answered by one model version.

Gather (resolve the version, list the objects), decide what the batch is (the digest of both), store that plan, answer
part by part, write the manifest. Killed at any point it goes on with the parts that are missing, by the same listing
and the same version; finished, it is found.

- **Without a name** a batch is named by its content: another listing, or another version, is another batch. One that is
  unfinished is finished first, where the same is asked for again.
- **A name** belongs to one batch for good. Asking for something else under it is refused.
- One at a time makes a batch, under a lease; whoever comes second waits, and finds it done.
- The listing lies on this machine's disk until it is stored: memory does not grow with the number of objects.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from pipeline import aliases, answering, batch_plans, batches, freed_memory, registry
from pipeline.artifacts import Record, utc_now
from pipeline.batch_plans import LISTED, Plan
from pipeline.batches import BatchManifest, BatchPart, Part, Place
from pipeline.errors import Conflict, InvalidInput, NotFound
from pipeline.progress import OnProgress, Progress, silent
from pipeline.rows_on_disk import Rows, Sorter
from pipeline.store import Store
from pipeline.zones import Zones

LISTED_AT_ONCE = 4096
AnswerPart: TypeAlias = Callable[[Part], BatchPart]
MapParts: TypeAlias = Callable[[AnswerPart, Iterable[Part]], Iterable[BatchPart]]


class BatchResult(Record):
    """What a batch prediction came to.

    Attributes:
        address: the URL of the folder that holds the Parquet files.
        new: False where the store held these answers already.
        found: parts that were there, left by a run that was killed; of all parts where nothing is new.
        manifest: as it is stored beside the files.
    """

    address: str
    new: bool
    found: int
    manifest: BatchManifest


@dataclass(frozen=True, slots=True)
class Question:
    """What a person asks for; ``version`` is an id, an alias, or None for the champion, ``name`` None for none."""

    source: str
    prefix: str
    model: str
    version: str | None
    name: str | None

    @property
    def asked(self) -> str:
        """The version or alias."""
        return self.version or aliases.CHAMPION


@dataclass(frozen=True, slots=True)
class Work:
    """A batch that is to be made.

    Attributes:
        plan: with its segments, or as it will be stored.
        listing: on this machine's disk; None where the plan is stored already.
        part_rows: objects of a part.
    """

    place: Place
    plan: Plan
    listing: Rows | None = None
    part_rows: int = 0


def predict(
    zones: Zones,
    model: str,
    prefix: str,
    *,
    version: str | None = None,
    name: str | None = None,
    open_source: Callable[[str], Store] | None = None,
    map_parts: MapParts = map,
    decode_threads: int | None = None,
    scratch: Path | None = None,
    on_progress: OnProgress = silent,
) -> BatchResult:
    """Answer everything that is stored below a prefix, or find the answers that are there.

    Args:
        zones: read: images and models; written: predictions.
        model: its name.
        prefix: a folder of the images zone, or ``s3://bucket/folder`` of the same store.
        version: an id or an alias; by default the champion.
        name: of the batch; by default it is named by what is asked.
        open_source: opens a bucket of the same store by its URL; None: only the images zone is read.
        map_parts: how parts are answered: takes a function and parts, returns a result per part, in any order;
            by default one after the other in this process, since each one uses all cores already.
        decode_threads: images decoded at once per part; by default one per core.
        scratch: a folder of this machine for the listing; by default the system's own.
        on_progress: told while listing and after each part.

    Raises:
        NotFound: there is no such model or version, or nothing is stored below the prefix.
        InvalidInput: the prefix is none, or the name belongs to another batch.
        Conflict: what it had begun was removed meanwhile.
        StoreError: an object was altered, or the store stayed away or refuses.
    """
    url, folder = batch_plans.address(prefix, zones.images.url)
    source = (open_source or _only(zones.images))(url)
    question = Question(url, folder, model, version, name)
    models, predictions = zones.models, zones.predictions
    freed_memory.keep_little()
    work = _begun(models, predictions, question) or _drafted(source, models, question, scratch, on_progress)
    place, found = work.place, None
    answer = partial(answering.answer_part, source, models, predictions, decode_threads=decode_threads)
    if (complete := batches.read_manifest(predictions, place)) is None:
        with batches.hold(predictions, place, on_progress) as lease:
            if (complete := batches.read_manifest(predictions, place)) is None:
                plan = _stored_plan(predictions, work)
                parts, found = _answered(predictions, place, plan, partial(map_parts, answer), on_progress)
                lease.check()
                complete = batches.write_manifest(predictions, place, _manifest(models, place, plan, parts))
            batches.clear_work(predictions, place)
            lease.end()
    if complete.identity != work.plan.identity:
        raise _taken(place, complete)
    return BatchResult(
        address=f"{predictions.url}/{place.folder}",
        new=found is not None,
        found=len(complete.parts) if found is None else found,
        manifest=complete,
    )


def summary(result: BatchResult) -> list[str]:
    """What a batch came to, in lines for a person."""
    batch = result.manifest
    how = "" if result.new else " (as answered before)"
    lines = [
        f"{batch.model} {batch.version} answered {batch.answered:,} of {batch.objects:,} objects below "
        f"{batch.source}/{batch.prefix}, as listed at {batch.listed_at:%Y-%m-%d %H:%M:%S} UTC{how}",
        *(f"no answer, {reason}: {count:,}" for reason, count in batch.left_out.items()),
        f"{len(batch.parts):,} Parquet files: {result.address}/",
    ]
    if result.new and result.found:
        lines.insert(1, f"{result.found:,} of {len(batch.parts):,} files were there, from a run before this one")
    return lines


def _only(images: Store) -> Callable[[str], Store]:
    """Opens the images zone, and nothing else."""

    def opened(url: str) -> Store:
        if url != images.url:
            raise InvalidInput(f"{url} is not the images zone: give a folder of {images.url}.")
        return images

    return opened


def _begun(models: Store, predictions: Store, question: Question) -> Work | None:
    """The unfinished batch that this question is about, if there is one."""
    registry.check_name("model", question.model)
    if question.name is None:
        for place, plan in batch_plans.unfinished(predictions, question.model):
            if place.name == plan.identity[:16] and _is_asked(plan, question) and plan.asked == question.asked:
                return Work(place, plan)
        return None
    registry.check_name("batch", question.name)
    place = Place(question.model, question.name)
    found = batch_plans.read_plan(predictions, place)
    if found is None or batches.read_manifest(predictions, place) is not None:
        return None
    version = question.version and aliases.resolve(models, question.model, question.version).version
    if not _is_asked(found, question) or version not in (None, found.version):
        raise _taken(place, found)
    return Work(place, found)


def _is_asked(plan: Plan, question: Question) -> bool:
    return (plan.source, plan.prefix, plan.model) == (question.source, question.prefix, question.model)


def _drafted(source: Store, models: Store, question: Question, scratch: Path | None, on_progress: OnProgress) -> Work:
    """What is there now, and who answers."""
    version = aliases.resolve(models, question.model, question.asked).version
    classes = registry.read_manifest(models, question.model, version).classes
    listing = _listed(source, question.prefix, scratch, on_progress)
    if not len(listing):
        raise NotFound(f"Nothing is stored below {source.url}/{question.prefix}/: check the prefix, which is a folder.")
    plan = Plan(
        identity=batch_plans.identity(source.url, question.prefix, question.model, version, listing),
        source=source.url,
        prefix=question.prefix,
        model=question.model,
        asked=question.asked,
        version=version,
        listed_at=utc_now(),
        objects=len(listing),
        segments=(),
    )
    place = Place(question.model, question.name or plan.identity[:16])
    return Work(place, plan, listing, max(1, min(batch_plans.PART_OBJECTS, batch_plans.PART_NUMBERS // len(classes))))


def _listed(source: Store, prefix: str, scratch: Path | None, on_progress: OnProgress) -> Rows:
    """Everything below a prefix, by key."""
    sorter, count = Sorter(scratch, LISTED), 0
    listing = source.listing(prefix)
    while some := list(islice(listing, LISTED_AT_ONCE)):
        columns = {"key": [each.key for each in some], "size": [each.size for each in some]}
        sorter.add(pa.table(columns | {"etag": [each.etag for each in some]}, schema=LISTED))
        count += len(some)
        on_progress(Progress("listing objects", count, unit="objects"))
    return sorter.rows()


def _stored_plan(predictions: Store, work: Work) -> Plan:
    """The plan by which the batch is made, stored."""
    place, wanted = work.place, work.plan
    plan = batch_plans.read_plan(predictions, place)
    if plan is None and work.listing is not None:
        segments = batch_plans.write_listing(predictions, place, batch_plans.cut(work.listing, work.part_rows))
        plan = batch_plans.write_plan(predictions, place, wanted.model_copy(update={"segments": segments}))
    if plan is None:
        raise Conflict(f"The batch {place.name} of model {place.model} was removed meanwhile: predict again.")
    if plan.identity != wanted.identity:
        raise _taken(place, plan)
    return plan


def _answered(
    predictions: Store,
    place: Place,
    plan: Plan,
    mapped: Callable[[Iterable[Part]], Iterable[BatchPart]],
    on_progress: OnProgress,
) -> tuple[list[BatchPart], int]:
    """All parts, those that are missing answered now, and how many were there."""
    parts = batch_plans.parts_of(place, plan)
    by_key = {each.key: each for each in parts}
    stored = [each for each in predictions.listing(place.folder) if each.key in by_key]
    done: dict[str, BatchPart] = {}
    for each, data in predictions.read_many(stored):
        if data is not None:
            done[each.key] = batches.described(predictions, by_key[each.key], data)
    found, rows = len(done), sum(part.rows for part in done.values())
    on_progress(Progress("answering", rows, plan.objects, note=f"{found:,} parts were there" if found else ""))
    for part in mapped([each for each in parts if each.key not in done]):
        done[part.key] = part
        rows += part.rows
        freed_memory.give_back()
        on_progress(Progress("answering", rows, plan.objects))
    return [done[each.key] for each in parts], found


def _manifest(models: Store, place: Place, plan: Plan, parts: list[BatchPart]) -> BatchManifest:
    version = registry.read_manifest(models, plan.model, plan.version)
    left_out: Counter[str] = Counter()
    for part in parts:
        left_out.update(part.left_out)
    return BatchManifest(
        name=place.name,
        identity=plan.identity,
        model=plan.model,
        version=plan.version,
        dataset_version=version.dataset.version,
        classes=version.classes,
        source=plan.source,
        prefix=plan.prefix,
        listed_at=plan.listed_at,
        created_at=utc_now(),
        objects=plan.objects,
        answered=sum(part.answered for part in parts),
        left_out=dict(sorted(left_out.items())),
        parts=tuple(parts),
    )


def _taken(place: Place, by: Plan | BatchManifest) -> InvalidInput:
    return InvalidInput(
        f"The name {place.name!r} is taken: it stands for the answers of {by.model} {by.version} to the {by.objects:,} "
        f"objects that were below {by.source}/{by.prefix} at {by.listed_at:%Y-%m-%d %H:%M:%S} UTC; choose another name."
    )
