"""``safelight store …``: the object store."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

import typer

from pipeline import console, embedded_store, file_cache
from pipeline import store_check as proof
from pipeline.cli_options import Json, open_all, read_settings
from pipeline.errors import Corrupted, InvalidInput
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


@app.command("verify")
def store_verify(as_json: Json = False) -> None:
    """Read everything that is complete, and say what is not as it was written."""
    from pipeline import verification

    _, zones = open_all()
    with console.progress() as on_progress:
        result = verification.verify(zones, on_progress=on_progress)
    lines = [f"{count:>9,} {kind}" for kind, count in result.counts.items()]
    lines += [f"{broken.address}: {broken.fault}" for broken in result.broken]
    console.show_record(result, as_json=as_json, lines=lines or ["Nothing is stored yet."])
    if result.broken:
        raise Corrupted(
            f"{len(result.broken):,} of {sum(result.counts.values()):,} stored objects are not as they were written: "
            "make them anew, or restore them from a copy; the list above names them."
        )


@app.command("backup")
def store_backup(
    url: Annotated[str, typer.Argument(help="Where to: file:///folder or s3://bucket/prefix; earlier copies go on.")],
    as_json: Json = False,
) -> None:
    """Copy everything that is stored, also while others write."""
    from pipeline import backup

    settings, zones = open_all()
    with console.progress() as on_progress:
        done = backup.back_up(zones, settings, url, on_progress=on_progress)
    console.show_record(done, as_json=as_json, lines=_copied(done.copied, done.there))


@app.command("restore")
def store_restore(
    url: Annotated[str, typer.Argument(help="Of a copy that 'safelight store backup' made.")], as_json: Json = False
) -> None:
    """Fill an empty store from a copy."""
    from pipeline import backup

    settings, zones = open_all()
    with console.progress() as on_progress:
        found, done = backup.restore(url, settings, zones, on_progress=on_progress)
    console.show_record(done, as_json=as_json, lines=_copied(done.copied, done.there))
    begun = f"{found.begun_at:%Y-%m-%d %H:%M:%SZ}"
    console.say(f"safelight: the store is as it was at {begun}; 'safelight store verify' reads it all.")


@app.command("gc")
def store_gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only listed.")] = False,
    older_than: Annotated[float, typer.Option(min=1, help="Hours that an object must be old.")] = 24.0,
    quarantine_days: Annotated[float, typer.Option(min=1, help="The same in days, for lists of images left out.")] = 30,
    abandoned_days: Annotated[
        float | None,
        typer.Option(min=1, help="Give up unfinished training runs without a checkpoint for so many days; else kept."),
    ] = None,
    caches: Annotated[bool, typer.Option("--caches", help="With --delete, empty the local cache too.")] = False,
    as_json: Json = False,
) -> None:
    """List what nothing refers to, or remove it."""
    from pipeline import garbage, unreferenced

    settings, zones = open_all()
    kept_days = settings.predictions_retention_days
    limits = unreferenced.Limits(
        older_than=timedelta(hours=older_than),
        quarantine=timedelta(days=quarantine_days),
        abandoned=None if abandoned_days is None else timedelta(days=abandoned_days),
        predictions=timedelta(days=kept_days) if kept_days else None,
    )
    with console.progress() as on_progress:
        swept = garbage.sweep(zones, settings, limits, remove=delete, on_progress=on_progress)
    for sentence in swept.left_alone:
        console.say(f"safelight: {sentence}")
    console.show_record(swept, as_json=as_json, lines=garbage.summary(swept))
    if delete and caches:
        files, size = file_cache.clear(settings.cache)
        console.say(f"safelight: {files:,} files of the local cache removed ({size:,} bytes).")


def _copied(copied: Mapping[str, int], there: Mapping[str, int]) -> list[str]:
    return [f"{zone:<12}{copied.get(zone, 0):>12,} copied{there.get(zone, 0):>12,} there already" for zone in ZONES]


def _show_store(settings: Settings, *, as_json: bool) -> None:
    rows = [{"zone": zone, "url": settings.zone_url(zone), "endpoint": settings.s3_endpoint or "AWS"} for zone in ZONES]
    console.show_rows(rows, as_json=as_json)
