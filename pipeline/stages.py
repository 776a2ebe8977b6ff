"""Steps with this machine's settings: what the flows and the command line share.

A step takes plain arguments and knows no settings; here each setting meets, once, the argument that it is for.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypedDict

from pipeline import (
    datasets,
    evaluate,
    export,
    far_answering,
    fashion_mnist,
    leases,
    predict,
    prepare,
    raw,
    sources,
    task_runners,
    train,
)
from pipeline.artifacts import (
    DatasetVersion,
    EvaluationReport,
    ExportedModel,
    PrepareConfig,
    TrainConfig,
    TrainingRun,
)
from pipeline.predict import BatchResult, MapParts
from pipeline.prepare import MapChunks, PrepareResult
from pipeline.progress import OnProgress
from pipeline.ranks import ALONE, Ranks
from pipeline.settings import Settings
from pipeline.sources import ImportReport
from pipeline.zones import Zones

PREPARING_TTL_S = 15.0
"""Seconds without a sign of life after which another preparation of the dataset no longer waits."""


def import_fashion_mnist(
    settings: Settings, zones: Zones, dataset: str, *, per_class: int | None, on_progress: OnProgress
) -> ImportReport:
    """``sources.import_fashion_mnist``, all of it or about ``per_class`` images of each class."""
    limit = None if per_class is None else per_class * len(fashion_mnist.CLASSES)
    return sources.import_fashion_mnist(
        zones, dataset, limit=limit, cache_dir=settings.home / "downloads", on_progress=on_progress
    )


def prepare_dataset(
    settings: Settings,
    zones: Zones,
    dataset: str,
    config: PrepareConfig,
    *,
    map_chunks: MapChunks,
    on_progress: OnProgress,
) -> PrepareResult:
    """``prepare.prepare``, one at a time for each dataset: whoever comes second waits, and finds the work done.

    Two at once would be right as well, and read every image twice.
    """
    raw.check_dataset_name(dataset)
    key, what = f"{dataset}/preparing.json", f"the preparation of dataset {dataset}"
    with leases.acquire(zones.datasets, key, what, ttl_s=PREPARING_TTL_S, on_progress=on_progress) as lease:
        lease.end()  # nothing is left to be said once this block is over
        return prepare.prepare(
            zones,
            dataset,
            config,
            map_chunks=map_chunks,
            chunks=task_runners.least_items(settings.task_runner),
            decode_threads=settings.decode_threads,
            cache=settings.cache,
            on_progress=on_progress,
        )


def dataset_version(zones: Zones, dataset: str, version: str | None, group: Ranks = ALONE) -> DatasetVersion:
    """The named version of a dataset, or its newest; for all ranks of a group the one that the first finds.

    Raises:
        NotFound: there is none.
    """
    if not group.first:
        return datasets.find(zones.datasets, dataset, group.listen())
    found = datasets.find(zones.datasets, dataset, version) if version else datasets.latest(zones.datasets, dataset)
    group.say(found.version)
    return found


def train_on(
    settings: Settings,
    zones: Zones,
    dataset: DatasetVersion,
    config: TrainConfig,
    *,
    fresh: bool | str,
    group: Ranks = ALONE,
    should_stop: Callable[[], bool],
    on_progress: OnProgress,
) -> TrainingRun:
    """``train.train``."""
    return train.train(
        zones,
        dataset,
        config,
        device=settings.device,
        images_at_once=settings.training_images_at_once,
        fresh=fresh,
        group=group,
        should_stop=should_stop,
        on_progress=on_progress,
        disk_mb=settings.training_disk_mb,
        **_room(settings),
    )


def export_run(settings: Settings, zones: Zones, run: TrainingRun, *, on_progress: OnProgress) -> ExportedModel:
    """``export.export``."""
    return export.export(zones, run, on_progress=on_progress, **_room(settings))


def evaluate_run(settings: Settings, zones: Zones, run: TrainingRun, *, on_progress: OnProgress) -> EvaluationReport:
    """``evaluate.evaluate``."""
    return evaluate.evaluate(zones, run, device=settings.device, on_progress=on_progress, **_room(settings))


def predict_batch(
    settings: Settings,
    zones: Zones,
    model: str,
    prefix: str,
    *,
    version: str | None,
    name: str | None,
    map_parts: MapParts,
    on_progress: OnProgress,
) -> BatchResult:
    """``predict.predict``."""
    return predict.predict(
        zones,
        model,
        prefix,
        version=version,
        name=name,
        open_source=partial(far_answering.source_at, settings, zones),
        map_parts=map_parts,
        decode_threads=settings.decode_threads,
        scratch=settings.cache,
        on_progress=on_progress,
    )


class _Room(TypedDict):
    """How many MB of pixels a step may hold in memory, and the folder for more than that."""

    memory_mb: int
    scratch: Path


def _room(settings: Settings) -> _Room:
    return {"memory_mb": settings.training_memory_mb, "scratch": settings.cache}
