"""Servers where platforms for containers run them: with models in a folder, and frozen while nobody asks."""

import signal
import time
from pathlib import Path

from live_server import wait_until
from serving_process import MODEL, PNG, Start, point_at, register

from pipeline.settings import Settings
from pipeline.store import Store
from pipeline.zones import Zones


def copied(store: Store, folder: Path) -> None:
    """Copy all objects into a folder, as any S3 tool does; the alias last."""
    for stored in sorted(store.listing(), key=lambda each: "/aliases/" in each.key):
        path = folder / stored.key
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(store.get(stored.key))
        partial.replace(path)


def test_a_folder_of_models_is_served(zones: Zones, start: Start, tmp_path: Path) -> None:
    """Models that were copied into an image or onto a volume answer without any object store, and are followed too."""
    folder = tmp_path / "models"
    first = register(zones, 1)
    point_at(zones, first)
    copied(zones.models, folder)
    server = start(Settings(home=tmp_path / "home", models_url=f"file://{folder}"))
    server.wait_for(first)
    assert server.client.post("/predict", content=PNG).json()["model_version"] == first.version
    assert server.get(f"/v2/models/{MODEL}/versions/{first.version}/report").status_code == 200
    second = register(zones, 2)
    point_at(zones, second)
    copied(zones.models, folder)
    server.wait_for(second)
    assert "Traceback" not in server.log.read_text()


def test_a_frozen_server_goes_on(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Given no processor time between requests, a server answers the next one at once, and then notices what is new."""
    first, second = register(zones, 1), register(zones, 2)
    point_at(zones, first)
    server = start(zone_settings)
    server.wait_for(first)
    server.process.send_signal(signal.SIGSTOP)
    point_at(zones, second)
    time.sleep(1)
    server.process.send_signal(signal.SIGCONT)
    answer = server.client.post("/predict", content=PNG)
    assert answer.status_code == 200
    assert answer.json()["model_version"] in {first.version, second.version}
    server.wait_for(second)
    wait_until(lambda: server.client.post("/predict", content=PNG).json()["model_version"] == second.version)
    assert server.end() == 0
