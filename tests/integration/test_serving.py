import os
import signal
import struct
import time
import zlib

import numpy as np
import psutil
import pytest
import tiny_models
from live_server import wait_until
from serving_process import MODEL, PNG, Start, point_at, register, restarted_store, store_pid
from serving_traffic import traffic

from pipeline.onnx_model import OnnxModel
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones


def large_png(side: int) -> bytes:
    """A black grey PNG of ``side`` x ``side`` pixels, a few hundred KB even where its pixels would fill memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(side + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_images_are_classified_over_http(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """A registered model behind the alias answers raw bodies and forms as it answers in this process."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings)
    server.wait_for(version)
    model = OnnxModel(zones.models.get(f"{MODEL}/{version.version}/model.onnx"))
    expected = model.probabilities(tiny_models.picture(5)[None])[0]
    asked = {"X-Request-Id": "same"}
    raw = server.client.post("/predict", content=PNG, headers=asked).json()
    assert raw["label"] == tiny_models.DATASET.classes[int(np.argmax(expected))]
    assert raw["probability"] == pytest.approx(float(expected.max()), abs=1e-4)
    assert raw["model_version"] == version.version
    assert server.client.post("/predict", files={"image": ("a.png", PNG)}, headers=asked).json() == raw
    assert server.client.get(f"/v2/models/{MODEL}/versions/{version.version}/report").content == tiny_models.REPORT


def test_an_answer_waits_for_no_acknowledgement(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """On a connection that is kept open, half of the answers take less than 20 ms (Nagle's algorithm would add 40)."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings)
    server.wait_for(version)
    seconds = []
    for _ in range(50):
        begun = time.perf_counter()
        server.client.post("/predict", content=PNG)
        seconds.append(time.perf_counter() - begun)
    assert sorted(seconds)[25] < 0.02


def test_hostile_bytes_cost_neither_a_5xx_nor_much_time(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Bombs, noise and broken files are refused with a reason, each within two seconds, in bounded memory."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings)
    server.wait_for(version)
    before = psutil.Process(server.process.pid).memory_info().rss
    noise = np.random.default_rng(0).bytes(20 << 20)
    hostile = [large_png(13_000), large_png(20_000), noise, noise[:1000], b"text", PNG[:-20], PNG[:40], b"\xff\xd8\xff"]
    for data in hostile:
        begun = time.monotonic()
        for answer in (
            server.client.post("/predict", content=data),
            server.client.post("/predict", files={"f": ("x", data)}),
        ):
            assert answer.status_code == 422, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        assert time.monotonic() - begun < 4
    after = psutil.Process(server.process.pid).memory_info().rss
    assert after - before < 200 << 20
    assert server.client.post("/predict", content=PNG).status_code == 200


def test_swaps_under_load_drop_and_mix_nothing(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """While versions change, each request is answered by the version that it names, and after a swap by the new one."""
    versions = [register(zones, seed) for seed in (1, 2, 3)]
    point_at(zones, versions[0])
    server = start(zone_settings)
    server.wait_for(versions[0])
    with traffic(server, zones, versions, clients=4) as seen:
        for version in (versions[1], versions[2], versions[0], versions[1]):
            point_at(zones, version)
            server.wait_for(version)
            assert server.client.post("/predict", content=PNG).json()["model_version"] == version.version
    assert not seen.wrong
    assert seen.broken == 0
    assert seen.numbers == {0, 1, 2}


def test_a_server_without_a_model_gets_ready_by_itself(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Started before anything is registered, it is live, not ready, and later ready."""
    server = start(zone_settings)
    assert server.client.get("/v2/health/live").status_code == 200
    assert server.client.get("/v2/health/ready").status_code == 503
    assert server.client.post("/predict", content=PNG).status_code == 503
    version = register(zones, 1)
    point_at(zones, version)
    server.wait_for(version)
    assert server.client.get("/v2/health/ready").status_code == 200
    assert server.client.post("/predict", content=PNG).status_code == 200


def test_a_model_altered_in_the_store_never_answers(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Bytes that are not those of the manifest are not loaded: the old version stays, and the status says why."""
    good, bad = register(zones, 1), register(zones, 2)
    point_at(zones, good)
    server = start(zone_settings)
    server.wait_for(good)
    zones.models.put(f"{MODEL}/{bad.version}/model.onnx", tiny_models.linear_onnx(tiny_models.DATASET, 3))
    point_at(zones, bad)
    wait_until(lambda: server.client.get(f"/v2/models/{MODEL}").json()["swap_error"] is not None)
    status = server.client.get(f"/v2/models/{MODEL}").json()
    assert (status["version"], status["swap_error"]["version"]) == (good.version, bad.version)
    assert "was altered" in status["swap_error"]["reason"]
    assert server.client.post("/predict", content=PNG).json()["model_version"] == good.version


def test_it_goes_on_answering_while_the_store_is_away(private_store: Settings, start: Start) -> None:
    """Without its store the server answers as before and says so; when the store is back it follows the alias again."""
    zones = open_zones(private_store)
    first, second = register(zones, 1), register(zones, 2)
    point_at(zones, first)
    server = start(private_store)
    server.wait_for(first)
    os.kill(store_pid(private_store), signal.SIGKILL)
    wait_until(lambda: server.client.get(f"/v2/models/{MODEL}").json()["swap_error"] is not None)
    assert server.client.get("/v2/health/ready").status_code == 200
    assert server.client.post("/predict", content=PNG).json()["model_version"] == first.version
    report = server.client.get(f"/v2/models/{MODEL}/versions/{first.version}/report")
    assert (report.status_code, report.headers["content-type"]) == (503, "application/problem+json")
    assert server.client.get(f"/v2/models/{MODEL}/versions").status_code == 503
    restarted_store(private_store)
    point_at(zones, second)
    server.wait_for(second)
    wait_until(lambda: server.status()["swap_error"] is None)


def test_a_store_that_hangs_holds_up_nothing(private_store: Settings, start: Start) -> None:
    """A store that accepts connections and never answers delays neither predictions nor the end of the process."""
    zones = open_zones(private_store)
    version = register(zones, 1)
    point_at(zones, version)
    server = start(private_store)
    server.wait_for(version)
    store = store_pid(private_store)
    os.kill(store, signal.SIGSTOP)
    try:
        time.sleep(0.5)
        for _ in range(20):
            assert server.client.post("/predict", content=PNG, timeout=2).status_code == 200
        assert server.end() == 0
    finally:
        os.kill(store, signal.SIGCONT)
