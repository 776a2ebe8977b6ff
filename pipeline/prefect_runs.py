"""How a run behaves in Prefect: what its state says, when it is tried again, what its log and the UI show.

- **A failed run says one sentence**, the one that a person would read; a caller still gets the error itself.
- **Only a store that stayed away for all of its patience is asked once more**: repeating a person's mistake does not
  mend it, and retries within retries would add up. A process that slept while another one took its work over joins it:
  repeated, the step waits for that one, and finds the work done.
- **Steps are plain functions and run in threads**; their progress, and what else they say, go to the log of the run.
"""

import asyncio
import functools
import inspect
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ParamSpec, TypeVar

from prefect import State, Task, aserve, flow, get_run_logger, task
from prefect.artifacts import (
    acreate_image_artifact,
    acreate_link_artifact,
    acreate_markdown_artifact,
    acreate_table_artifact,
)
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.runtime import flow_run
from prefect.states import Failed
from prefect.utilities.hashing import file_hash

from pipeline import inference_server, prefect_deployments, report, task_runners
from pipeline.artifacts import CanaryStep, EvaluationReport, ModelVersion
from pipeline.errors import LeaseLost, SafelightError, StoreUnavailable
from pipeline.far_packing import opened
from pipeline.progress import plain_lines
from pipeline.run_watch import BEAT_S, HEARTBEAT
from pipeline.settings import Settings
from pipeline.task_runners import Whole
from pipeline.zones import Zones, reachable

RUNS_AT_ONCE = 4
P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")


def one_sentence_flow(
    **options: Any,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Flow[P, Coroutine[Any, Any, R]]]:
    """A flow whose failed run says the sentence of its error; ``options`` are those of Prefect's ``flow``."""

    def decorated(body: Callable[P, Coroutine[Any, Any, R]]) -> Flow[P, Coroutine[Any, Any, R]]:
        @functools.wraps(body)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                async with _heartbeats():
                    return await body(*args, **kwargs)
            except SafelightError as error:
                # Prefect takes a returned state as the run's own, and raises its data where the flow was called.
                return Failed(message=str(error), data=error)  # type: ignore[return-value]

        # Prefect's own choice would be a hash of the file of ``run``, and that is this one.
        return flow(version=file_hash(inspect.getfile(body)), **options)(run)

    return decorated


def network_task(
    **options: Any,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """A task that touches the object store or a server; what our modules log meanwhile is in the run's log too."""

    def decorated(body: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @functools.wraps(body)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with _told(get_run_logger()):
                return await body(*args, **kwargs)

        return task(retries=1, retry_delay_seconds=5, retry_condition_fn=_deserves_another_try, **options)(run)

    return decorated


async def surroundings() -> tuple[Settings, Zones]:
    """Settings and opened zones, in each task: it may run on another machine than the last one.

    Raises:
        InvalidSettings: a setting is wrong, or the store does not keep its promises.
        StoreError: the store cannot be reached, or refuses the credentials.
    """
    settings = await asyncio.to_thread(reachable, Settings.from_environ(os.environ))
    return settings, await asyncio.to_thread(opened, settings)


def own_id() -> str:
    """The id of the flow run in which this is called."""
    return str(flow_run.get_id())


async def in_thread(step: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Run a step in a thread, with its progress in the run's log."""
    return await asyncio.to_thread(step, *args, **kwargs, on_progress=plain_lines(get_run_logger().info))


def as_tasks(
    one: Task[[Whole[Item], int | None], Coroutine[Any, Any, R]],
    settings: Settings,
    *,
    verified: Callable[[Item, R], R],
    still_wanted: Callable[[], None],
) -> Callable[[object, Iterable[Item]], Iterator[R]]:
    """What a step may map its items with: each goes through the task ``one``, run by whom the settings say.

    With ``threads`` that is the event loop of this call, one item after another. The step runs in a thread meanwhile;
    its own function for an item is not used.

    Args:
        one: takes an item and how many threads it may have; None: what is right where it runs.
        settings: name who runs it.
        verified: a result, if it may be believed; asked where another process made it.
        still_wanted: called now and then; what it raises stops the rest.
    """
    loop = asyncio.get_running_loop()

    def in_turn(_own: object, items: Iterable[Item]) -> Iterator[R]:
        for item in items:
            still_wanted()
            task_run = one(Whole(item), settings.decode_threads)
            yield asyncio.run_coroutine_threadsafe(task_run, loop).result()

    def elsewhere(_own: object, items: Iterable[Item]) -> Iterator[R]:
        from pipeline import prefect_task_runners  # noqa: PLC0415 - Dask takes a second to load, and most have none

        opening = prefect_task_runners.opening(settings, one)
        for item, result in task_runners.spread(opening, items, still_wanted=still_wanted):
            yield verified(item, result)

    return in_turn if settings.task_runner == "threads" else elsewhere


class Stopwatch:
    """Wall-clock seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    async def time(self, stage: str, work: Awaitable[R]) -> R:
        """Await ``work`` and keep how long it took."""
        begun = time.monotonic()
        result = await work
        self.seconds[stage] = round(time.monotonic() - begun, 2)
        return result


def say(lines: Iterable[str]) -> None:
    """Write what a step came to in the run's log."""
    for line in lines:
        get_run_logger().info("%s", line)


async def publish(judged: EvaluationReport) -> None:
    """Show an evaluation in the Prefect UI: table, summary and confusion matrix."""
    name = judged.training_run.dataset.dataset.replace("_", "-")  # the UI's keys have no underscore
    await acreate_table_artifact(
        key=f"classes-{name}",
        table=[row.model_dump() for row in judged.classes],
        description="How each class fared on the test split.",
    )
    await acreate_markdown_artifact(
        key=f"evaluation-{name}", markdown=report.summary_markdown(judged), description="Evaluation"
    )
    await acreate_image_artifact(
        key=f"confusion-{name}",
        image_url=report.confusion_data_uri(judged),
        description="Confusion matrix: rows are true classes, columns predicted ones.",
    )


async def publish_canary(challenger: ModelVersion, steps: Sequence[CanaryStep]) -> None:
    """Show the steps of a ramp, those that failed included, in the Prefect UI; nothing where there was none."""
    if not steps:
        return
    await acreate_table_artifact(
        key=f"canary-{challenger.model.replace('_', '-')}",
        table=[step.model_dump() for step in steps],
        description=f"What each step of the canary of {challenger.version} came to, summed over all replicas.",
    )


async def link_report(version: ModelVersion) -> bool:
    """Link the report page of a registered version in the Prefect UI; False where no address of it is known."""
    settings = Settings.from_environ(os.environ)
    server = await asyncio.to_thread(inference_server.browser_url, settings, version.model)
    if server is None:
        return False
    await acreate_link_artifact(
        key=f"report-{version.model.replace('_', '-')}",
        link=f"{server}/v2/models/{version.model}/versions/{version.version}/report",
        link_text=f"Report of {version.model} {version.version}",
        description="The report page of this model version: metrics, confusion matrix, worst mistakes.",
    )
    return True


def run_here(run: Coroutine[Any, Any, R]) -> R:
    """Finish a flow's run in this process, where SIGTERM is what Ctrl-C is.

    Raises:
        KeyboardInterrupt: one of the two came.
    """
    try:
        return asyncio.run(run)
    except TerminationSignal as signal:
        raise KeyboardInterrupt from signal


async def serve(flows: Iterable[Flow[..., Any]]) -> None:
    """Register every flow as a deployment, and run on this machine what is started from the UI, until stopped."""
    found = [await prefect_deployments.deployment(each, served=True) for each in flows]
    await aserve(*found, limit=RUNS_AT_ONCE, print_starting_message=False)


async def _deserves_another_try(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is repeated."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, StoreUnavailable | LeaseLost)


@asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """Send heartbeats of this run, more often than Prefect does by itself."""

    async def beat(resource: dict[str, str]) -> None:
        while True:
            emit_event(event=HEARTBEAT, resource=resource)
            await asyncio.sleep(BEAT_S)

    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        yield  # nobody brings back a run that was started by hand
        return
    beating = asyncio.create_task(beat({"prefect.resource.id": f"prefect.flow-run.{context.flow_run.id}"}))
    try:
        yield
    finally:
        beating.cancel()


@contextmanager
def _told(run_log: logging.Logger | logging.LoggerAdapter[Any]) -> Iterator[None]:
    """Say in a run's log, and nowhere else, what our modules say, from whichever thread."""
    handler = logging.Handler()
    handler.emit = lambda record: run_log.log(record.levelno, "%s", record.getMessage())  # type: ignore[method-assign]
    ours = logging.getLogger(__package__)
    level = ours.level
    ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(level)
        ours.removeHandler(handler)
        ours.propagate = not ours.handlers
