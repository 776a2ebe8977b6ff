"""Any service may be killed at any moment: runs complete without a click, and nothing that was stored is lost."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from e2e.stack import Stack, wait_until
from e2e.traffic import traffic

BACK_S = 180.0
"""Within which a run completes, from the kill."""
EPOCHS = 24
WHATEVER = {"margin": -1, "class_drop": 1}
"""A gate that lets everything pass."""

pytestmark = pytest.mark.timeout(900)


@contextmanager
def amid_training(stack: Stack, dataset: str) -> Iterator[str]:
    """A run of the whole route, a third trained; afterwards it completes in time and was resumed, not begun again."""
    seed = secrets.randbelow(2**31)
    run = stack.runs.start("pipeline", dataset=dataset, training={"epochs": EPOCHS, "seed": seed}, gate=WHATEVER)
    before = stack.runs.until_trained(run, 1 / 3)
    yield run
    stack.runs.completed(run, BACK_S)
    assert_resumed(stack, run, before)
    trained = stack.stored.training_runs(seed)
    assert len(trained) == 1
    assert [line.epoch for line in trained[0].history] == list(range(1, EPOCHS + 1))


def assert_resumed(stack: Stack, run: str, before: int) -> None:
    """No step that a run told of later is far below the ``before`` that it had done once."""
    done = [step for step, _ in stack.runs.steps(run)]
    later = done[done.index(before) :]
    assert min(later) > before // 2, done


def verify(stack: Stack) -> None:
    """All that is stored is as it was written."""
    stack.cli("store", "verify", timeout=300)


def test_the_object_store_is_killed(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """The run waits for the store and completes; the server answers meanwhile as if nothing had been."""
    with traffic(stack.gateway, few, clients=4) as seen, amid_training(stack, live):
        stack.kill("object-store")
    assert seen.failures == []
    verify(stack)


@pytest.mark.parametrize("service", ["serving", "gateway"])
def test_what_answers_is_killed(stack: Stack, live: str, few: dict[str, bytes], service: str) -> None:
    """Killed, the server and its gateway are back by themselves, with the model, and runs are not touched by it."""
    before = stack.version()
    stack.kill(service)
    back = wait_until(lambda: stack.answers(few), 30, f"{service} does not answer again")
    assert stack.version() == before
    assert back < 30
    wait_until(lambda: stack.is_healthy(service), 60, f"{service} is not healthy again")
    stack.runs.completed(stack.runs.start("deploy", model=live))


def test_the_prefect_server_is_killed(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """The run goes on and completes when the server is back, and the inference server knows nothing of it."""
    with traffic(stack.gateway, few, clients=4) as seen, amid_training(stack, live):
        stack.kill("prefect-server")
    assert seen.failures == []
    wait_until(lambda: stack.is_healthy("worker"), 60, "the worker is not healthy again")


def test_the_worker_is_killed_with_its_flow(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """Without a click another process goes on from the last checkpoint, and not from the first epoch."""
    with traffic(stack.gateway, few, clients=4) as seen, amid_training(stack, live) as run:
        stack.kill("worker")
    assert seen.failures == []
    assert stack.runs.look(run)["run_count"] == 2
    verify(stack)


def test_the_worker_is_frozen_and_its_flow_wakes_up_as_an_orphan(stack: Stack, live: str) -> None:
    """A second worker takes over; the flow that wakes up in the first one writes nothing any more."""
    stack.scale("worker", 2)
    frozen, seed = "", secrets.randbelow(2**31)
    try:
        run = stack.runs.start("pipeline", dataset=live, training={"epochs": 2 * EPOCHS, "seed": seed}, gate=WHATEVER)
        before = stack.runs.until_trained(run, 1 / 6)
        frozen = stack.worker_of(run)
        stack.run("docker", "pause", frozen)
        wait_until(lambda: stack.runs.look(run)["run_count"] == 2, BACK_S, "nobody took over")
        stack.run("docker", "unpause", frozen)
        stack.runs.completed(run, BACK_S)
        assert_resumed(stack, run, before)
        wait_until(lambda: not stack.flow_processes(), 60, "the orphan goes on")
        assert stack.runs.state(run)["type"] == "COMPLETED"
    finally:
        if frozen:
            stack.run("docker", "unpause", frozen, check=False)
        stack.scale("worker", 1)
    assert len(stack.stored.training_runs(seed)) == 1
    verify(stack)
