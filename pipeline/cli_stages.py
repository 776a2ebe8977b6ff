"""``safelight import``, ``prepare`` … ``deploy``: one stage each, against what the store holds.

Heavy libraries (torch) are imported inside the commands that need them, so that the others answer at once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline import aliases, console, fashion_mnist, registry, sources
from pipeline.artifacts import Architecture, PrepareConfig, TrainingRun
from pipeline.cli_options import (
    Allow,
    BatchSize,
    ByCanary,
    Dataset,
    Epochs,
    Fresh,
    HoldS,
    Json,
    LearningRate,
    Limit,
    Margin,
    MinimumAccuracy,
    MinimumRequests,
    Model,
    ModelName,
    RealTraffic,
    Run,
    Seed,
    ShadowFirst,
    Size,
    StepS,
    Steps,
    Version,
    canary_config,
    gate_config,
    given,
    image_size,
    open_all,
    train_config,
    training_run,
)
from pipeline.errors import InvalidInput, TrainingDiverged, TrainingStopped

app = typer.Typer()


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A folder (<class>/<image>, or with a labels.csv), or fashion-mnist.")],
    dataset: Annotated[str | None, typer.Option(help="Name of the dataset; by default the folder's.")] = None,
    limit: Limit = None,
    exact: Annotated[bool, typer.Option("--exact", help="Leave out what is stored, but not in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Copy images into the object store; what is there already is skipped."""
    if not source.strip():
        raise InvalidInput("the folder's name is empty: name a folder of images, or fashion-mnist.")
    settings, zones = open_all()
    with console.progress() as on_progress:
        if source == fashion_mnist.NAME and not Path(source).is_dir():
            cache = settings.home / "downloads"
            result = sources.import_fashion_mnist(
                zones, dataset or source, limit=limit, cache_dir=cache, on_progress=on_progress
            )
        else:
            name = dataset or sources.dataset_name(Path(source))
            result = sources.import_folder(zones, Path(source), name, exact=exact, on_progress=on_progress)
    console.show_record(result, as_json=as_json, lines=sources.summary(result))


@app.command()
def prepare(
    dataset: Dataset,
    size: Size = "auto",
    colour: Annotated[str, typer.Option(help="auto, grey or rgb.")] = "auto",
    fit: Annotated[str, typer.Option(help="crop or stretch.")] = "crop",
    test_share: Annotated[float | None, typer.Option(help="Share of test images where splits are not given.")] = None,
    validation_share: Annotated[float | None, typer.Option(help="Share of the training images held out.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Key whose label wins where bytes carry two.")] = None,
    as_json: Json = False,
) -> None:
    """Check, split and pack raw images into a dataset version."""
    from pipeline import fan_out, task_runners
    from pipeline import prepare as step

    config = PrepareConfig.model_validate(
        given(
            size=image_size(size),
            colour=colour,
            fit=fit,
            test_share=test_share,
            validation_share=validation_share,
            keep=tuple(keep or ()),
        )
    )
    settings, zones = open_all()
    with console.progress() as on_progress:
        result = step.prepare(
            zones,
            dataset,
            config,
            map_chunks=fan_out.map_chunks(settings, zones),
            chunks=task_runners.least_items(settings.task_runner),
            decode_threads=settings.decode_threads,
            cache=settings.cache,
            on_progress=on_progress,
        )
    console.show_record(result, as_json=as_json, lines=step.summary(result))


@app.command()
def quarantine(
    address: Annotated[str, typer.Argument(metavar="LIST", help="The list's address, as import and prepare print it.")],
    as_json: Json = False,
) -> None:
    """Show what an import or a preparation left out, and why."""
    from pipeline import quarantine as lists

    _, zones = open_all()
    rows = lists.read(zones.datasets, address)
    if as_json:
        console.show_rows(rows, as_json=True)
    else:
        console.out("\n".join(f"{row['key']}: {row['reason']}" for row in rows))


@app.command()
def train(
    dataset: Dataset,
    version: Version = None,
    architecture: Annotated[Architecture | None, typer.Option(help="Which network.")] = None,
    width: Annotated[int | None, typer.Option(min=4, help="Channels of small_resnet's first layer.")] = None,
    shift: Annotated[int | None, typer.Option(min=0, help="Move images at random by up to this many pixels.")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    starting_weights: Annotated[str | None, typer.Option(help="A .safetensors file, or a key of checkpoints.")] = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train on a dataset version; an unfinished run is resumed, a finished one is found. Also under torchrun."""
    from pipeline import ranks, stages
    from pipeline.train import stop_on_sigterm

    config = train_config(
        architecture=architecture,
        width=width,
        shift=shift,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        starting_weights=starting_weights,
    )
    settings, zones = open_all()
    with ranks.joined(os.environ) as group, _spoken(first=group.first):
        prepared = stages.dataset_version(zones, dataset, version, group)
        with console.progress() as on_progress, stop_on_sigterm() as should_stop:
            result = stages.train_on(
                *(settings, zones, prepared, config),
                fresh=fresh,
                group=group,
                should_stop=should_stop,
                on_progress=on_progress,
            )
    if group.first:
        console.show_record(result, as_json=as_json, lines=_training_lines(result))


@app.command()
def evaluate(
    run: Run,
    as_json: Json = False,
) -> None:
    """Judge a training run's best weights on the test split and write the report page."""
    from pipeline import report, stages

    settings, zones = open_all()
    found = training_run(zones, run)
    with console.progress() as on_progress:
        result = stages.evaluate_run(settings, zones, found, on_progress=on_progress)
    console.show_record(result, as_json=as_json, lines=[report.summary_markdown(result)])


@app.command()
def register(
    run: Run,
    model: ModelName = None,
    as_json: Json = False,
) -> None:
    """Export and evaluate a training run, and register the result as a model version."""
    from pipeline import stages

    settings, zones = open_all()
    found = training_run(zones, run)
    with console.progress() as on_progress:
        exported = stages.export_run(settings, zones, found, on_progress=on_progress)
        judged = stages.evaluate_run(settings, zones, found, on_progress=on_progress)
    result = registry.register(zones.checkpoints, zones.models, model or found.dataset.dataset, exported, judged)
    console.show_record(result, as_json=as_json, lines=[f"{result.model} {result.version} is registered."])


@app.command()
def promote(
    model: Model,
    version: Version = None,
    minimum_accuracy: MinimumAccuracy = None,
    margin: Margin = None,
    allow: Allow = None,
    for_canary: Annotated[
        bool, typer.Option("--for-canary", help="Make the better one the challenger, for `deploy --canary`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge a model version against the champion; the better one is the champion afterwards."""
    from pipeline import promote as step

    gate = gate_config(minimum_accuracy=minimum_accuracy, margin=margin, allow=tuple(allow or ()))
    _, zones = open_all()
    challenger = aliases.resolve(zones.models, model, version or aliases.NEWEST)
    with console.progress() as on_progress:
        result = step.promote(zones, challenger, gate, by_canary=for_canary, on_progress=on_progress)
    console.show_record(result, as_json=as_json, lines=step.summary(result))


@app.command()
def deploy(
    model: Model,
    version: Annotated[str | None, typer.Option(help="By default the champion; with a canary the challenger.")] = None,
    if_any: Annotated[bool, typer.Option("--if-any", help="Succeed too where there is no champion yet.")] = False,
    by_canary: ByCanary = False,
    steps: Steps = None,
    shadow_first: ShadowFirst = False,
    minimum_requests: MinimumRequests = None,
    real_traffic: RealTraffic = False,
    step_s: StepS = None,
    hold_s: HoldS = None,
    as_json: Json = False,
) -> None:
    """Make a model version live, prove that every replica answers with it, and go back if one does not."""
    from pipeline import canary
    from pipeline import deploy as step

    ramp = canary_config(
        by_canary=by_canary,
        steps=tuple(steps or ()),
        shadow_first=shadow_first,
        minimum_requests=minimum_requests,
        real_traffic=real_traffic,
        step_s=step_s,
        hold_s=hold_s,
    )
    settings, zones = open_all()
    if if_any and not aliases.list_aliases(zones.models, model).get(aliases.CHAMPION):
        print(f"Model {model!r} has no champion yet.")
        return
    target = step.target(zones.models, model, version, by_canary=by_canary)
    with console.progress() as on_progress:
        result = step.deploy(
            zones,
            settings,
            target,
            ramp=ramp,
            on_progress=on_progress,
            on_step=lambda done: console.say(canary.summary(done)),
        )
    console.show_record(result, as_json=as_json, lines=[step.summary(result)])


@contextmanager
def _spoken(*, first: bool) -> Iterator[None]:
    """What all ranks of a training raise at once is said by the first."""
    try:
        yield
    except (TrainingStopped, TrainingDiverged) as error:
        if first:
            raise
        raise typer.Exit(console.EXIT_FAULT) from error


def _training_lines(run: TrainingRun) -> list[str]:
    last = run.history[-1]
    held_out = "" if last.validation_accuracy is None else f", validation accuracy {last.validation_accuracy:.4f}"
    return [f"Training run {run.id}: {last.epoch} epochs, loss {last.train_loss:.3f}{held_out}."]
