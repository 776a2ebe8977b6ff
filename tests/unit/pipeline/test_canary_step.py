"""Who is waited for in a step, and for how long."""

import httpx
import pytest

from pipeline.aliases import Canary
from pipeline.artifacts import utc_now
from pipeline.canary_counts import Report, Reports
from pipeline.canary_step import Doubt, Latecomers, pause_s
from pipeline.replicas import FAILURE_GRACE_S, POLL_S, Replica

CANARY = Canary(challenger="new", share=0.1, step=1, started_at=utc_now())
REPLICA = Replica("a", "the server at a", httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(500))))
TIMEOUT_S = 60.0

NOTHING = {"step": None, "mode": None, "share": None, "champion": None, "challenger": None}
STEP = {"step": 1, "mode": "split", "share": 0.1, "champion": None}
MODEL = {"version": "new", "requests": 0, "errors": 0, "seconds": {"bounds": [], "counts": [0]}}


def report(*, shows: bool = False, refuses: str = "") -> Report:
    """What a replica says that shows the step, or does not yet, or refuses the challenger."""
    error = {"version": "new", "reason": refuses} if refuses else None
    said = {**STEP, "challenger": MODEL} if shows else NOTHING
    return Report.model_validate({"replica": "A", "compared": 0, "disagreed": 0, "error": error, **said})


def of(found: Report | None) -> Reports:
    """What the only replica says."""
    return {REPLICA: found}


LATE, THERE, REFUSING = of(report()), of(report(shows=True)), of(report(refuses="no such file"))


class TestLatecomers:
    """How long a step waits for replicas."""

    @pytest.mark.parametrize(
        ("reports", "why"),
        [
            ({}, "no replica was found"),
            (of(None), "the server at a does not answer"),
            (LATE, "the server at a does not show the step"),
        ],
    )
    def test_each_is_waited_for_from_when_it_was_missed(self, reports: Reports, why: str) -> None:
        """However late in a step: a name that does not resolve once, or a replica that starts again, is no doubt."""
        latecomers = Latecomers(CANARY, TIMEOUT_S)
        assert latecomers.look(THERE, 0) == []
        assert latecomers.look(reports, 1000) == latecomers.look(reports, 1000 + TIMEOUT_S) == [why]
        with pytest.raises(Doubt, match=why):
            latecomers.look(reports, 1001 + TIMEOUT_S)

    def test_one_that_was_there_again_is_waited_for_anew(self) -> None:
        """What counts is how long it was missed the last time."""
        latecomers = Latecomers(CANARY, TIMEOUT_S)
        for now in (0, 100, 200):
            assert latecomers.look(of(None), now)
            assert latecomers.look(THERE, now + 50) == []

    def test_a_refusal_is_believed_after_a_while(self) -> None:
        """It may be over soon; how long the replica took to load the challenger before it refused does not count."""
        latecomers = Latecomers(CANARY, TIMEOUT_S)
        latecomers.look(LATE, 0)
        for now in (30, 30 + FAILURE_GRACE_S):
            assert latecomers.look(REFUSING, now) == ["the server at a did not load the version; it says: no such file"]
        with pytest.raises(Doubt, match="it says: no such file"):
            latecomers.look(REFUSING, 31 + FAILURE_GRACE_S)

    def test_a_refusal_that_ends_was_none(self) -> None:
        """A replica that loads the challenger after all, or refuses it again much later, goes on."""
        latecomers = Latecomers(CANARY, TIMEOUT_S)
        for now in (0, 20, 40):
            assert latecomers.look(REFUSING, now)
            assert latecomers.look(LATE, now + 10)
        assert latecomers.look(THERE, 50) == []


def test_a_step_that_waits_for_long_asks_rarely() -> None:
    """Often in its first seconds; in the quarter of an hour after which it holds, less than a thousand times."""
    looks, now = 0, 0.0
    while now < 900:
        assert POLL_S <= pause_s(now) <= max(POLL_S, now / 20)
        looks, now = looks + 1, now + pause_s(now)
    assert looks < 1000
