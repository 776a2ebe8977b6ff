"""What is live stays unless something better comes, and the way back is short."""

import time
from datetime import datetime

import httpx
import pytest
from e2e.stack import MODEL, Stack, wait_until
from e2e.traffic import traffic

WEAK = {"epochs": 1, "width": 4, "learning_rate": 0.02}
LENIENT = {"minimum_accuracy": 0.0, "class_drop": 1.0}

pytestmark = pytest.mark.timeout(600)


def test_a_server_that_began_without_a_model_became_ready_by_itself(stack: Stack, live: str) -> None:
    """The container that ran before there was any version answers with one now, and was not started anew."""
    state = stack.inspect(stack.containers("serving")[0])["State"]
    assert datetime.fromisoformat(state["StartedAt"][:19] + "Z") < stack.stored.first_live_at()
    assert httpx.get(f"{stack.gateway}/v2/health/ready", timeout=10).status_code == 200
    assert stack.serving()["ready"]
    assert live == MODEL


def test_a_worse_model_is_refused_and_what_is_live_stays(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """The run of a worse challenger completes, says why it was not promoted, and every answer names the old version."""
    before = stack.version()
    with traffic(stack.gateway, few, clients=4) as seen:
        run = stack.runs.start("pipeline", dataset=live, training=WEAK, gate=LENIENT)
        stack.runs.completed(run)
        stack.runs.until_said(run, "is not promoted")
        time.sleep(3)  # longer than the server takes to look at the alias
    assert seen.failures == []
    assert {answer.version for answer in seen.answers} == {before}
    assert stack.version() == before


def test_a_better_model_goes_live_by_itself(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """A challenger that is no worse is promoted and answers, in place of what was live, without a failed request."""
    before = stack.version()
    with traffic(stack.gateway, few, clients=4) as seen:
        stack.runs.route(dataset=live, training={"epochs": 10, "seed": 1}, gate={"margin": -0.2, "class_drop": 1.0})
        done = time.monotonic()
        time.sleep(1)
    after = stack.version()
    assert seen.failures == []
    assert after != before
    assert seen.versions_after(done) == {after}


def test_a_rollback_is_effective_within_five_seconds(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """From the moment that a rollback is Running, the version before answers every request within five seconds."""
    versions = stack.stored.champions()
    assert len(versions) >= 2
    now, before = versions[-1], versions[-2]
    assert stack.version() == now
    with traffic(stack.gateway, few, clients=4) as seen:
        run = stack.runs.start("rollback", model=live)
        wait_until(
            lambda: stack.runs.state(run)["type"] not in {"SCHEDULED", "PENDING"}, 60, "the rollback did not start"
        )
        running = time.monotonic()
        wait_until(lambda: bool(seen.versions_after(running) & {before}), 5, "the version before did not answer")
        stack.runs.completed(run)
        done = time.monotonic()
        time.sleep(1)
    assert seen.failures == []
    assert seen.versions_after(running + 5) <= {before}
    assert seen.versions_after(done) == {before}
    assert stack.version() == before


def test_a_version_can_be_named(stack: Stack, live: str) -> None:
    """`deploy` with a version makes that one live, also a worse one that a person wants to see."""
    newest = stack.stored.versions()[-1]
    stack.runs.completed(stack.runs.start("deploy", model=live, version=newest))
    assert stack.version() == newest
    stack.runs.completed(stack.runs.start("rollback", model=live))
    assert stack.version() != newest


def test_a_version_that_does_not_exist_is_one_sentence(stack: Stack, live: str) -> None:
    """The run of a mistake fails with a sentence that names it, and what is live stays."""
    before = stack.version()
    state = stack.runs.finished(stack.runs.start("deploy", model=live, version="20200101T000000Z-00000000"))
    assert state["type"] == "FAILED"
    assert "20200101T000000Z-00000000" in state["message"]
    assert "\n" not in state["message"].strip()
    assert stack.version() == before
    assert live == MODEL
