import signal
import socket
import time

import psutil
import pytest
from live_server import wait_until
from serving_process import PNG, Start, point_at, register
from serving_traffic import traffic

from pipeline.settings import Settings
from pipeline.zones import Zones


def test_sigterm_answers_what_is_under_way(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """A request that is half sent when SIGTERM comes is still answered; then the process ends with status 0."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings)
    server.wait_for(version)
    url = server.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=10) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG[:50])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        slow.sendall(PNG[50:])
        answer = slow.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.log.read_text()


def test_idle_connections_do_not_keep_it_from_ending(zone_settings: Settings, start: Start) -> None:
    """A client that keeps its connection open does not delay the end."""
    server = start(zone_settings)
    assert server.client.get("/v2/health/live").status_code == 200
    begun = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_drain_refuses_nobody(zones: Zones, zone_settings: Settings, start: Start, processes: str) -> None:
    """Told to end, a server is not ready at once, answers until the drain is over, and asks its clients to go."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, PROCESSES=processes, DRAIN_S="2")
    server.wait_for(version, int(processes))
    begun = time.monotonic()
    with traffic(server, zones, [version], clients=4) as seen:
        wait_until(lambda: len(seen.answers) > 40)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.client.get("/v2/health/ready").status_code == 503, 1)
        told = time.monotonic()
        time.sleep(0.5)
        closing = server.client.post("/predict", content=PNG)
        assert (closing.status_code, closing.headers["connection"]) == (200, "close")
        wait_until(lambda: seen.broken > 0)
        assert time.monotonic() - told > 1.5
    assert server.process.wait(10) == 0
    assert time.monotonic() - begun < 20
    assert not seen.wrong
    assert max(answer.sent for answer in seen.answers) > told + 1.5
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    zones: Zones, zone_settings: Settings, start: Start, processes: str, second: signal.Signals
) -> None:
    """Who asks twice does not want to wait for the drain; the status is 0 all the same."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, PROCESSES=processes, DRAIN_S="60")
    server.wait_for(version, int(processes))
    children = server.workers()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert server.process.poll() is None
    begun = time.monotonic()
    server.process.send_signal(second)
    assert server.process.wait(5) == 0
    assert time.monotonic() - begun < 2
    assert not [child for child in children if child.is_running()]


def test_a_signal_to_every_process_is_one_signal(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Where all processes are told to end, as service managers do, each drains as if only the parent had been told."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, PROCESSES="2", DRAIN_S="1.5")
    server.wait_for(version, 2)
    begun = time.monotonic()
    for process in (*server.workers(), server.process):
        process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert server.client.post("/predict", content=PNG).status_code == 200
    assert server.process.wait(15) == 0
    assert time.monotonic() - begun > 1.5


def test_processes_end_with_their_supervisor(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Killed without a chance to tell anybody, the supervisor leaves no process and no open port behind."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(version, 2)
    children = server.workers()
    assert len(children) == 2
    server.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 2
    assert not alive
