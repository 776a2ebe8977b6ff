"""Servers where platforms run them: models in a folder, credentials from a role, frozen while nobody asks."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from environs import credentials
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


@contextmanager
def role(key: str, secret: str, token: str) -> Iterator[str]:
    """URL at which the credentials of a container's role are handed out, as on ECS and EKS, for a token."""

    class Role(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == token
            said = {"AccessKeyId": key, "SecretAccessKey": secret, "Token": "", "Expiration": "2099-01-01T00:00:00Z"}
            self.send_response(200 if known else 403)
            self.end_headers()
            self.wfile.write(json.dumps(said if known else {}).encode())

    with HTTPServer(("127.0.0.1", 0), Role) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_credentials_come_from_a_role(
    zones: Zones, zone_settings: Settings, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys of its own, a server asks the platform for those of its container's role."""
    version = register(zones, 1)
    point_at(zones, version)
    (tmp_path / "token").write_text("of this container")
    without = zone_settings.model_copy(update={"s3_access_key_id": None, "s3_secret_access_key": None})
    with role(*credentials(zone_settings), "of this container") as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
        server = start(without)
        server.wait_for(version)
        assert server.client.post("/predict", content=PNG).status_code == 200
