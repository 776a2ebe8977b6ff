"""``safelight serve``, ``run`` and ``demo``: what keeps running, and the whole route at once.

Heavy libraries (Prefect) are imported inside the commands that need them, so that the others answer at once.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import aliases, console, fashion_mnist
from pipeline.artifacts import PrepareConfig
from pipeline.cli_options import (
    Allow,
    BatchSize,
    ByCanary,
    Dataset,
    Epochs,
    Fresh,
    Json,
    LearningRate,
    Limit,
    Margin,
    MinimumAccuracy,
    Model,
    ModelName,
    Seed,
    Size,
    gate_config,
    image_size,
    open_all,
    read_settings,
    train_config,
)

app = typer.Typer()


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
) -> None:
    """Answer over HTTP with a model's champion, in the foreground."""
    from pipeline import inference_server

    settings, zones = open_all()
    aliases.resolve(zones.models, model, aliases.CHAMPION)  # a name misspelled would be waited for otherwise
    environ = inference_server.environ(settings, model, port or settings.inference_port, os.environ, host=host)
    os.execve(sys.executable, [sys.executable, "-m", "serving"], environ)  # noqa: S606 - this very interpreter


@app.command()
def run(
    dataset: Dataset = fashion_mnist.NAME,
    model: ModelName = None,
    size: Size = "auto",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    minimum_accuracy: MinimumAccuracy = None,
    margin: Margin = None,
    allow: Allow = None,
    fresh: Fresh = False,
    by_canary: ByCanary = False,
    as_json: Json = False,
) -> None:
    """Run the whole route as a Prefect flow: prepare, train, evaluate, register, promote, deploy."""
    from pipeline import prefect_server

    settings = read_settings()
    preparation = PrepareConfig.model_validate({"size": image_size(size)})
    training = train_config(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    gate = gate_config(minimum_accuracy=minimum_accuracy, margin=margin, allow=tuple(allow or ()))
    prefect_server.use(settings.home, prefect_server.url(settings.home))
    from pipeline import flows, prefect_runs

    result = prefect_runs.run_here(
        flows.pipeline(
            dataset, model, preparation=preparation, training=training, gate=gate, fresh=fresh, by_canary=by_canary
        )
    )
    console.show_record(result, as_json=as_json, lines=flows.summary(result))


@app.command(hidden=True)
def serve_flows() -> None:
    """Run deployments that are started from the Prefect UI; the demo keeps one such process."""
    from pipeline import flows, prefect_runs

    asyncio.run(prefect_runs.serve(flows.FLOWS))


@app.command()
def demo(
    images: Annotated[Path | None, typer.Option(help="A folder of <class>/<image>, instead of Fashion-MNIST.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return, and leave everything running.")] = False,
    limit: Limit = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop everything that runs.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Stop everything and remove what is stored.")] = False,
) -> None:
    """The whole route, from images to answers over HTTP, on this machine."""
    from pipeline import demo as show

    settings = read_settings()
    if stop:
        show.stop(settings)
    elif clean:
        show.clean(settings, confirm=lambda question: typer.confirm(question, err=True))
    else:
        show.demo(settings, images, detach=detach, limit=limit)
