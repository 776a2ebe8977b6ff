"""Waiting for a store that is away, with a store that is a function."""

import re
import threading
import time
from collections.abc import Callable

import pytest

from pipeline import patience
from pipeline.errors import ObjectMissing, StoreUnavailable
from pipeline.patience import Patience

WHAT = "GET key"


def away() -> str:
    """A store that refuses connections."""
    raise StoreUnavailable("GET key: the object store does not answer.")


def away_for(seconds: float) -> Callable[[], str]:
    """A store that is back after so many seconds."""
    back = time.monotonic() + seconds
    return lambda: "answer" if time.monotonic() >= back else away()


def taken(work: Callable[[], object]) -> float:
    """Seconds until the store is given up."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        work()
    return time.monotonic() - began


def test_an_absent_store_is_asked_until_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    """The answer comes, and the log says when the store was away and when it was back."""
    assert Patience(10, "the store")(away_for(0.6), WHAT) == "answer"
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("GET key: the object store does not answer. Asked again until 10 s are over.")
    assert re.match(r"the store answers again, after \d s\.", said[-1])


def test_it_is_given_up_in_time_and_in_one_sentence() -> None:
    """After its seconds the error is one sentence that names the request, how long, and what to do."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as given_up:
        Patience(1.2, "the store at X")(away, WHAT)
    assert 1.2 <= time.monotonic() - began < 2
    assert re.fullmatch(
        r"GET key: the object store does not answer: the store at X has not answered for 1 s; see that it is running "
        r"and can be reached, then repeat the command, which goes on from what is stored\.",
        str(given_up.value),
    )


def test_waiting_does_not_add_up() -> None:
    """Who asks when the outage was given up is told at once, and one that comes late waits only for what is left."""
    waiting = Patience(1.5, "the store")
    late: list[float] = []
    thread = threading.Thread(target=lambda: (time.sleep(0.8), late.append(taken(lambda: waiting(away, WHAT)))))
    thread.start()
    assert taken(lambda: waiting(away, WHAT)) >= 1.5
    thread.join()
    assert late[0] < 1.2
    assert taken(lambda: waiting(away, WHAT)) < 0.1


def test_a_store_that_was_given_up_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after it was given up a store that is back answers, and its next outage is a new one."""
    monkeypatch.setattr(patience, "BREATH_S", 0.2)
    waiting = Patience(0.3, "the store")
    taken(lambda: waiting(away, WHAT))
    time.sleep(0.25)
    assert waiting(lambda: "answer", WHAT) == "answer"
    assert taken(lambda: waiting(away, WHAT)) >= 0.3


def test_a_refusal_is_an_answer() -> None:
    """What the store says is passed on at once and ends an outage."""
    waiting, asked = Patience(5, "the store"), []

    def missing() -> str:
        asked.append(1)
        raise ObjectMissing("there is no such object")

    with pytest.raises(ObjectMissing):
        waiting(missing, WHAT)
    assert len(asked) == 1


def test_without_patience_one_attempt_decides() -> None:
    """Who has a rule of its own gets the plain error, and may ask again at once."""
    waiting = Patience(0, "the store")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=r"^GET key: the object store does not answer\.$"):
            waiting(away, WHAT)
    assert waiting(lambda: "answer", WHAT) == "answer"


def test_a_frozen_store_is_named_while_it_is_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While requests hang, the log says again and again which, how many more, how long; then that it is over."""
    monkeypatch.setattr(patience, "SAY_EVERY_S", 0.4)
    monkeypatch.setattr(patience, "LOOK_EVERY_S", 0.1)
    waiting, thawed = Patience(60, "the store"), threading.Event()
    threads = [threading.Thread(target=waiting, args=(thawed.wait, f"GET {number}")) for number in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1.1)
    thawed.set()
    for thread in threads:
        thread.join()
    said = [record.getMessage() for record in caplog.records]
    waits = [line for line in said if line.startswith("GET 0 and 2 more: the store has not answered for ")]
    assert len(waits) == 2
    assert waits[0].endswith("; given up after 60 s.")
    assert said[-1] == "the store answers again, after 1 s."


def test_nobody_watches_an_idle_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that watches ends when there is nothing to watch, and another one comes when there is."""
    monkeypatch.setattr(patience, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(patience, "IDLE_S", 0.1)
    waiting = Patience(60, "an idle store")
    for _ in range(2):
        waiting(lambda: "answer", WHAT)
        assert watching() == 1
        time.sleep(0.5)
        assert watching() == 0


def watching() -> int:
    """Threads that watch it."""
    return sum(thread.name == "patience with an idle store" for thread in threading.enumerate())
