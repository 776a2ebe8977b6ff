"""``safelight models …``: model versions and aliases."""

from typing import Annotated, Any

import typer

from pipeline import aliases, console, registry
from pipeline.cli_options import Json, Model, open_all
from pipeline.zones import Zones

app = typer.Typer(help="Model versions and aliases.", no_args_is_help=True)


@app.command("list")
def models_list(
    model: Annotated[str | None, typer.Argument(help="One model; by default all.")] = None, as_json: Json = False
) -> None:
    """List model versions, newest first, with their aliases."""
    _, zones = open_all()
    names = [model] if model else registry.models_in(zones.models)
    rows = [row for name in names for row in _version_rows(zones, name)]
    if model and not rows:
        aliases.resolve(zones.models, model, aliases.NEWEST)
    if not rows:
        console.say("safelight: no model is registered yet; 'safelight run' trains and registers one.")
    console.show_rows(rows, as_json=as_json)


@app.command("show")
def models_show(
    model: Model, version: Annotated[str, typer.Argument(help="A version's id, or an alias.")] = aliases.CHAMPION
) -> None:
    """Print a model version's manifest as JSON."""
    _, zones = open_all()
    found = aliases.resolve(zones.models, model, version)
    print(registry.read_manifest(zones.models, model, found.version).to_json().decode(), end="")


@app.command("set-alias")
def models_set_alias(
    model: Model,
    alias: Annotated[str, typer.Argument(help="champion, or a name of your own.")],
    version: Annotated[str, typer.Argument(help="The version's id.")],
    reason: Annotated[str, typer.Option(help="Kept in the alias's history.")] = "set by hand",
    as_json: Json = False,
) -> None:
    """Point an alias at a model version; servers that follow it take that version."""
    _, zones = open_all()
    result = aliases.set_alias(zones.models, model, alias, version, reason=reason)
    console.show_record(result, as_json=as_json, lines=[f"{model}@{alias} is {result.version}."])


@app.command("rollback")
def models_rollback(
    model: Model,
    reason: Annotated[str, typer.Option(help="Kept in the alias's history.")] = "rolled back by hand",
    as_json: Json = False,
) -> None:
    """Point the champion alias at the version that was live before."""
    _, zones = open_all()
    result = aliases.rollback(zones.models, model, aliases.CHAMPION, reason=reason)
    console.show_record(result, as_json=as_json, lines=[f"{model}@{aliases.CHAMPION} is {result.version} again."])


def _version_rows(zones: Zones, model: str) -> list[dict[str, Any]]:
    pointing = aliases.list_aliases(zones.models, model)
    return [
        {
            "model": model,
            "version": manifest.version,
            "aliases": ", ".join(alias for alias, version in pointing.items() if version == manifest.version),
            "accuracy": round(manifest.metrics["accuracy"], 4),
            "dataset version": manifest.dataset.version,
            "created": manifest.created_at.isoformat(),
        }
        for manifest in registry.versions(zones.models, model)
    ]
