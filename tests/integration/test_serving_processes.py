import os
import signal
import time

import httpx
import psutil
import tiny_models
from live_server import wait_until
from scraping import total
from serving_process import MODEL, Serving, Start, point_at, register
from serving_traffic import traffic

from pipeline.settings import Settings
from pipeline.zones import Zones
from serving.swap import HUNG_S

CLIENTS = 16


def metric(server: Serving, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    return total(server.get("/metrics").text, name, **labels)


def test_processes_flip_together_under_load(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """In ten swaps under 16 clients nothing fails or mixes, and once somebody saw a version nobody sees an older."""
    versions = [register(zones, seed) for seed in range(1, 12)]
    point_at(zones, versions[0])
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(versions[0], 2)
    before = metric(server, "safelight_requests_total", route="predict")
    told = []
    with traffic(server, zones, versions, CLIENTS) as seen:
        wait_until(lambda: len(seen.answers) > 10 * CLIENTS)
        shares = [
            len([each for each in worker.net_connections() if each.status == psutil.CONN_ESTABLISHED])
            for worker in server.workers()
        ]
        for number, version in enumerate(versions[1:], 1):
            point_at(zones, version)
            server.wait_for(version, 2)
            told.append((time.monotonic(), number))
    assert not seen.wrong
    assert seen.broken == 0
    assert min(shares) >= 2, shares
    assert not seen.late()
    for at, number in told:
        assert all(answer.number >= number for answer in seen.answers if answer.sent > at)
    assert seen.numbers == set(range(len(versions)))
    assert metric(server, "safelight_requests_total", route="predict", status="200") == len(seen.answers) + before
    assert metric(server, "safelight_request_seconds_count", route="predict") == len(seen.answers) + before
    assert metric(server, "safelight_model_swaps_total") == len(versions)
    assert server.status()["generation"] == len(versions)


def test_a_killed_process_is_replaced_and_costs_only_its_own_requests(
    zones: Zones, zone_settings: Settings, start: Start
) -> None:
    """After a SIGKILL in the middle of swaps all others are answered, the swap passes, and the sums do not fall."""
    versions = [register(zones, seed) for seed in (1, 2, 3)]
    point_at(zones, versions[0])
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(versions[0], 2)
    victim = server.ready()[0]
    with traffic(server, zones, versions, CLIENTS) as seen:
        wait_until(lambda: len(seen.answers) > 10 * CLIENTS)
        counted = metric(server, "safelight_requests_total", route="predict")
        point_at(zones, versions[1])
        os.kill(victim, signal.SIGKILL)
        server.wait_for(versions[1], 2)
        point_at(zones, versions[2])
        server.wait_for(versions[2], 2)
    assert not seen.wrong
    assert seen.broken <= CLIENTS
    assert victim not in server.ready()
    assert metric(server, "safelight_requests_total", route="predict") >= max(counted, len(seen.answers))
    assert metric(server, "safelight_requests_total", route="predict") <= len(seen.answers) + seen.broken
    assert f"process {victim} ended" in server.log.read_text()


def test_a_process_that_hangs_holds_up_no_swap_and_never_answers_with_an_old_version(
    zones: Zones, zone_settings: Settings, start: Start
) -> None:
    """The others flip without it; when it goes on, its first answer names the new version."""
    first, second = register(zones, 1), register(zones, 2)
    point_at(zones, first)
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(first, 2)
    frozen = server.ready()[0]
    with traffic(server, zones, [first, second], clients=8) as seen:
        wait_until(lambda: len(seen.answers) > 100)
        os.kill(frozen, signal.SIGSTOP)
        try:
            point_at(zones, second)
            with httpx.Client(base_url=server.client.base_url, trust_env=False, timeout=1) as asking:
                wait_until(lambda: version_of(asking) == second.version, HUNG_S + 10)
            told = time.monotonic()
        finally:
            os.kill(frozen, signal.SIGCONT)
        wait_until(lambda: len(server.ready()) == 2, 20)
    assert not seen.wrong
    assert seen.broken == 0
    assert all(answer.number == 1 for answer in seen.answers if answer.sent > told)
    assert not seen.late()
    assert 1 in seen.numbers


def version_of(asking: httpx.Client) -> str | None:
    """What a process that does answer says is live; a connection that one took which does not is given up."""
    try:
        version: str | None = asking.get(f"/v2/models/{MODEL}", headers={"Connection": "close"}).json()["version"]
    except httpx.TimeoutException:
        return None
    return version


def test_a_version_that_one_process_cannot_load_goes_live_in_none(
    zones: Zones, zone_settings: Settings, start: Start
) -> None:
    """All processes stay at the old version, and the status and the metrics say why."""
    good = register(zones, 1)
    bad = tiny_models.register(zones.checkpoints, zones.models, MODEL, 2, onnx_file=b"not a model")
    point_at(zones, good)
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(good, 2)
    point_at(zones, bad)
    wait_until(lambda: server.status()["swap_error"] is not None)
    status = server.status()
    assert (status["version"], status["swap_error"]["version"]) == (good.version, bad.version)
    assert "cannot be loaded as an ONNX model" in status["swap_error"]["reason"]
    assert {each["version"] for each in status["processes"]} == {good.version}
    assert metric(server, "safelight_model_swap_failures_total") >= 1
    assert metric(server, "safelight_model_swap_failing") == 1
    point_at(zones, good)
    wait_until(lambda: server.status()["swap_error"] is None)


def test_a_pinned_server_of_several_processes_follows_no_alias(
    zones: Zones, zone_settings: Settings, start: Start
) -> None:
    """All its processes answer with the version that it is pinned to."""
    pinned, other = register(zones, 1), register(zones, 2)
    point_at(zones, other)
    server = start(zone_settings, PROCESSES="2", VERSION=pinned.version)
    server.wait_for(pinned, 2)
    assert {each["version"] for each in server.status()["processes"]} == {pinned.version}
    assert server.status()["alias"] is None
