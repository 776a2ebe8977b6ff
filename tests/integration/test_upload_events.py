"""Uploads that start runs: a real adapter, a real Prefect server, a real store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import synthetic
from environs import on_one_core
from prefect_stack import Stack, free_port, kill, prefect_stack, server, stop, until

from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

pytestmark = pytest.mark.timeout(600)

QUIET_S = 3.0
POLL_S = 1.0
SETTLED_S = 12.0
"""Long enough for a run that should not be there."""


@pytest.fixture(scope="module")
def settings(store_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a home and of zones that the tests of this file share."""
    home = tmp_path_factory.mktemp("uploads")
    return store_settings.model_copy(update={"home": home, "store_url": f"s3://safelight-tests/{home.name}"})


@pytest.fixture(scope="module")
def shared(settings: Settings) -> Zones:
    """The zones of this file."""
    return open_zones(settings)


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[Stack]:
    """A Prefect server without any worker: what runs would do is not of interest here."""
    with prefect_stack(settings.home, on_one_core(settings)) as running:
        yield running


@contextmanager
def adapter(stack: Stack, **more: str) -> Iterator[httpx.Client]:
    """The adapter's process, and a client of its endpoint."""
    port = free_port()
    environ = {
        "SAFELIGHT_UPLOADS_QUIET_S": str(QUIET_S),
        "SAFELIGHT_UPLOADS_POLL_S": str(POLL_S),
        "SAFELIGHT_UPLOADS_TOKEN": "a token",
        "SAFELIGHT_UPLOADS_PORT": str(port),
    }
    process = stack.module("pipeline.upload_events", **(environ | more))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            until(lambda: _is_well(client), 60, "adapter")
            yield client
    finally:
        stop(process)


def runs(stack: Stack, dataset: str) -> list[dict[str, Any]]:
    """All runs of the pipeline for a dataset, the oldest first."""
    found = stack.ask("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["pipeline"]}}, "limit": 200})
    ours = [run for run in found if run["parameters"].get("dataset") == dataset]
    return sorted(ours, key=lambda run: str(run["created"]))


def settle(stack: Stack, dataset: str, count: int) -> None:
    """So many runs, and no more a while later."""
    until(lambda: len(runs(stack, dataset)) >= count, 60, f"run number {count} of {dataset}")
    with pytest.raises(AssertionError, match="no surplus"):
        until(lambda: len(runs(stack, dataset)) > count, SETTLED_S, "surplus")


def finish(stack: Stack, dataset: str) -> None:
    """End the newest run of a dataset, as a worker would."""
    state = {"state": {"type": "COMPLETED"}, "force": True}
    stack.ask("POST", f"flow_runs/{runs(stack, dataset)[-1]['id']}/set_state", state)


def test_what_was_there_before_starts_nothing(stack: Stack, shared: Zones) -> None:
    """The first time ever, what is stored is where the watching begins; it must be the first test of this file."""
    synthetic.put_classes(shared, "before", 5)
    with adapter(stack):
        settle(stack, "before", 0)


def test_many_uploads_make_one_run(stack: Stack, shared: Zones) -> None:
    """Three hundred images of a new dataset, some seconds apart, start one run, with an event for people's own use."""
    with adapter(stack):
        for start in range(0, 300, 60):
            synthetic.put_classes(shared, "many", 20, start=start)
        settle(stack, "many", 1)
    wanted = {"filter": {"event": {"name": ["safelight.images.uploaded"]}}}
    events = until(lambda: stack.ask("POST", "events/filter", wanted)["events"], 30, "event")
    assert [event["payload"]["dataset"] for event in events] == ["many"]
    assert events[0]["payload"]["objects"] == 300


def test_uploads_during_a_run_make_one_more_afterwards(stack: Stack, shared: Zones) -> None:
    """While the run is under way nothing is started; after its end, once."""
    with adapter(stack):
        synthetic.put_classes(shared, "during", 5)
        settle(stack, "during", 1)
        synthetic.put_classes(shared, "during", 5, start=15)
        settle(stack, "during", 1)
        finish(stack, "during")
        settle(stack, "during", 2)
        finish(stack, "during")
        settle(stack, "during", 2)


def test_uploads_without_end_are_trained_on(stack: Stack, shared: Zones) -> None:
    """Although nothing is ever quiet, the longest wait ends in a run."""
    with adapter(stack, SAFELIGHT_UPLOADS_LONGEST_S="6", SAFELIGHT_UPLOADS_QUIET_S="60"):
        number = iter(range(10_000))

        def upload() -> bool:
            shared.images.put(f"endless/class-{(at := next(number)) % 2}/{at}.png", synthetic.png(at))
            return bool(runs(stack, "endless"))

        until(upload, 60, "run")


def test_what_was_uploaded_while_it_was_away_is_found(stack: Stack, shared: Zones) -> None:
    """Nothing is lost while the adapter is down, and what had its run gets no second one."""
    synthetic.put_classes(shared, "away", 5)
    with adapter(stack):
        settle(stack, "away", 1)
    finish(stack, "away")
    with adapter(stack):
        settle(stack, "away", 1)
    synthetic.put_classes(shared, "away", 5, start=15)
    with adapter(stack):
        settle(stack, "away", 2)


def test_a_prefect_server_that_is_away_is_waited_for(
    store_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Uploads while the server is killed start their run once it is back."""
    home = tmp_path_factory.mktemp("away")
    settings = store_settings.model_copy(update={"home": home, "store_url": f"s3://safelight-tests/{home.name}-server"})
    zones = open_zones(settings)
    with prefect_stack(home, on_one_core(settings)) as stack, adapter(stack):
        assert stack.server
        kill(stack.server)
        synthetic.put_classes(zones, "patient", 5)
        with server(stack):
            settle(stack, "patient", 1)


def test_a_hint_makes_the_look_sooner(stack: Stack, shared: Zones) -> None:
    """With a long time between looks, the store's webhook is what starts the run."""
    with adapter(stack, SAFELIGHT_UPLOADS_POLL_S="3600") as client:
        synthetic.put_classes(shared, "hinted", 5)
        folder = (stack.environ["SAFELIGHT_STORE_URL"]).removeprefix("s3://safelight-tests/")
        record = {
            "bucket": {"name": "safelight-tests"},
            "object": {"key": f"{folder}/images/hinted/class-000/000000.png"},
        }
        sent = client.post("/", json={"Records": [{"s3": record}]}, headers={"Authorization": "Bearer a token"})
        assert sent.status_code == 204
        settle(stack, "hinted", 1)


def _is_well(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False
