"""The route: read ``pipeline`` and you know the whole of it. How a run behaves in Prefect is in ``prefect_runs``.

- Each stage also has a flow of its own, which runs by itself against what the store holds: its parameters are names and
  configurations, never data. ``pipeline`` runs the same tasks in one run: a flow inside a flow costs half a second.
- Flows and tasks are asynchronous and coarse, and the work is done in plain threads: an empty synchronous flow costs
  more than a second, and a task per image would cost more than the images.
- Retries sit on tasks that touch the network.
"""

from typing import Annotated, Any

from prefect.flows import Flow
from pydantic import Field

from pipeline.artifacts import (
    CanaryConfig,
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
from pipeline.fashion_mnist import NAME as FASHION_MNIST
from pipeline.flow_tasks import (
    export_and_evaluate,
    import_images,
    import_unless_stored,
    judge,
    make_live,
    predict_batch,
    prepare_dataset,
    register_model,
    roll_back,
    train_model,
)
from pipeline.predict import BatchResult
from pipeline.prefect_runs import (
    Stopwatch,
    link_report,
    one_sentence_flow,
)
from pipeline.sources import ImportReport

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
