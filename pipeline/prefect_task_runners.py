"""Who runs the mapped tasks of a flow, by the one setting: Prefect's process pool, or a Dask cluster by prefect-dask.

**No password goes through the scheduler.** prefect-dask sends the settings of the flow run along with each task, and
among them the one with which Prefect's API is asked. Here they stay: a worker has the settings of its own environment.
Nor does the flow travel, which would have each worker load torch: what a task asks of it is its name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

from distributed import Client
from prefect.flows import Flow
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.tasks import Task
from prefect_dask.client import PrefectDaskClient

from pipeline import dask_cluster, worker_processes
from pipeline.settings import Settings
from pipeline.task_runners import Opening, Promise, Runner, Whole


class _LightLuggage(Client):
    """What a flow run tells its tasks, without settings and flow; between prefect-dask's client and Dask's."""

    def submit(self, *args: Any, **kwargs: Any) -> Promise:
        """As Dask's."""
        context: dict[str, Any] = kwargs["context"] | {"settings_context": {}}
        run = context["flow_run_context"]
        context["flow_run_context"] = run | {"flow": Flow(_elsewhere, name=run["flow"].name)}
        return super().submit(*args, **kwargs | {"context": context})


class TaskClient(PrefectDaskClient, _LightLuggage):
    """prefect-dask's client, whose tasks have the Prefect settings of the worker."""


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


def _elsewhere() -> None:
    """The body of a flow that runs in another process."""


def _submitted(task: Task[..., Any], client: TaskClient, item: object, key: str) -> Promise:
    return client.submit(task, Whole(item), None, key=key)  # type: ignore[no-untyped-call]


@contextmanager
def _processes(task: Task[..., Any], count: int) -> Iterator[Runner[Any, Any]]:
    with worker_processes.Leash() as leash:
        pool = ProcessPoolTaskRunner(count, initializer=worker_processes.end_with_parent, initargs=(leash.held,))
        with pool, worker_processes.stopped_early(leash):
            yield worker_processes.runner(partial(_given, pool, task), count)


def _given(pool: ProcessPoolTaskRunner, task: Task[..., Any], item: Any) -> Promise:
    first, second = signature(task.fn).parameters
    return pool.submit(task, {first: Whole(item), second: 1})
