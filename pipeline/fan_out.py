"""Who packs the chunks of a preparation that no Prefect runs, by the one setting: ``SAFELIGHT_TASK_RUNNER``."""

from collections.abc import Iterable, Iterator
from functools import partial

from pipeline import far_packing, prepare, task_runners, worker_processes
from pipeline.packing import Chunk, PackedChunk
from pipeline.prepare import MapChunks
from pipeline.settings import Settings
from pipeline.task_runners import Opening
from pipeline.zones import Zones


def map_chunks(settings: Settings, zones: Zones) -> MapChunks:
    """What ``prepare`` may map its chunks with.

    With ``threads`` that is one chunk after another, each decoded by as many threads as there are cores.
    """
    if settings.task_runner == "threads":
        return prepare.one_by_one
    chosen = opening(settings)

    def mapped(_own: object, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
        for chunk, packed in task_runners.spread(chosen, chunks):
            yield far_packing.refuse_other_store(zones, chunk, packed)

    return mapped


def opening(settings: Settings) -> Opening[Chunk, PackedChunk]:
    """Processes of this machine, or a Dask cluster."""
    if settings.task_runner == "processes":
        count = worker_processes.number_of(settings.decode_threads)
        return partial(worker_processes.opened, far_packing.pack_alone, count)
    from distributed import Client  # noqa: PLC0415 - half a second and 30 MiB, for who has a cluster alone

    from pipeline import dask_cluster  # noqa: PLC0415 - the same

    return partial(
        dask_cluster.opened,
        settings.task_runner,
        lambda client, chunk, key: client.submit(far_packing.pack, chunk, None, key=key),
        client=Client,
        patience_s=settings.store_patience_s,
    )
