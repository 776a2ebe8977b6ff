"""Who works on chunks of images where no Prefect does, by the one setting: ``SAFELIGHT_TASK_RUNNER``."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from pipeline import far_answering, far_packing, task_runners, worker_processes
from pipeline.packing import Chunk, PackedChunk
from pipeline.predict import MapParts
from pipeline.prepare import MapChunks
from pipeline.settings import Settings
from pipeline.task_runners import Item, Opening
from pipeline.zones import Zones

R = TypeVar("R")


def map_chunks(settings: Settings, zones: Zones) -> MapChunks:
    """What ``prepare`` may map its chunks with.

    With ``threads`` that is one chunk after another, each decoded by as many threads as there are cores.
    """
    if settings.task_runner == "threads":
        return map
    return _mapped(opening(settings), partial(far_packing.refuse_other_store, zones))


def map_parts(settings: Settings, zones: Zones) -> MapParts:
    """What ``predict`` may map its parts with; the same choice."""
    if settings.task_runner == "threads":
        return map
    chosen = _opening(settings, far_answering.answer_alone, far_answering.answer)
    return _mapped(chosen, partial(far_answering.refuse_other_store, zones))


def opening(settings: Settings) -> Opening[Chunk, PackedChunk]:
    """Processes of this machine, or a Dask cluster, for chunks of a preparation."""
    return _opening(settings, far_packing.pack_alone, far_packing.pack)


def _opening(settings: Settings, alone: Callable[[Item], R], work: Callable[[Item, int | None], R]) -> Opening[Item, R]:
    """Processes of this machine, each ``alone`` on its core, or a Dask cluster."""
    if settings.task_runner == "processes":
        return partial(worker_processes.opened, alone, worker_processes.number_of(settings.decode_threads))
    from distributed import Client  # noqa: PLC0415 - half a second and 30 MiB, for who has a cluster alone

    from pipeline import dask_cluster  # noqa: PLC0415 - the same

    return partial(
        dask_cluster.opened,
        settings.task_runner,
        lambda client, item, key: client.submit(work, item, None, key=key),
        client=Client,
        patience_s=settings.store_patience_s,
    )


def _mapped(chosen: Opening[Item, R], verified: Callable[[Item, R], R]) -> Callable[[Any, Iterable[Item]], Iterator[R]]:
    def mapped(_own: object, items: Iterable[Item]) -> Iterator[R]:
        for item, result in task_runners.spread(chosen, items):
            yield verified(item, result)

    return mapped
