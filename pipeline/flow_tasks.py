"""The tasks of the flows: what each does in Prefect with the settings of the machine that it runs on.

Each is a few lines: read what it needs, have a step work in a thread, say what came of it. Retries sit on those that
touch the network. A task takes names and small records, never data, so that any of them can run elsewhere.
"""

import asyncio
import threading
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

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
    PrepareConfig,
    PromotionDecision,
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
    as_tasks,
    in_thread,
    network_task,
    own_id,
    publish,
    publish_canary,
    say,
    surroundings,
)
from pipeline.sources import ImportReport
from pipeline.task_runners import Whole


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
