"""Clients send images before, during and after swaps, straight through; nobody may notice but by the version."""

import time
from collections.abc import Iterator

import httpx
import pytest
from e2e.stack import Stack, wait_until
from e2e.traffic import Traffic, ask_all, traffic

SWAPS = 3

RAMP = {"steps": [0.1, 0.5], "step_s": 2, "minimum_requests": 40, "slower_ms": 60_000, "more_disagreement": 1}
"""Short, and without limits that this machine's other work, or versions made for their difference, would break."""

Reference = dict[str, dict[str, dict[str, float]]]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(params=[1, 3], ids=["one replica", "three replicas"])
def replicas(stack: Stack, request: pytest.FixtureRequest) -> Iterator[int]:
    """The server as so many replicas behind the one address; afterwards one again."""
    stack.scale("serving", request.param)
    yield request.param
    stack.scale("serving", 1)


@pytest.fixture(scope="module")
def pair(stack: Stack, live: str, few: dict[str, bytes]) -> tuple[tuple[str, str], Reference]:
    """Two versions of the model, and what each of them says of each image."""
    stack.runs.completed(stack.runs.start("train", dataset=live, config={"epochs": 2, "seed": 5}))
    stack.runs.route(dataset=live, training={"epochs": 2, "seed": 5})
    chosen = stack.stored.versions()[-2:]
    reference: Reference = {}
    for version in chosen:
        stack.runs.completed(stack.runs.start("deploy", model=live, version=version))
        answered, said = ask_all(stack.gateway, few)
        assert answered == version
        reference[version] = said
    first, second = chosen
    assert reference[first] != reference[second]
    return (first, second), reference


def test_no_request_fails_and_none_is_answered_by_half_a_model(
    stack: Stack, live: str, few: dict[str, bytes], pair: tuple[tuple[str, str], Reference], replicas: int
) -> None:
    """Every answer is one version's own; once `deploy` has completed, every answer names the new one."""
    versions, reference = pair
    with traffic(stack.gateway, few) as seen:
        for swap in range(SWAPS):
            version = versions[swap % 2]
            stack.runs.completed(stack.runs.start("deploy", model=live, version=version))
            done = time.monotonic()
            time.sleep(1.5)
            assert seen.versions_after(done) == {version}
    assert_undisturbed(seen, reference)
    assert len(stack.serving_addresses()) == replicas
    for address in stack.serving_addresses():
        status = httpx.get(f"http://{address}:8080/v2/models/{live}", timeout=10, trust_env=False).json()
        assert {process["version"] for process in status["processes"]} == {version}
        assert len({process["generation"] for process in status["processes"]}) == 1


def test_replicas_may_come_and_go(stack: Stack, few: dict[str, bytes], pair: tuple[tuple[str, str], Reference]) -> None:
    """Scaling from one to three replicas and back drops no request, and all three have answered meanwhile."""
    with traffic(stack.gateway, few) as seen:
        stack.scale("serving", 3)
        addresses = stack.serving_addresses()
        before = {address: stack.requests_answered(address) for address in addresses}
        wait_until(
            lambda: all(stack.requests_answered(each) > before[each] + 20 for each in addresses),
            60,
            "not every replica got requests",
        )
        stack.scale("serving", 1)
        time.sleep(2)
    assert_undisturbed(seen, pair[1])


def test_a_restart_of_the_server_drains(
    stack: Stack, few: dict[str, bytes], pair: tuple[tuple[str, str], Reference]
) -> None:
    """While one of two replicas is stopped and started again, no request fails."""
    stack.scale("serving", 2)
    with traffic(stack.gateway, few) as seen:
        stopped = stack.containers("serving")[0]
        stack.run("docker", "restart", stopped)
        wait_until(lambda: stack.is_healthy("serving"), 60, "the replica did not come back")
        time.sleep(1)
    stack.scale("serving", 1)
    assert_undisturbed(seen, pair[1])


def test_a_canary_gets_its_share_on_all_replicas_and_then_all(
    stack: Stack, live: str, few: dict[str, bytes], pair: tuple[tuple[str, str], Reference]
) -> None:
    """Some requests name the challenger before it is champion, none fails, and its steps are shown with the run."""
    (champion, challenger), reference = pair
    stack.runs.completed(stack.runs.start("deploy", model=live, version=champion))
    stack.scale("serving", 2)
    with traffic(stack.gateway, few) as seen:
        begun = time.monotonic()
        run = stack.runs.start("deploy", model=live, version=challenger, by_canary=True, canary=RAMP)
        wait_until(lambda: challenger in seen.versions_after(begun), 60, "the challenger gets no request")
        assert stack.stored.champions()[-1] == champion
        stack.runs.completed(run)
        done = time.monotonic()
        time.sleep(1.5)
    assert seen.versions_after(begun) == {champion, challenger}
    assert seen.versions_after(done) == {challenger}
    for address in stack.serving_addresses():
        told = httpx.get(f"http://{address}:8080/v2/models/{live}", timeout=10, trust_env=False).json()
        assert {process["version"] for process in told["processes"]} == {challenger}
    shown = stack.runs.api("POST", "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    assert f"canary-{live}" in {each["key"] for each in shown}
    stack.scale("serving", 1)
    assert_undisturbed(seen, reference)


def assert_undisturbed(seen: Traffic, reference: Reference) -> None:
    """No request failed, and each answer is what its version says of its image."""
    assert seen.failures == []
    assert len(seen.answers) > 200
    assert seen.odd_answers(reference) == []
