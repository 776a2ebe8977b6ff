"""The steps that torch computes, with this machine's settings: what the flows and the command line share.

A step takes plain arguments and knows no settings; here each setting meets, once, the argument that it is for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from pipeline import datasets, evaluate, export, train
from pipeline.artifacts import DatasetVersion, EvaluationReport, ExportedModel, TrainConfig, TrainingRun
from pipeline.progress import OnProgress
from pipeline.settings import Settings
from pipeline.zones import Zones


def dataset_version(zones: Zones, dataset: str, version: str | None) -> DatasetVersion:
    """The named version of a dataset, or its newest.

    Raises:
        NotFound: there is none.
    """
    if version is None:
        return datasets.latest(zones.datasets, dataset)
    return datasets.find(zones.datasets, dataset, version)


def train_on(
    settings: Settings,
    zones: Zones,
    dataset: DatasetVersion,
    config: TrainConfig,
    *,
    fresh: bool,
    should_stop: Callable[[], bool],
    on_progress: OnProgress,
) -> TrainingRun:
    """``train.train``."""
    return train.train(
        zones,
        dataset,
        config,
        device=settings.device,
        fresh=fresh,
        should_stop=should_stop,
        on_progress=on_progress,
        **_room(settings),
    )


def export_run(settings: Settings, zones: Zones, run: TrainingRun, *, on_progress: OnProgress) -> ExportedModel:
    """``export.export``."""
    return export.export(zones, run, on_progress=on_progress, **_room(settings))


def evaluate_run(settings: Settings, zones: Zones, run: TrainingRun, *, on_progress: OnProgress) -> EvaluationReport:
    """``evaluate.evaluate``."""
    return evaluate.evaluate(zones, run, device=settings.device, on_progress=on_progress, **_room(settings))


class _Room(TypedDict):
    """How many MB of pixels a step may hold in memory, and the folder for more than that."""

    memory_mb: int
    scratch: Path


def _room(settings: Settings) -> _Room:
    return {"memory_mb": settings.training_memory_mb, "scratch": settings.cache}
