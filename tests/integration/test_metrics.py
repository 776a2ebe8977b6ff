"""What two inference servers of two processes each count, and what a Prometheus makes of it."""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tiny_models
from live_server import wait_until
from scraping import PANELS, Samples, prometheus, query_of, samples, total
from serving_process import MODEL, PNG, Serving, point_at, register, started

from pipeline import aliases
from pipeline.artifacts import utc_now
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

FORM = [("image", ("a.png", PNG)), ("image", ("b.png", PNG)), ("image", ("c.png", PNG))]
PIXELS = tiny_models.picture(5)
TENSOR = {"name": "pixels", "datatype": "UINT8", "shape": [1, *PIXELS.shape], "data": PIXELS.ravel().tolist()}


@dataclass(frozen=True)
class Asked:
    """What is sent, and what has to come of it: a status, and predictions for so many images."""

    given: Mapping[str, Any]
    status: int = 200
    images: int = 0
    route: str = "predict"

    @property
    def path(self) -> str:
        """Of the route."""
        return "/predict" if self.route == "predict" else f"/v2/models/{MODEL}/infer"


REQUESTS = (
    Asked({"content": PNG}, images=1),
    Asked({"content": PNG, "headers": {"Expect": "nothing"}}, images=1),
    Asked({"files": FORM}, images=len(FORM)),
    Asked({"json": {"inputs": [TENSOR]}}, images=1, route="infer"),
    Asked({"content": b"no image"}, 422),
    Asked({"files": [*FORM, ("image", ("d.png", b"no image"))]}, 422),
    Asked({"content": b""}, 400),
    Asked({"json": {"inputs": [TENSOR | {"shape": [2, *PIXELS.shape]}]}}, 400, route="infer"),
    Asked({"content": bytes(2 << 20)}, 413),
    Asked({"content": PNG, "headers": {"X-Request-Timeout-Ms": "0"}}, 504),
)
"""The servers of these tests take 1 MiB."""
EMPTY_WHILE_ALL_IS_WELL = {"Alerts"}


@dataclass(frozen=True)
class Fleet:
    """Two servers of two processes each, and the zones that they read."""

    zones: Zones
    servers: Sequence[Serving]


@pytest.fixture(scope="module")
def fleet(new_zone_settings: Callable[[], Settings], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All at the same version."""
    settings = new_zone_settings()
    zones, folder = open_zones(settings), tmp_path_factory.mktemp("servers")
    version = register(zones, 1)
    point_at(zones, version)
    with ExitStack() as running:
        own = {"PROCESSES": "2", "MAX_BODY_MB": "1"}
        servers = [running.enter_context(started(settings, folder / f"{name}.log", own)) for name in ("one", "other")]
        for server in servers:
            server.wait_for(version, 2)
        yield Fleet(zones, servers)


def fresh(server: Serving) -> httpx.Client:
    """A client that makes a new connection for each request, so that any process may answer."""
    return httpx.Client(base_url=server.client.base_url, headers={"Connection": "close"}, trust_env=False, timeout=30)


def send(server: Serving, times: int) -> None:
    """Each request so many times, four at once."""
    with fresh(server) as client, ThreadPoolExecutor(4) as clients:
        sent = clients.map(lambda asked: client.post(asked.path, **asked.given), REQUESTS * times)
        answered = [answer.status_code for answer in sent]
    assert answered == [asked.status for asked in REQUESTS * times]


def scraped_from_each(server: Serving) -> Iterator[Samples]:
    """What each process of a server says of all, asked while the others are frozen."""
    workers = server.workers()
    for asked in workers:
        with ExitStack() as frozen, fresh(server) as client:
            for other in workers:
                if other != asked:
                    other.suspend()
                    frozen.callback(other.resume)
            yield samples(client.get("/metrics").text)


def counters(scraped: Samples) -> Samples:
    """All that only grows, without the requests by which it is asked for."""
    grows = ("_total", "_count", "_sum", "_bucket")
    return {
        (name, labels): value
        for (name, labels), value in scraped.items()
        if name.endswith(grows) and ("route", "other") not in labels
    }


def replaced(server: Serving) -> psutil.Process:
    """One of its processes, killed; another one has taken its place."""
    victim = server.workers()[0]
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: victim.pid not in server.ready() and len(server.ready()) == 2, 30)
    return victim


def test_two_replicas_count_exactly_what_was_answered_also_over_a_kill(fleet: Fleet) -> None:
    """The sums over both are what clients got, whichever process is asked; the killed one was not answering anything.

    Of requests under way in a process that is killed nobody can know whether they were answered; here there are none.
    """
    replicas = fleet.servers
    for server in replicas:
        send(server, 3)
    victim = replaced(replicas[0])
    for server in replicas:
        send(server, 2)
    every = REQUESTS * len(replicas) * (3 + 2)
    statuses = Counter(asked.status for asked in every)
    images = sum(asked.images for asked in every)

    def answered() -> float:
        texts[:] = [server.get("/metrics").text for server in replicas]
        return sum(said("safelight_requests_total", route=route) for route in ("predict", "infer"))

    def said(name: str, **labels: str) -> float:
        return sum(total(text, name, **labels) for text in texts)

    texts: list[str] = []
    wait_until(lambda: answered() == len(every))  # a client may have its answer an instant before it is counted
    for (route, status), count in Counter((asked.route, asked.status) for asked in every).items():
        assert said("safelight_requests_total", route=route, status=str(status)) == count
    assert said("safelight_request_seconds_count", route="infer") == len([1 for each in every if each.route == "infer"])
    assert said("safelight_prediction_seconds_count", role="champion") == statuses[200]
    assert said("safelight_prediction_confidence_count", role="champion") == images
    assert said("safelight_predictions_total", role="champion") == images
    assert said("safelight_batch_images_sum") == images
    assert said("safelight_rejections_total", reason="deadline") == statuses[504]
    assert said("safelight_rejections_total", reason="invalid") == statuses[422] + statuses[400]
    assert said("safelight_rejections_total", reason="too_large") == statuses[413]
    assert said("safelight_rejections_total") == len(every) - statuses[200]
    assert said("safelight_queue_images") == 0
    assert said("safelight_process_deaths_total") == 1
    for server in replicas:
        first, second = scraped_from_each(server)
        assert counters(first) == counters(second)
        pids = {dict(labels)["pid"] for name, labels in first if name == "safelight_process_info"}
        assert pids == {str(worker.pid) for worker in server.workers()}
        assert str(victim.pid) not in pids


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus")
def test_prometheus_has_an_answer_to_every_question_of_the_dashboard(fleet: Fleet, tmp_path: Path) -> None:
    """Two servers with a champion and a challenger, the stack's own rules, and each panel's queries."""
    challenger = register(fleet.zones, 2).version
    canary = aliases.Canary(challenger=challenger, share=0.5, mode="split", step=1, started_at=utc_now())
    aliases.set_canary(fleet.zones.models, MODEL, aliases.CHAMPION, canary, reason="test")
    addresses = [str(server.client.base_url.netloc, "ascii") for server in fleet.servers]
    queries = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    with prometheus(tmp_path, addresses) as asked:

        def lacking() -> set[str]:
            for server in fleet.servers:
                send(server, 1)
            return {title for title, query in queries if not asked.asked(query_of(query, "5s"))}

        deadline = time.monotonic() + 30
        while found := lacking() - EMPTY_WHILE_ALL_IS_WELL:
            assert time.monotonic() < deadline, found
        assert {each["value"][1] for each in asked.asked("up")} == {"1"}
        versions = {each["metric"]["version"] for each in asked.asked('safelight_model_info{role="challenger"}')}
        assert versions == {challenger}
