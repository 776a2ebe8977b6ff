"""``safelight store …``: the object store."""

import typer

from pipeline import console, embedded_store
from pipeline import store_check as proof
from pipeline.cli_options import Json, read_settings
from pipeline.errors import InvalidInput
from pipeline.settings import ZONES, Settings
from pipeline.zones import open_zones, reachable

app = typer.Typer(help="The object store.", no_args_is_help=True)


@app.command("up")
def store_up(as_json: Json = False) -> None:
    """Start the embedded object store, or find it."""
    settings = reachable(read_settings())
    open_zones(settings)
    _show_store(settings, as_json=as_json)


@app.command("down")
def store_down() -> None:
    """Stop the embedded object store; what it holds stays."""
    stopped = embedded_store.down(read_settings().home)
    console.say("safelight: the object store is stopped." if stopped else "safelight: no object store was running.")


@app.command("status")
def store_status(as_json: Json = False) -> None:
    """Say which object store is used, and whether the embedded one runs."""
    settings = read_settings()
    if settings.uses_embedded_store and embedded_store.status(settings.home) is None:
        raise InvalidInput("the embedded object store is not running; start it by 'safelight store up'.")
    _show_store(reachable(settings), as_json=as_json)


@app.command("check")
def store_check(as_json: Json = False) -> None:
    """Prove that the object store keeps the promises that Safelight rests on."""
    zones = open_zones(read_settings())
    kept = proof.prove(zones.models)
    console.show_rows([{"promise": name, "kept": "yes" if ok else "NO"} for name, ok in kept.items()], as_json=as_json)
    if not all(kept.values()):
        raise InvalidInput(f"{zones.models.url} breaks a promise; use another object store.")


def _show_store(settings: Settings, *, as_json: bool) -> None:
    rows = [{"zone": zone, "url": settings.zone_url(zone), "endpoint": settings.s3_endpoint or "AWS"} for zone in ZONES]
    console.show_rows(rows, as_json=as_json)
