"""``safelight predict``: batch prediction."""

from functools import partial
from typing import Annotated

import typer

from pipeline import console
from pipeline.cli_options import Json, Model, open_all

app = typer.Typer()


@app.command()
def predict(
    model: Model,
    prefix: Annotated[
        str, typer.Argument(help="A folder of the images zone, or s3://bucket/folder of the same store.")
    ],
    version: Annotated[str | None, typer.Option(help="A version's id, or an alias; by default the champion.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the result; by default it is named by what is asked.")] = None,
    as_json: Json = False,
) -> None:
    """Answer everything below a prefix with one model version, as Parquet in the predictions zone."""
    from pipeline import fan_out, far_answering
    from pipeline import predict as step

    settings, zones = open_all()
    with console.progress() as on_progress:
        result = step.predict(
            zones,
            model,
            prefix,
            version=version,
            name=name,
            open_source=partial(far_answering.source_at, settings, zones),
            map_parts=fan_out.map_parts(settings, zones),
            decode_threads=settings.decode_threads,
            scratch=settings.cache,
            on_progress=on_progress,
        )
    console.show_record(result, as_json=as_json, lines=step.summary(result))
