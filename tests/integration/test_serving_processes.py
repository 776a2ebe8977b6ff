import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import tiny_models
from live_server import wait_until
from prometheus_client.parser import text_string_to_metric_families
from serving_process import MODEL, PNG, Serving, Start, point_at, register, restarted_store, store_pid

from pipeline.artifacts import ModelVersion
from pipeline.onnx_model import OnnxModel
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones
from serving.swap import HUNG_S

CLIENTS = 16


@dataclass(frozen=True)
class Answer:
    """When a request was sent and answered, and the number of the version that answered it."""

    sent: float
    received: float
    number: int


@dataclass
class Traffic:
    """What clients that keep their connections open were answered.

    Attributes:
        answers: of each client, in order.
        wrong: answers that are no prediction, or another one than their version gives.
        broken: connections that broke off.
    """

    answers: list[list[Answer]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    broken: int = 0

    @property
    def count(self) -> int:
        """Answers so far."""
        return sum(map(len, self.answers))

    @property
    def all(self) -> list[Answer]:
        """Of all clients."""
        return [answer for own in self.answers for answer in own]

    def late(self) -> list[Answer]:
        """Answers by a version although a newer one had answered somebody before they were asked for."""
        first = {number: min(answer.received for answer in self.all if answer.number == number) for number in self.seen}
        return [
            answer
            for answer in self.all
            if any(number > answer.number and received < answer.sent for number, received in first.items())
        ]

    @property
    def seen(self) -> set[int]:
        """The versions that answered."""
        return {answer.number for answer in self.all}


@contextmanager
def traffic(
    server: Serving, zones: Zones, versions: Sequence[ModelVersion], clients: int = CLIENTS
) -> Iterator[Traffic]:
    """Clients that send one image after the other; versions are told apart by their place in ``versions``."""
    expected = {}
    for number, each in enumerate(versions):
        model = OnnxModel(zones.models.get(f"{MODEL}/{each.version}/model.onnx"))
        expected[each.version] = number, float(model.probabilities(tiny_models.picture(5)[None]).max())
    seen, stop = Traffic(answers=[[] for _ in range(clients)]), threading.Event()

    def send(own: list[Answer]) -> None:
        with httpx.Client(base_url=server.client.base_url, trust_env=False, timeout=30) as client:
            while not stop.is_set():
                sent = time.monotonic()
                try:
                    answer = client.post("/predict", content=PNG)
                except httpx.TransportError:
                    seen.broken += 1
                    continue
                said = answer.json()
                number, probability = expected.get(said.get("model_version"), (-1, -1.0))
                if answer.status_code != 200 or abs(said["probability"] - probability) > 1e-4:
                    seen.wrong.append(answer.text)
                own.append(Answer(sent, time.monotonic(), number))

    senders = [threading.Thread(target=send, args=[own]) for own in seen.answers]
    for sender in senders:
        sender.start()
    try:
        yield seen
    finally:
        stop.set()
        for sender in senders:
            sender.join()


def metric(server: Serving, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def workers(server: Serving) -> list[psutil.Process]:
    """The processes that answer."""
    return psutil.Process(server.process.pid).children()


def test_processes_flip_together_under_load(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """In ten swaps under 16 clients nothing fails or mixes, and once somebody saw a version nobody sees an older."""
    versions = [register(zones, seed) for seed in range(1, 12)]
    point_at(zones, versions[0])
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(versions[0], 2)
    before = metric(server, "safelight_requests_total", route="/predict")
    told = []
    with traffic(server, zones, versions) as seen:
        wait_until(lambda: seen.count > 10 * CLIENTS)
        shares = [
            len([each for each in worker.net_connections() if each.status == psutil.CONN_ESTABLISHED])
            for worker in workers(server)
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
        assert all(answer.number >= number for answer in seen.all if answer.sent > at)
    assert seen.seen == set(range(len(versions)))
    assert metric(server, "safelight_requests_total", route="/predict", status="200") == seen.count + before
    assert metric(server, "safelight_request_seconds_count", route="/predict") == seen.count + before
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
    with traffic(server, zones, versions) as seen:
        wait_until(lambda: seen.count > 10 * CLIENTS)
        counted = metric(server, "safelight_requests_total", route="/predict")
        point_at(zones, versions[1])
        os.kill(victim, signal.SIGKILL)
        server.wait_for(versions[1], 2)
        point_at(zones, versions[2])
        server.wait_for(versions[2], 2)
    assert not seen.wrong
    assert seen.broken <= CLIENTS
    assert victim not in server.ready()
    assert metric(server, "safelight_requests_total", route="/predict") >= counted
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
        wait_until(lambda: seen.count > 100)
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
    assert all(answer.number == 1 for answer in seen.all if answer.sent > told)
    assert not seen.late()
    assert 1 in seen.seen


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


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_restart_while_the_store_is_away_is_survived_by_the_cache(
    private_store: Settings, start: Start, tmp_path: Path, processes: str
) -> None:
    """Started without its store, a server answers with the version that answered last, and says what is wrong."""
    zones = open_zones(private_store)
    first, second = register(zones, 1), register(zones, 2)
    point_at(zones, first)
    own = {"CACHE": str(tmp_path / "cache"), "PROCESSES": processes}
    server = start(private_store, **own)
    server.wait_for(first, int(processes))
    assert server.end() == 0
    os.kill(store_pid(private_store), signal.SIGKILL)
    again = start(private_store, **own)
    again.wait_for(first, int(processes))
    assert again.client.post("/predict", content=PNG).json()["model_version"] == first.version
    assert "does not answer" in again.status()["swap_error"]["reason"]
    restarted_store(private_store)
    point_at(zones, second)
    again.wait_for(second, int(processes))
    assert again.status()["swap_error"] is None


def test_a_store_that_hangs_at_the_start_counts_as_away(private_store: Settings, start: Start, tmp_path: Path) -> None:
    """The cached version answers long before the request to a frozen store is given up."""
    zones = open_zones(private_store)
    version = register(zones, 1)
    point_at(zones, version)
    server = start(private_store, CACHE=str(tmp_path / "cache"))
    server.wait_for(version)
    assert server.end() == 0
    store = store_pid(private_store)
    os.kill(store, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        start(private_store, CACHE=str(tmp_path / "cache")).wait_for(version)
        assert time.monotonic() - begun < 15
    finally:
        os.kill(store, signal.SIGCONT)


def test_a_damaged_cache_is_not_served(private_store: Settings, start: Start, tmp_path: Path) -> None:
    """One flipped byte of the model, and a server without its store has no model; with its store it has again."""
    zones = open_zones(private_store)
    version = register(zones, 1)
    point_at(zones, version)
    server = start(private_store, CACHE=str(tmp_path / "cache"))
    server.wait_for(version)
    assert server.end() == 0
    (kept,) = (tmp_path / "cache").iterdir()
    data = bytearray(kept.read_bytes())
    data[-100] ^= 1
    kept.write_bytes(data)
    os.kill(store_pid(private_store), signal.SIGKILL)
    again = start(private_store, CACHE=str(tmp_path / "cache"))
    wait_until(lambda: again.status()["swap_error"] is not None)
    time.sleep(0.5)
    assert again.client.get("/v2/health/ready").status_code == 503
    assert again.client.post("/predict", content=PNG).status_code == 503
    assert "cannot be used: it was altered" in again.log.read_text()
    restarted_store(private_store)
    again.wait_for(version)


def test_the_cache_never_contradicts_the_alias(private_store: Settings, start: Start, tmp_path: Path) -> None:
    """Where the alias can be read, a cached older version answers nothing, not for a moment."""
    zones = open_zones(private_store)
    first, second = register(zones, 1), register(zones, 2)
    point_at(zones, first)
    server = start(private_store, CACHE=str(tmp_path / "cache"))
    server.wait_for(first)
    assert server.end() == 0
    point_at(zones, second)
    again = start(private_store, CACHE=str(tmp_path / "cache"))
    seen = set()
    wait_until(lambda: (seen.add(again.version()), second.version in seen)[1], 20)
    assert seen <= {None, second.version}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_drain_refuses_nobody(zones: Zones, zone_settings: Settings, start: Start, processes: str) -> None:
    """Told to end, a server is not ready at once, answers until the drain is over, and asks its clients to go."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, PROCESSES=processes, DRAIN_S="2")
    server.wait_for(version, int(processes))
    begun = time.monotonic()
    with traffic(server, zones, [version], clients=4) as seen:
        wait_until(lambda: seen.count > 40)
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
    assert max(answer.sent for answer in seen.all) > told + 1.5
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
    children = workers(server)
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
    for process in (*workers(server), server.process):
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
    children = workers(server)
    assert len(children) == 2
    server.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 2
    assert not alive


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
