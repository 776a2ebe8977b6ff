"""The flows: the only file that knows Prefect. Read ``pipeline`` and you know the whole route.

- Each stage also has a flow of its own, which runs by itself against what the store holds: its parameters are names and
  configurations, never data. ``pipeline`` runs the same tasks in one run: a flow inside a flow costs half a second, and
  two more where SQLite refuses the server to write twice at once.
- Flows and tasks are asynchronous and coarse, and the work is done in plain threads: an empty synchronous flow costs
  more than a second, and a task per image would cost more than the images.
- Retries sit on tasks that touch the network, and only a store that stayed away for all of its patience is asked once
  more: repeating a person's mistake does not mend it, and retries within retries would add up. The state of a failed
  run says what was wrong, in the sentence that a person would read.
"""

import asyncio
import functools
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from prefect import State, Task, aserve, flow, get_run_logger, task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.states import Failed
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.annotations import quote
from prefect.utilities.callables import ParameterSchema
from pydantic import Field

from pipeline import aliases, deploy, packing, patience, prepare, promote, registry, report, stages, training_runs
from pipeline.artifacts import (
    DatasetVersion,
    Deployment,
    EvaluationReport,
    ExportedModel,
    GateConfig,
    ModelVersion,
    Name,
    PrepareConfig,
    PromotionDecision,
    Record,
    TrainConfig,
    TrainingRun,
)
from pipeline.errors import SafelightError, StoreUnavailable
from pipeline.packing import Chunk, PackedChunk
from pipeline.progress import plain_lines
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones, reachable

RUNS_AT_ONCE = 4
P = ParamSpec("P")
R = TypeVar("R")

DatasetName = Annotated[Name, Field(description="Name of the dataset, as it was imported.")]
ModelName = Annotated[Name | None, Field(description="Name of the model; by default the dataset's.")]
VersionId = Annotated[str | None, Field(description="A version's id; by default the newest.")]


class PipelineResult(Record):
    """What one run of the whole route made, and how long each stage took (seconds)."""

    dataset_version: DatasetVersion
    training_run: TrainingRun
    report: EvaluationReport
    model_version: ModelVersion
    decision: PromotionDecision
    deployment: Deployment | None
    seconds: dict[str, float]


def failing_in_one_sentence(body: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make the state message of a failed run the sentence of its error; a caller still gets the error itself."""

    @functools.wraps(body)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await body(*args, **kwargs)
        except SafelightError as error:
            # Prefect takes a returned state as the run's own, and raises its data where the flow was called.
            return Failed(message=str(error), data=error)  # type: ignore[return-value]

    return run


async def is_store_away(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task deserves another try."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, StoreUnavailable)


def network_task(
    **options: Any,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """A task that touches the object store or a server; while it waits for one, the run's log says so too."""

    def decorated(body: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @functools.wraps(body)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with waits_told(get_run_logger()):
                return await body(*args, **kwargs)

        return task(retries=1, retry_delay_seconds=5, retry_condition_fn=is_store_away, **options)(run)

    return decorated


@contextmanager
def waits_told(run_log: logging.Logger | logging.LoggerAdapter[Any]) -> Iterator[None]:
    """Say in a run's log, and nowhere else, what is said of waiting for the store, from whichever thread."""
    handler = logging.Handler()
    handler.emit = lambda record: run_log.warning("%s", record.getMessage())  # type: ignore[method-assign]
    waiting = logging.getLogger(patience.__name__)
    waiting.addHandler(handler)
    waiting.propagate = False
    try:
        yield
    finally:
        waiting.removeHandler(handler)
        waiting.propagate = not waiting.handlers


@flow(name="pipeline", flow_run_name="{dataset}: from images to a live model")
@failing_in_one_sentence
async def pipeline(  # noqa: PLR0917 - they are a form in the UI
    dataset: DatasetName = "fashion-mnist",
    model: ModelName = None,
    preparation: PrepareConfig = PrepareConfig(),  # noqa: B008 - frozen
    training: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    gate: GateConfig = GateConfig(),  # noqa: B008 - frozen
    fresh: Annotated[bool, Field(description="Train anew, even where this very run is finished.")] = False,
) -> PipelineResult:
    """The whole route: images in the store become a live model, if the model is good enough."""
    clock = Stopwatch()
    version = await clock.time("prepare", prepare_dataset(dataset, preparation))
    run = await clock.time("train", train_model(dataset, version.version, training, fresh))
    exported, judged = await clock.time("evaluate", export_and_evaluate(run.id))
    challenger = await clock.time("register", register_model(model or dataset, exported, judged))
    decision = await clock.time("promote", judge(challenger.model, challenger.version, gate))
    deployment = None
    if decision.promoted:
        deployment = await clock.time("deploy", make_live(challenger.model, challenger.version))
    return PipelineResult(
        dataset_version=version,
        training_run=run,
        report=judged,
        model_version=challenger,
        decision=decision,
        deployment=deployment,
        seconds=clock.seconds,
    )


def run_pipeline(*args: Any, **kwargs: Any) -> PipelineResult:
    """Run ``pipeline`` in this process, where SIGTERM is what Ctrl-C is.

    Raises:
        KeyboardInterrupt: one of the two came.
    """
    try:
        result: PipelineResult = asyncio.run(pipeline(*args, **kwargs))
    except TerminationSignal as signal:
        raise KeyboardInterrupt from signal
    return result


@flow(name="prepare", flow_run_name="prepare {dataset}")
@failing_in_one_sentence
async def prepare_flow(
    dataset: DatasetName = "fashion-mnist",
    config: PrepareConfig = PrepareConfig(),  # noqa: B008 - frozen
) -> DatasetVersion:
    """Check, split and pack the raw images of a dataset into a dataset version."""
    return await prepare_dataset(dataset, config)


@flow(name="train", flow_run_name="train on {dataset}")
@failing_in_one_sentence
async def train_flow(
    dataset: DatasetName = "fashion-mnist",
    version: VersionId = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    fresh: bool = False,
) -> TrainingRun:
    """Train on a dataset version; an unfinished run of the same identity is resumed, a finished one is found."""
    return await train_model(dataset, version, config, fresh)


@flow(name="evaluate", flow_run_name="evaluate {run}")
@failing_in_one_sentence
async def evaluate_flow(run: str) -> tuple[ExportedModel, EvaluationReport]:
    """Export a finished training run's best weights and judge them on the test split."""
    return await export_and_evaluate(run)


@flow(name="promote", flow_run_name="promote {model}")
@failing_in_one_sentence
async def promote_flow(
    model: Name = "fashion-mnist",
    version: VersionId = None,
    gate: GateConfig = GateConfig(),  # noqa: B008 - frozen
) -> PromotionDecision:
    """Judge a model version against the champion; the better one is the champion afterwards."""
    return await judge(model, version, gate)


@flow(name="deploy", flow_run_name="deploy {model}")
@failing_in_one_sentence
async def deploy_flow(model: Name = "fashion-mnist", version: VersionId = None) -> Deployment:
    """Make a model version (by default the champion) live, prove that it answers, and go back if it does not."""
    return await make_live(model, version)


@flow(name="rollback", flow_run_name="roll back {model}")
@failing_in_one_sentence
async def rollback_flow(model: Name = "fashion-mnist") -> Deployment:
    """Make the version before the champion the champion again, and prove that it answers."""
    version = await roll_back(model)
    return await make_live(model, version)


@network_task(name="prepare")
async def prepare_dataset(dataset: str, config: PrepareConfig) -> DatasetVersion:
    """The dataset version of what is stored now."""
    settings, zones = await surroundings()
    result = await in_thread(
        prepare.prepare,
        zones,
        dataset,
        config,
        map_chunks=functools.partial(as_tasks, asyncio.get_running_loop()),
        cache=settings.home / "cache",
    )
    for line in prepare.summary(result):
        get_run_logger().info("%s", line)
    return result.version


@task(name="pack images", cache_policy=NO_CACHE)  # its preparation is what is repeated
async def pack_images(chunk: Chunk) -> PackedChunk:
    """Thousands of raw images, read, checked and packed into shards."""
    settings, zones = await surroundings()
    return await asyncio.to_thread(
        packing.pack_chunk, zones.images, zones.datasets, chunk, decode_threads=settings.decode_threads
    )


def as_tasks(loop: asyncio.AbstractEventLoop, _pack: prepare.Pack, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
    """Pack each chunk as a task of its own; called from a preparation's thread while ``loop`` runs elsewhere."""
    for chunk in chunks:
        # Quoted, or Prefect would look into each of its 10,000 keys for results of other tasks.
        task_run = pack_images(quote(chunk))  # type: ignore[call-overload]  # Prefect unquotes it
        yield asyncio.run_coroutine_threadsafe(task_run, loop).result()


@network_task(name="train")
async def train_model(dataset: str, version: str | None, config: TrainConfig, fresh: bool) -> TrainingRun:
    """The finished training run; when this task is cancelled, training stops at the next step with a checkpoint."""
    settings, zones = await surroundings()
    prepared = await asyncio.to_thread(stages.dataset_version, zones, dataset, version)
    stop = threading.Event()
    try:
        return await in_thread(stages.train_on, settings, zones, prepared, config, fresh=fresh, should_stop=stop.is_set)
    except asyncio.CancelledError:
        stop.set()
        raise


async def export_and_evaluate(run: str) -> tuple[ExportedModel, EvaluationReport]:
    """What a finished training run's best weights are worth, with the figures in the UI."""
    exported = await export_model(run)
    judged = await evaluate_model(run)
    await publish(judged)
    return exported, judged


@network_task(name="export")
async def export_model(run: str) -> ExportedModel:
    """The run's best weights as ONNX, proven to answer like torch."""
    settings, zones = await surroundings()
    finished = await asyncio.to_thread(training_runs.find, zones.checkpoints, run)
    return await in_thread(stages.export_run, settings, zones, finished)


@network_task(name="evaluate")
async def evaluate_model(run: str) -> EvaluationReport:
    """What the run's best weights do on the test split."""
    settings, zones = await surroundings()
    finished = await asyncio.to_thread(training_runs.find, zones.checkpoints, run)
    return await in_thread(stages.evaluate_run, settings, zones, finished)


@network_task(name="register")
async def register_model(model: str, exported: ExportedModel, judged: EvaluationReport) -> ModelVersion:
    """The exported files and their report as a model version, complete or not at all."""
    _, zones = await surroundings()
    return await asyncio.to_thread(registry.register, zones.checkpoints, zones.models, model, exported, judged)


@network_task(name="judge")
async def judge(model: str, version: str | None, gate: GateConfig) -> PromotionDecision:
    """The quality gate's decision, carried out."""
    _, zones = await surroundings()
    challenger = await asyncio.to_thread(aliases.resolve, zones.models, model, version or aliases.NEWEST)
    decision = await in_thread(promote.promote, zones, challenger, gate)
    for line in promote.summary(decision):
        get_run_logger().info("%s", line)
    return decision


@network_task(name="deploy")
async def make_live(model: str, version: str | None) -> Deployment:
    """The version live, or the one before it live again and an error."""
    settings, zones = await surroundings()
    target = await asyncio.to_thread(aliases.resolve, zones.models, model, version or aliases.CHAMPION)
    return await in_thread(deploy.deploy, zones, settings, target)


@task(name="roll back")
async def roll_back(model: str) -> str:
    """The version that the champion alias points at now; never repeated, which could go back twice."""
    _, zones = await surroundings()
    state = await asyncio.to_thread(
        aliases.rollback, zones.models, model, aliases.CHAMPION, reason="rolled back by a flow run"
    )
    return str(state.version)


async def publish(judged: EvaluationReport) -> None:
    """Show an evaluation in the Prefect UI: table, summary and confusion matrix."""
    name = judged.training_run.dataset.dataset
    await acreate_table_artifact(
        key=f"classes-{name}".replace("_", "-"),
        table=[row.model_dump() for row in judged.classes],
        description="How each class fared on the test split.",
    )
    await acreate_markdown_artifact(
        key=f"evaluation-{name}".replace("_", "-"), markdown=report.summary_markdown(judged), description="Evaluation"
    )
    await acreate_image_artifact(
        key=f"confusion-{name}".replace("_", "-"),
        image_url=report.confusion_data_uri(judged),
        description="Confusion matrix: rows are true classes, columns predicted ones.",
    )


async def surroundings() -> tuple[Settings, Zones]:
    """Settings and opened zones, in each task: it may run on another machine than the last one."""
    settings = await asyncio.to_thread(reachable, Settings.from_environ(os.environ))
    return settings, await asyncio.to_thread(opened, settings)


@functools.lru_cache(maxsize=1)
def opened(settings: Settings) -> Zones:
    """The zones; a process that runs one task after another opens them once."""
    return open_zones(settings)


async def in_thread(step: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Run a step in a thread, with its progress in the run's log."""
    return await asyncio.to_thread(step, *args, **kwargs, on_progress=plain_lines(get_run_logger().info))


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


FLOWS: tuple[Flow[..., Any], ...] = (
    pipeline,
    prepare_flow,
    train_flow,
    evaluate_flow,
    promote_flow,
    deploy_flow,
    rollback_flow,
)


def summary(result: PipelineResult) -> list[str]:
    """A run's result in lines for a person."""
    live = f"live at {result.deployment.url}" if result.deployment else "not promoted, what was live stays"
    return [
        f"{result.model_version.model} {result.model_version.version}: accuracy {result.report.accuracy:.4f}, {live}.",
        *result.decision.reasons,
        "Seconds: " + ", ".join(f"{stage} {spent:.1f}" for stage, spent in result.seconds.items()) + ".",
    ]


class OnlyKnownParameters(ParameterSchema):
    """A flow's parameters as JSON schema, in which others are refused."""

    additionalProperties: Literal[False]  # noqa: N815 - JSON schema's name


async def serve() -> None:
    """Register every flow as a deployment, and run on this machine what is started from the UI, until stopped."""
    found = [
        await each.ato_deployment(name=each.name, entrypoint_type=EntrypointType.MODULE_PATH, tags=["safelight"])
        for each in FLOWS
    ]
    for deployment in found:
        # A parameter that the flow does not have would crash the run after its start.
        known = deployment._parameter_openapi_schema.model_dump()  # noqa: SLF001 - Prefect offers no other way
        deployment._parameter_openapi_schema = OnlyKnownParameters(**known, additionalProperties=False)  # noqa: SLF001
    await aserve(*found, limit=RUNS_AT_ONCE, print_starting_message=False)
