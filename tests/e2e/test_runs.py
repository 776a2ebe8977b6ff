"""Runs that meet, and runs that are stopped: pressing Run twice, cancelling, going on."""

import secrets
from collections.abc import Iterator

import pytest
from e2e.stack import Stack, wait_until

LONG = {"epochs": 400}
"""More than a test waits for."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def seed(stack: Stack) -> Iterator[int]:
    """A seed of this test's own; what it leaves running is cancelled."""
    yield secrets.randbelow(2**31)
    stack.runs.cancel_all()
    wait_until(lambda: not stack.flow_processes(), 30, "runs go on")


def test_run_pressed_twice_trains_once(stack: Stack, live: str, seed: int) -> None:
    """Two runs of one dataset and configuration: the second says that it waits, and both find the same training run."""
    training = {"epochs": 40, "seed": seed}
    first = stack.runs.start("train", dataset=live, config=training)
    stack.runs.until_trained(first, 0.1)
    second = stack.runs.start("train", dataset=live, config=training)
    stack.runs.until_said(second, "waiting for")
    stack.runs.completed(first)
    stack.runs.completed(second)
    assert len(stack.stored.training_runs(seed)) == 1


def test_cancel_stops_training_and_run_goes_on_from_there(stack: Stack, live: str, seed: int) -> None:
    """Cancelled, training is over within ten seconds and has left a checkpoint; the next run resumes from it."""
    run = stack.runs.start("train", dataset=live, config={**LONG, "seed": seed})
    before = stack.runs.until_trained(run, 0.05)
    stack.runs.cancel(run)
    wait_until(lambda: not stack.flow_processes(), 10, "training goes on")
    wait_until(lambda: stack.runs.state(run)["type"] == "CANCELLED", 20, "the run is not said to be cancelled")
    again = stack.runs.start("train", dataset=live, config={**LONG, "seed": seed})
    wait_until(lambda: bool(stack.runs.steps(again)), 90, "the second run does not train")
    assert stack.runs.steps(again)[0][0] >= before


def test_a_rollback_does_not_wait_for_training(stack: Stack, live: str, seed: int) -> None:
    """While as many trainings run as may, and others wait for them, a deployment starts at once and completes."""
    runs = [stack.runs.start("train", dataset=live, config={**LONG, "seed": seed + number}) for number in range(3)]
    wait_until(lambda: sum(bool(stack.runs.steps(each)) for each in runs) == 2, 120, "nothing trains")
    deploy = stack.runs.start("deploy", model=live)
    stack.runs.begun(deploy, 30)
    stack.runs.completed(deploy, 60)
    assert sorted(stack.runs.state(each)["type"] for each in runs) == ["RUNNING", "RUNNING", "SCHEDULED"]


@pytest.mark.parametrize(
    ("flow", "parameters", "named"),
    [("train", {"config": {"epochs": 0}}, "epochs"), ("pipeline", {"no_such_parameter": 1}, "no_such_parameter")],
)
def test_a_bad_value_is_refused_when_the_run_is_created(
    stack: Stack, flow: str, parameters: dict[str, object], named: str
) -> None:
    """A value out of range, or for nothing, never becomes a run; the answer names the field."""
    with pytest.raises(AssertionError, match=named):
        stack.runs.start(flow, **parameters)
