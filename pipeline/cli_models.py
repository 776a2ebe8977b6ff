"""``safelight models …``: model versions and aliases."""

from typing import Annotated, Any

import typer

from pipeline import aliases, console, registry
from pipeline.aliases import AliasState, Canary
from pipeline.artifacts import utc_now
from pipeline.cli_options import Json, Model, open_all
from pipeline.errors import InvalidInput
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


@app.command("canary")
def models_canary(
    model: Model,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Give it this share of the requests.")] = None,
    version: Annotated[
        str | None, typer.Option(help="A version's id, or an alias; by default the one under way, or the challenger.")
    ] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Give it copies, which answer nobody.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Give it nothing any more; the champion stays.")] = False,
    as_json: Json = False,
) -> None:
    """Show which version gets a share of the requests beside the champion; set that share by hand, or end it."""
    _, zones = open_all()
    if stop and share is not None:
        raise InvalidInput("--stop gives nothing any more, so it takes no --share.")
    if share is None and (version is not None or shadow):
        raise InvalidInput("--version and --shadow say who gets a share, and how: give --share too.")
    if stop:
        result = aliases.set_canary(zones.models, model, aliases.CHAMPION, None, reason="canary: stopped by hand")
    elif share is not None:
        result = _share_by_hand(zones, model, share, version, "shadow" if shadow else "split")
    else:
        result = _champion(zones, model)
    console.show_record(result, as_json=as_json, lines=[_canary_line(model, result)])


def _share_by_hand(zones: Zones, model: str, share: float, version: str | None, mode: aliases.Mode) -> AliasState:
    """What the alias says once a version has this share; a ramp of that version goes on from there."""
    found = aliases.read_alias(zones.models, model, aliases.CHAMPION)
    under_way, etag = (found[0].canary, found[1]) if found else (None, None)
    name = version or (under_way.challenger if under_way else aliases.CHALLENGER)
    challenger = aliases.resolve(zones.models, model, name).version
    same = under_way if under_way and under_way.challenger == challenger else None
    canary = Canary(
        challenger=challenger,
        share=share,
        mode=mode,
        step=same.step if same else 0,
        started_at=same.started_at if same else utc_now(),
    )
    reason = f"canary: {share:.4g} set by hand"
    return aliases.set_canary(zones.models, model, aliases.CHAMPION, canary, reason=reason, expected=etag)


def _champion(zones: Zones, model: str) -> AliasState:
    found = aliases.read_alias(zones.models, model, aliases.CHAMPION)
    if found is None:
        raise registry.not_found(zones.models, model, f"no alias {aliases.CHAMPION!r}")
    return found[0]


def _canary_line(model: str, state: AliasState) -> str:
    canary = state.canary
    if canary is None:
        return f"{model}: {state.version} answers everything; the last change was: {state.reason}."
    what = "a copy of " if canary.mode == "shadow" else ""
    return (
        f"{model}: {canary.challenger} gets {what}{100 * canary.share:.4g} % of the requests beside {state.version}, "
        f"step {canary.step}, since {canary.started_at:%Y-%m-%d %H:%M:%S} UTC."
    )


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
