import os
import signal
import time
from pathlib import Path

import pytest
from live_server import wait_until
from serving_process import PNG, Start, point_at, register, restarted_store, store_pid

from pipeline.artifacts import ModelVersion
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder that a server may make."""
    return tmp_path / "cache"


@pytest.fixture
def zones(private_store: Settings) -> Zones:
    """Of the store that these tests stop."""
    return open_zones(private_store)


def answered_last(zones: Zones, settings: Settings, start: Start, **own: str) -> ModelVersion:
    """The version at which a server with these settings of its own was when it ended."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(settings, **own)
    server.wait_for(version, int(own.get("PROCESSES", "1")))
    assert server.end() == 0
    return version


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_restart_while_the_store_is_away_is_survived_by_the_cache(
    private_store: Settings, start: Start, zones: Zones, cache: Path, processes: str
) -> None:
    """Started without its store, a server answers with the version that answered last, and says what is wrong."""
    own = {"CACHE": str(cache), "PROCESSES": processes}
    first = answered_last(zones, private_store, start, **own)
    os.kill(store_pid(private_store), signal.SIGKILL)
    again = start(private_store, **own)
    again.wait_for(first, int(processes))
    assert again.client.post("/predict", content=PNG).json()["model_version"] == first.version
    assert "does not answer" in again.status()["swap_error"]["reason"]
    restarted_store(private_store)
    second = register(zones, 2)
    point_at(zones, second)
    again.wait_for(second, int(processes))
    wait_until(lambda: again.status()["swap_error"] is None)


def test_a_store_that_hangs_at_the_start_counts_as_away(
    private_store: Settings, start: Start, zones: Zones, cache: Path
) -> None:
    """The cached version answers long before the request to a frozen store is given up."""
    version = answered_last(zones, private_store, start, CACHE=str(cache))
    store = store_pid(private_store)
    os.kill(store, signal.SIGSTOP)
    try:
        again = start(private_store, CACHE=str(cache))
        begun = time.monotonic()
        again.wait_for(version)
        assert time.monotonic() - begun < 15
    finally:
        os.kill(store, signal.SIGCONT)


def test_a_damaged_cache_is_not_served(private_store: Settings, start: Start, zones: Zones, cache: Path) -> None:
    """One flipped byte of the model, and a server without its store has no model; with its store it has again."""
    version = answered_last(zones, private_store, start, CACHE=str(cache))
    (kept,) = cache.iterdir()
    data = bytearray(kept.read_bytes())
    data[-100] ^= 1
    kept.write_bytes(data)
    os.kill(store_pid(private_store), signal.SIGKILL)
    again = start(private_store, CACHE=str(cache))
    wait_until(lambda: again.status()["swap_error"] is not None)
    time.sleep(0.5)
    assert again.client.get("/v2/health/ready").status_code == 503
    assert again.client.post("/predict", content=PNG).status_code == 503
    assert "cannot be used: it was altered" in again.log.read_text()
    restarted_store(private_store)
    again.wait_for(version)


def test_the_cache_never_contradicts_the_alias(
    private_store: Settings, start: Start, zones: Zones, cache: Path
) -> None:
    """Where the alias can be read, a cached older version answers nothing, not for a moment."""
    answered_last(zones, private_store, start, CACHE=str(cache))
    second = register(zones, 2)
    point_at(zones, second)
    again = start(private_store, CACHE=str(cache))
    seen = set()
    wait_until(lambda: (seen.add(again.version()), second.version in seen)[1], 20)
    assert seen <= {None, second.version}
