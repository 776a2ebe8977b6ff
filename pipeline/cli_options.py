"""Options and openings that the commands share."""

import os
from typing import Annotated, Any

import typer

from pipeline.artifacts import CanaryConfig, GateConfig, TrainConfig, TrainingRun
from pipeline.errors import InvalidInput
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones, reachable

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Dataset = Annotated[str, typer.Argument(help="Name of the dataset.")]
Model = Annotated[str, typer.Argument(help="Name of the model.")]
Run = Annotated[str, typer.Argument(help="A training run's id, or a dataset's name for its newest run.")]
ModelName = Annotated[str | None, typer.Option(help="Name of the model; by default the dataset's.")]
Version = Annotated[str | None, typer.Option(help="A version's id; by default the newest.")]
Limit = Annotated[int | None, typer.Option(min=20, help="Only so many images of Fashion-MNIST.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(min=2, help="Images per optimizer step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak of the learning-rate schedule.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Fixes starting weights, order and augmentation.")]
Size = Annotated[str, typer.Option(help="Height and width in pixels, or auto.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train anew, even where this very run is finished.")]
MinimumAccuracy = Annotated[float | None, typer.Option(min=0, max=1, help="Below this nothing goes live.")]
Margin = Annotated[float | None, typer.Option(help="How much better than the champion a model must be.")]
Allow = Annotated[list[str] | None, typer.Option(help="removed_class or seen_test_images; may be repeated.")]
ByCanary = Annotated[
    bool, typer.Option("--canary", help="Give it more and more of the requests, instead of all at once.")
]
Steps = Annotated[
    list[float] | None, typer.Option("--step", help="A share of the requests, as 0.1; may be repeated, ascending.")
]
ShadowFirst = Annotated[bool, typer.Option("--shadow-first", help="Begin with copies, which answer nobody.")]
MinimumRequests = Annotated[int | None, typer.Option(min=1, help="Requests that each step is judged by.")]
RealTraffic = Annotated[bool, typer.Option("--real-traffic", help="Judge by requests of clients alone.")]
StepS = Annotated[float | None, typer.Option("--step-s", min=0, help="Seconds that a step lasts at least.")]
HoldS = Annotated[float | None, typer.Option("--hold-s", min=0, help="Seconds to wait for enough requests.")]


def read_settings() -> Settings:
    """The settings of this process's environment."""
    return Settings.from_environ(os.environ)


def open_all() -> tuple[Settings, Zones]:
    """Settings with an endpoint, and the opened zones."""
    settings = reachable(read_settings())
    return settings, open_zones(settings)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others keep their record's default."""
    return {name: value for name, value in options.items() if value is not None}


def image_size(size: str) -> int | str:
    """The given size, which is ``auto`` or a number of pixels.

    Raises:
        InvalidInput: it is neither.
    """
    if size != "auto" and not (size.isascii() and size.isdigit()):
        raise InvalidInput(f"--size: {size!r} is neither auto nor a number of pixels.")
    return size if size == "auto" else int(size)


def train_config(**options: Any) -> TrainConfig:
    """The training configuration of the given options."""
    return TrainConfig.model_validate(given(**options))


def gate_config(**options: Any) -> GateConfig:
    """The quality gate's bounds of the given options."""
    return GateConfig.model_validate(given(**options))


def canary_config(*, by_canary: bool, **options: Any) -> CanaryConfig | None:
    """How a canary goes by the given options; None without one.

    Raises:
        InvalidInput: there is an option of a canary, but none.
    """
    told = {name: value for name, value in given(**options).items() if value is not False and value != ()}
    if told and not by_canary:
        raise InvalidInput(f"{', '.join(sorted(told))}: only a canary has steps; give --canary too.")
    return CanaryConfig.model_validate(told) if by_canary else None


def training_run(zones: Zones, name: str) -> TrainingRun:
    """``training_runs.named``."""
    from pipeline import training_runs

    return training_runs.named(zones.checkpoints, name)
