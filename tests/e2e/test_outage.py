"""The inference server without the object store: it goes on answering, and starts again from what it has kept."""

import time
from collections.abc import Iterator

import httpx
import pytest
from e2e.stack import Stack, wait_until
from e2e.traffic import ask_all, traffic

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def without_store(stack: Stack, live: str) -> Iterator[str]:
    """The name of the live model; the object store is stopped, and runs again afterwards."""
    stack.compose("stop", "object-store")
    yield live
    stack.compose("start", "object-store")
    wait_until(lambda: stack.is_healthy("object-store"), 60, "the store did not come back")


def test_it_goes_on_answering_and_starts_again_from_its_cache(
    stack: Stack, few: dict[str, bytes], without_store: str
) -> None:
    """While the store is away it answers, says why it cannot follow, and a restart brings the same version back."""
    before, said = ask_all(stack.gateway, few)
    with traffic(stack.gateway, few, clients=4) as seen:
        time.sleep(5)
    assert seen.failures == []
    assert stack.serving()["swap_error"]
    stack.compose("restart", "serving")
    wait_until(lambda: stack.answers(few), 30, "it does not answer after a restart")
    assert ask_all(stack.gateway, few) == (before, said)
    assert httpx.get(f"{stack.gateway}/v2/health/ready", timeout=10).status_code == 200
    assert without_store


def test_it_follows_again_when_the_store_is_back(stack: Stack, live: str) -> None:
    """After the outage the alias is followed as before, and nothing is left of the complaint."""
    wait_until(lambda: not stack.serving()["swap_error"], 30, "the server still complains")
    stack.runs.completed(stack.runs.start("rollback", model=live))
    stack.runs.completed(stack.runs.start("deploy", model=live))


def test_prefect_may_be_away(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """Neither the Prefect server nor the worker is needed to answer, nor to start the server again."""
    stack.compose("stop", "prefect-server", "worker")
    try:
        with traffic(stack.gateway, few, clients=4) as seen:
            time.sleep(2)
        assert seen.failures == []
        stack.compose("restart", "serving")
        wait_until(lambda: stack.answers(few), 30, "it does not answer after a restart")
    finally:
        stack.compose("start", "prefect-server", "worker")
    wait_until(lambda: stack.is_healthy("prefect-server") and stack.is_healthy("worker"), 90, "they did not come back")
    assert live
