"""Who runs the mapped tasks of a flow, by the one setting: Prefect's process pool, or a Dask cluster by prefect-dask.

**No password goes through the scheduler.** prefect-dask sends the settings of the flow run along with each task, and
among them the one with which Prefect's API is asked. Here they stay: a worker has the settings of its own environment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

from distributed import Client
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.tasks import Task
from prefect.utilities.annotations import quote
from prefect_dask.client import PrefectDaskClient

from pipeline import dask_cluster, worker_processes
from pipeline.settings import Settings
from pipeline.task_runners import Opening, Promise, Runner


class _OwnSettings(Client):
    """Takes the settings out of what a flow run tells its tasks; stands between prefect-dask's client and Dask's."""

    def submit(self, *args: Any, **kwargs: Any) -> Promise:
        """As Dask's."""
        return super().submit(*args, **kwargs | {"context": kwargs["context"] | {"settings_context": {}}})


class TaskClient(PrefectDaskClient, _OwnSettings):
    """prefect-dask's client, whose tasks run with the Prefect settings of the worker."""


def opening(settings: Settings, task: Task[..., Any]) -> Opening[Any, Any]:
    """Runs ``task`` with an item and a number of threads (None: the worker's share of its cores)."""
    if settings.task_runner == "processes":
        return partial(_processes, task, worker_processes.number_of(settings.decode_threads))
    return partial(
        dask_cluster.opened,
        settings.task_runner,
        partial(_submitted, task),
        client=TaskClient,
        patience_s=settings.store_patience_s,
    )


def _submitted(task: Task[..., Any], client: TaskClient, item: object, key: str) -> Promise:
    # Quoted, or Prefect would look into all that it holds (10,000 keys, say) for results of other tasks.
    return client.submit(task, quote(item), None, key=key)  # type: ignore[no-untyped-call]


@contextmanager
def _processes(task: Task[..., Any], count: int) -> Iterator[Runner[Any, Any]]:
    with worker_processes.Leash() as leash:
        pool = ProcessPoolTaskRunner(count, initializer=worker_processes.end_with_parent, initargs=(leash.held,))
        with pool, worker_processes.stopped_early(leash):
            yield worker_processes.runner(partial(_given, pool, task), count)


def _given(pool: ProcessPoolTaskRunner, task: Task[..., Any], item: Any) -> Promise:
    first, second = signature(task.fn).parameters
    return pool.submit(task, {first: quote(item), second: 1})
