"""Which runs died, by what the Prefect server says of them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import State, StateType

from pipeline import run_watch
from pipeline.run_watch import DIED, GAP_S, MOST_RESCUES, NO_SIGN_OF_LIFE, SILENT_S, Silence

STEP_S = 5.0
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
KILLED = "Process exited with status code: -9. Process exited due to a SIGKILL signal."
ATTEMPT = ["PENDING", "RUNNING", f"CRASHED {KILLED}", f"SCHEDULED {DIED}"]


def history(*said: str) -> list[State[Any]]:
    """States in order, each ``TYPE`` or ``TYPE message``."""
    found = []
    for number, each in enumerate(said):
        kind, _, message = each.partition(" ")
        found.append(State(type=StateType(kind), message=message or None, timestamp=BEGAN + timedelta(seconds=number)))
    return found


def silent_after(silence: Silence, runs: dict[UUID, str], began: float, seconds: float) -> list[UUID]:
    """What is silent after looking every few seconds for so long, hearing nothing new."""
    found = []
    now = began
    while now <= began + seconds:
        found = silence.look(runs, now)
        now += STEP_S
    return found


def test_a_run_without_a_sign_of_life_is_silent_after_a_while() -> None:
    """It is not before the time is over, and is then."""
    silence, run = Silence(), uuid4()
    assert silent_after(silence, {run: "a"}, 0, SILENT_S - STEP_S) == []
    assert silence.look({run: "a"}, SILENT_S) == [run]


def test_a_sign_of_life_begins_the_time_anew() -> None:
    """A run whose heartbeat or state changed is not silent, however long it was quiet before."""
    silence, run = Silence(), uuid4()
    silent_after(silence, {run: "a"}, 0, SILENT_S - STEP_S)
    assert silence.look({run: "b"}, SILENT_S) == []
    assert silent_after(silence, {run: "b"}, SILENT_S + STEP_S, SILENT_S - 2 * STEP_S) == []


def test_time_in_which_nobody_could_be_heard_does_not_count() -> None:
    """After the server was away for long, a run has the whole time again to show that it lives."""
    silence, run = Silence(), uuid4()
    silent_after(silence, {run: "a"}, 0, STEP_S)
    back = STEP_S + GAP_S + 10 * SILENT_S
    assert silent_after(silence, {run: "a"}, back, SILENT_S - STEP_S) == []
    assert silent_after(silence, {run: "a"}, back + SILENT_S, STEP_S) == [run]


def test_runs_are_watched_each_by_itself() -> None:
    """A run that came later is not judged by the silence of another."""
    silence, old, young = Silence(), uuid4(), uuid4()
    silent_after(silence, {old: "a"}, 0, SILENT_S - STEP_S)
    assert silence.look({old: "a", young: "a"}, SILENT_S) == [old]


@pytest.mark.parametrize("times", range(6))
def test_deaths_are_counted(times: int) -> None:
    """Each start that ended in a crash counts once."""
    assert run_watch.deaths(history("SCHEDULED", *ATTEMPT * times, "PENDING")) == times


def test_a_death_that_is_said_twice_counts_once() -> None:
    """The server may carry out one thing several times, or the worker report a process again."""
    states = history("SCHEDULED", *ATTEMPT, f"SCHEDULED {DIED}", "CRASHED Flow run infrastructure exited", "PENDING")
    assert run_watch.deaths(states) == 1


def test_a_silent_run_counts_as_dead() -> None:
    """A run that was brought back for its silence has no crash in its history, and counts all the same."""
    assert run_watch.deaths(history("SCHEDULED", "PENDING", "RUNNING", f"SCHEDULED {NO_SIGN_OF_LIFE}", "PENDING")) == 1


@pytest.mark.parametrize("said", run_watch.STOPPED)
def test_being_stopped_with_the_worker_is_no_death(said: str) -> None:
    """However often the stack is restarted, a long training goes on."""
    attempt = ["PENDING", "RUNNING", f"CRASHED Execution was {said}.", f"SCHEDULED {DIED}"]
    assert run_watch.end(history("SCHEDULED", *attempt * 10, "PENDING")) is None


def test_a_run_comes_back_a_few_times_and_then_fails_with_a_sentence() -> None:
    """The last of its starts is the one after the most rescues."""
    assert run_watch.end(history("SCHEDULED", *ATTEMPT * MOST_RESCUES, "PENDING")) is None
    end = run_watch.end(history("SCHEDULED", *ATTEMPT * (MOST_RESCUES + 1), "PENDING"))
    assert end is not None
    assert end.type == StateType.FAILED
    assert f"died {MOST_RESCUES + 1} times" in (end.message or "")


@pytest.mark.parametrize("ended", ["FAILED", "COMPLETED", "CANCELLED"])
def test_a_person_who_runs_it_again_starts_the_count_anew(ended: str) -> None:
    """What died before a person pressed Retry is not held against the run."""
    states = history("SCHEDULED", *ATTEMPT * (MOST_RESCUES + 1), "PENDING", ended, "SCHEDULED", "PENDING")
    assert run_watch.deaths(states) == 0
    assert run_watch.end(states) is None


def test_a_cancelled_run_does_not_come_back() -> None:
    """Where the process died before the cancellation was done, the run ends as cancelled."""
    states = history("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", f"SCHEDULED {NO_SIGN_OF_LIFE}", "PENDING")
    end = run_watch.end(states)
    assert end is not None
    assert end.type == StateType.CANCELLED


def test_a_run_that_was_cancelled_and_run_again_may_start() -> None:
    """A cancellation that was done is history."""
    assert not run_watch.is_cancelled(history("RUNNING", "CANCELLING", "CANCELLED", "SCHEDULED", "PENDING"))


@given(st.permutations(history("SCHEDULED", *ATTEMPT * 2, "PENDING")))
def test_the_order_of_the_answer_does_not_matter(states: list[State[Any]]) -> None:
    """States are taken in the order of their time."""
    assert run_watch.deaths(states) == 2
