"""The route: read ``pipeline`` and you know the whole of it. How a run behaves in Prefect is in ``prefect_runs``.

- Each stage also has a flow of its own, which runs by itself against what the store holds: its parameters are names and
  configurations, never data. ``pipeline`` runs the same tasks in one run: a flow inside a flow costs half a second.
- Flows and tasks are asynchronous and coarse, and the work is done in plain threads: an empty synchronous flow costs
  more than a second, and a task per image would cost more than the images.
- Retries sit on tasks that touch the network.
"""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.flows import Flow
from pydantic import Field

from pipeline import (
    aliases,
    deploy,
    far_answering,
    far_packing,
    predict,
    prepare,
    promote,
    registry,
    sources,
    stages,
    training_runs,
)
from pipeline.artifacts import (
    CanaryConfig,
    CanaryStep,
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
from pipeline.batches import BatchPart, Part
from pipeline.canary import summary as canary_summary
from pipeline.errors import CanaryHeld, InvalidInput
from pipeline.fashion_mnist import NAME as FASHION_MNIST
from pipeline.packing import Chunk, PackedChunk
from pipeline.predict import BatchResult
from pipeline.prefect_runs import (
    Stopwatch,
    as_tasks,
    in_thread,
    link_report,
    network_task,
    one_sentence_flow,
    own_id,
    publish,
    publish_canary,
    say,
    surroundings,
)
from pipeline.sources import ImportReport
from pipeline.task_runners import Whole

DatasetName = Annotated[Name, Field(description="Name of the dataset, as it was imported.")]
NewModelName = Annotated[Name | None, Field(description="Name of the model; by default the dataset's.")]
ModelName = Annotated[Name, Field(description="Name of the model.")]
DatasetVersionId = Annotated[str | None, Field(description="A dataset version's id; by default the newest.")]
NewestVersionId = Annotated[str | None, Field(description="A model version's id; by default the newest.")]
LiveVersionId = Annotated[
    str | None, Field(description="A model version's id; by default the champion, or with a canary the challenger.")
]
ByCanary = Annotated[bool, Field(description="Give it more and more of the requests, instead of all at once.")]
Fresh = Annotated[bool, Field(description="Train anew, even where this very run is finished.")]


class PipelineResult(Record):
    """What one run of the whole route made, and how long each stage took (seconds)."""

    dataset_version: DatasetVersion
    training_run: TrainingRun
    report: EvaluationReport
    model_version: ModelVersion
    decision: PromotionDecision
    deployment: Deployment | None
    seconds: dict[str, float]


@one_sentence_flow(name="pipeline", flow_run_name="{dataset}: from images to a live model")
async def pipeline(  # noqa: PLR0917 - they are a form in the UI
    dataset: DatasetName = FASHION_MNIST,
    model: NewModelName = None,
    preparation: PrepareConfig = PrepareConfig(),  # noqa: B008 - frozen
    training: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    gate: GateConfig = GateConfig(),  # noqa: B008 - frozen
    fresh: Fresh = False,
    by_canary: ByCanary = False,
    canary: CanaryConfig = CanaryConfig(),  # noqa: B008 - frozen
) -> PipelineResult:
    """The whole route: images in the store become a live model, if the model is good enough.

    Where nothing is stored yet for fashion-mnist, it is imported first.
    """
    clock = Stopwatch()
    if dataset == FASHION_MNIST:
        await import_unless_stored()
    version = await clock.time("prepare", prepare_dataset(dataset, preparation))
    run = await clock.time("train", train_model(dataset, version.version, training, fresh))
    exported, judged = await clock.time("evaluate", export_and_evaluate(run.id))
    challenger = await clock.time("register", register_model(model or dataset, exported, judged))
    linked = await link_report(challenger)
    decision = await clock.time("promote", judge(challenger.model, challenger.version, gate, by_canary))
    deployment = None
    if decision.promoted:
        ramp = canary if by_canary else None
        deployment = await clock.time("deploy", make_live(challenger.model, challenger.version, ramp))
    if not linked:
        await link_report(challenger)
    return PipelineResult(
        dataset_version=version,
        training_run=run,
        report=judged,
        model_version=challenger,
        decision=decision,
        deployment=deployment,
        seconds=clock.seconds,
    )


@one_sentence_flow(name="import", flow_run_name="import {dataset}")
async def import_flow(
    dataset: Annotated[Name, Field(description="Name of the dataset that the images belong to.")] = FASHION_MNIST,
    folder: Annotated[
        str | None,
        Field(description="A folder that the worker sees, with one folder of images per class; else Fashion-MNIST."),
    ] = None,
    per_class: Annotated[
        int | None, Field(ge=2, le=7000, description="Only so many images of each class of Fashion-MNIST.")
    ] = None,
    exact: Annotated[bool, Field(description="Leave out what is stored, but not in the folder.")] = False,
) -> ImportReport:
    """Copy images into the object store; what is there already is skipped."""
    return await import_images(dataset, folder, per_class, exact)


@one_sentence_flow(name="prepare", flow_run_name="prepare {dataset}")
async def prepare_flow(
    dataset: DatasetName = FASHION_MNIST,
    config: PrepareConfig = PrepareConfig(),  # noqa: B008 - frozen
) -> DatasetVersion:
    """Check, split and pack the raw images of a dataset into a dataset version."""
    return await prepare_dataset(dataset, config)


@one_sentence_flow(name="train", flow_run_name="train on {dataset}")
async def train_flow(
    dataset: DatasetName = FASHION_MNIST,
    version: DatasetVersionId = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    fresh: Fresh = False,
) -> TrainingRun:
    """Train on a dataset version; an unfinished run of the same identity is resumed, a finished one is found."""
    return await train_model(dataset, version, config, fresh)


@one_sentence_flow(name="evaluate", flow_run_name="evaluate {run}")
async def evaluate_flow(
    run: Annotated[
        str, Field(min_length=1, description="A training run's id, or a dataset's name for its newest run.")
    ] = FASHION_MNIST,
) -> tuple[ExportedModel, EvaluationReport]:
    """Export a finished training run's best weights and judge them on the test split."""
    return await export_and_evaluate(run)


@one_sentence_flow(name="promote", flow_run_name="promote {model}")
async def promote_flow(
    model: ModelName = FASHION_MNIST,
    version: NewestVersionId = None,
    gate: GateConfig = GateConfig(),  # noqa: B008 - frozen
    for_canary: Annotated[
        bool, Field(description="Make the better one the challenger, which a deployment with a canary then tries.")
    ] = False,
) -> PromotionDecision:
    """Judge a model version against the champion; the better one is the champion afterwards."""
    return await judge(model, version, gate, for_canary)


@one_sentence_flow(name="deploy", flow_run_name="deploy {model}")
async def deploy_flow(
    model: ModelName = FASHION_MNIST,
    version: LiveVersionId = None,
    by_canary: ByCanary = False,
    canary: CanaryConfig = CanaryConfig(),  # noqa: B008 - frozen
) -> Deployment:
    """Make a model version (by default the champion) live, prove that it answers, and go back if it does not."""
    return await make_live(model, version, canary if by_canary else None)


@one_sentence_flow(name="rollback", flow_run_name="roll back {model}")
async def rollback_flow(model: ModelName = FASHION_MNIST) -> Deployment:
    """Make the version before the champion the champion again, and prove that it answers."""
    version = await roll_back(model)
    return await make_live(model, version, None)


@one_sentence_flow(name="predict", flow_run_name="predict {prefix} by {model}")
async def predict_flow(
    model: ModelName = FASHION_MNIST,
    prefix: Annotated[
        str, Field(min_length=1, description="A folder of the images zone, or s3://bucket/folder of the same store.")
    ] = FASHION_MNIST,
    version: Annotated[
        str | None, Field(description="A model version's id, or an alias; by default the champion.")
    ] = None,
    name: Annotated[
        Name | None, Field(description="Name of the result; by default it is named by what is asked.")
    ] = None,
) -> BatchResult:
    """Answer every image below a prefix by one model version, as Parquet files in the predictions zone."""
    return await predict_batch(model, prefix, version, name)


@network_task(name="import")
async def import_images(dataset: str, folder: str | None, per_class: int | None, exact: bool) -> ImportReport:
    """A folder of this machine, or Fashion-MNIST, in the images zone."""
    settings, zones = await surroundings()
    refuse_mixed_sources(folder, per_class, exact=exact)
    if folder is None:
        result = await in_thread(stages.import_fashion_mnist, settings, zones, dataset, per_class=per_class)
    else:
        result = await in_thread(sources.import_folder, zones, Path(folder), dataset, exact=exact)
    say(sources.summary(result))
    return result


async def import_unless_stored() -> None:
    """Fashion-MNIST in the images zone, where nothing is stored under its name, or only a part of it."""
    _, zones = await surroundings()
    if await asyncio.to_thread(sources.lacks_fashion_mnist, zones.images):
        say([f"Nothing is stored for {FASHION_MNIST}: importing it first."])
        await import_images(FASHION_MNIST, None, None, exact=False)


def refuse_mixed_sources(folder: str | None, per_class: int | None, *, exact: bool) -> None:
    """Raise InvalidInput where a parameter of one source is given with the other one."""
    if folder is not None and per_class is not None:
        raise InvalidInput("per_class is for Fashion-MNIST alone: leave it empty where a folder is given.")
    if folder is None and exact:
        raise InvalidInput("exact is for a folder: name one, or leave exact off.")


@network_task(name="prepare")
async def prepare_dataset(dataset: str, config: PrepareConfig) -> DatasetVersion:
    """The dataset version of what is stored now."""
    settings, zones = await surroundings()
    stop = threading.Event()
    verified = partial(far_packing.refuse_other_store, zones)
    map_chunks = as_tasks(pack_images, settings, verified=verified, still_wanted=partial(still_wanted, stop))
    try:
        result = await in_thread(stages.prepare_dataset, settings, zones, dataset, config, map_chunks=map_chunks)
    except asyncio.CancelledError:
        stop.set()
        raise
    say(prepare.summary(result))
    return result.version


def still_wanted(stop: threading.Event) -> None:
    """Raise CancelledError once ``stop`` is set."""
    if stop.is_set():
        raise asyncio.CancelledError


@task(name="pack images", cache_policy=NO_CACHE)  # its preparation is what is repeated
async def pack_images(chunk: Whole[Chunk], decode_threads: int | None) -> PackedChunk:
    """Thousands of raw images, read, checked and packed into shards."""
    settings, zones = await surroundings()
    return await asyncio.to_thread(far_packing.pack_in, zones, settings, chunk.item, decode_threads)


@network_task(name="train")
async def train_model(dataset: str, version: str | None, config: TrainConfig, fresh: bool) -> TrainingRun:
    """The finished training run; when this task is cancelled, training stops at the next step with a checkpoint."""
    settings, zones = await surroundings()
    prepared = await asyncio.to_thread(stages.dataset_version, zones, dataset, version)
    stop = threading.Event()
    again = fresh and own_id()  # so that this flow run, when its process died and it comes back, finds what it trained
    try:
        return await in_thread(stages.train_on, settings, zones, prepared, config, fresh=again, should_stop=stop.is_set)
    except asyncio.CancelledError:
        stop.set()
        raise


async def export_and_evaluate(run: str) -> tuple[ExportedModel, EvaluationReport]:
    """What a finished training run's best weights are worth, with the figures in the UI."""
    exported = await export_model(run)
    judged = await evaluate_model(exported.training_run.id)
    await publish(judged)
    return exported, judged


@network_task(name="export")
async def export_model(run: str) -> ExportedModel:
    """The best weights of a training run, or of a dataset's newest one, as ONNX, proven to answer like torch."""
    settings, zones = await surroundings()
    finished = await asyncio.to_thread(training_runs.named, zones.checkpoints, run)
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
async def judge(model: str, version: str | None, gate: GateConfig, by_canary: bool) -> PromotionDecision:
    """The quality gate's decision, carried out."""
    _, zones = await surroundings()
    challenger = await asyncio.to_thread(aliases.resolve, zones.models, model, version or aliases.NEWEST)
    decision = await in_thread(promote.promote, zones, challenger, gate, by_canary=by_canary)
    say(promote.summary(decision))
    return decision


@network_task(name="deploy")
async def make_live(model: str, version: str | None, ramp: CanaryConfig | None) -> Deployment:
    """The version live, or the one before it live again and an error."""
    settings, zones = await surroundings()
    target = await asyncio.to_thread(deploy.target, zones.models, model, version, by_canary=ramp is not None)
    steps: list[CanaryStep] = []
    stop = threading.Event()

    def note(step: CanaryStep) -> None:
        steps.append(step)
        say([canary_summary(step)])

    def still_wanted() -> None:
        if stop.is_set():
            raise CanaryHeld(f"The canary of {target.version} was told to stop, and keeps its share.")

    try:
        return await in_thread(
            deploy.deploy, zones, settings, target, ramp=ramp, on_step=note, still_wanted=still_wanted
        )
    except asyncio.CancelledError:
        stop.set()
        raise
    finally:
        await publish_canary(target, steps)


@network_task(name="predict")
async def predict_batch(model: str, prefix: str, version: str | None, name: str | None) -> BatchResult:
    """The answers to what is stored below a prefix now; an unfinished batch of the same is finished first."""
    settings, zones = await surroundings()
    stop = threading.Event()
    verified = partial(far_answering.refuse_other_store, zones)
    map_parts = as_tasks(answer_part, settings, verified=verified, still_wanted=partial(still_wanted, stop))
    asked = partial(stages.predict_batch, settings, zones, model, prefix, version=version, name=name)
    try:
        result = await in_thread(asked, map_parts=map_parts)
    except asyncio.CancelledError:
        stop.set()
        raise
    say(predict.summary(result))
    return result


@task(name="answer images", cache_policy=NO_CACHE)  # its batch is what is repeated
async def answer_part(part: Whole[Part], decode_threads: int | None) -> BatchPart:
    """Thousands of images, read, decoded and answered, as one Parquet file."""
    settings, zones = await surroundings()
    return await asyncio.to_thread(far_answering.answer_in, zones, settings, part.item, decode_threads)


@task(name="roll back")
async def roll_back(model: str) -> str:
    """The version that the champion alias points at now; never repeated, which could go back twice."""
    _, zones = await surroundings()
    state = await asyncio.to_thread(
        aliases.rollback, zones.models, model, aliases.CHAMPION, reason="rolled back by a flow run"
    )
    return str(state.version)


FLOWS: tuple[Flow[..., Any], ...] = (
    pipeline,
    import_flow,
    prepare_flow,
    train_flow,
    evaluate_flow,
    promote_flow,
    deploy_flow,
    rollback_flow,
    predict_flow,
)


def summary(result: PipelineResult) -> list[str]:
    """A run's result in lines for a person."""
    live = f"live at {result.deployment.url}" if result.deployment else "not promoted, what was live stays"
    return [
        f"{result.model_version.model} {result.model_version.version}: accuracy {result.report.accuracy:.4f}, {live}.",
        *result.decision.reasons,
        "Seconds: " + ", ".join(f"{stage} {spent:.1f}" for stage, spent in result.seconds.items()) + ".",
    ]
