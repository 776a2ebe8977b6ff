"""The sum over replicas, whatever becomes of them."""

import secrets
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.aliases import Canary
from pipeline.artifacts import utc_now
from pipeline.canary_counts import Ledger, Report, asked
from pipeline.canary_rule import Counts
from pipeline.errors import DeployFailed
from pipeline.replicas import Replica

CANARY = Canary(challenger="new", share=0.1, step=1, started_at=utc_now())
BOUNDS = [0.001, 0.01]


def model(version: str, requests: int, bounds: list[float] = BOUNDS) -> dict[str, Any]:
    """One of a replica's two models, all of whose requests took long."""
    counts = [*[0] * len(bounds), requests]
    return {"version": version, "requests": requests, "errors": 0, "seconds": {"bounds": bounds, "counts": counts}}


def said(nonce: str, requests: int, *, step: int = 1, **changed: Any) -> dict[str, Any]:
    """What a replica says whose challenger got so many requests, and its champion twice as many."""
    return {
        "replica": nonce,
        "generation": 7,
        "step": step,
        "mode": "split",
        "share": 0.1,
        "champion": model("old", 2 * requests),
        "challenger": model("new", requests),
        "compared": requests,
        "disagreed": 0,
        **changed,
    }


def replica(address: str, answer: httpx.Response | None = None) -> Replica:
    """A replica at an address, which answers everything with ``answer``, or does not answer."""

    def handle(request: httpx.Request) -> httpx.Response:
        if answer is None:
            raise httpx.ConnectError("refused", request=request)
        return answer

    client = httpx.Client(base_url="http://serving", transport=httpx.MockTransport(handle))
    return Replica(address, f"the server at {address}", client)


def noted(*rounds: dict[str, dict[str, Any] | None]) -> int:
    """The challenger's requests after rounds in which replicas said this at their addresses."""
    ledger = Ledger(CANARY)
    for each in rounds:
        ledger.note({replica(at): told and Report.model_validate(told) for at, told in each.items()})
    return ledger.total().challenger.requests


@pytest.mark.parametrize(
    ("rounds", "requests"),
    [
        ([], 0),
        ([{"a": said("A", 5)}], 0),
        ([{"a": said("A", 5)}, {"a": said("A", 9)}], 4),
        ([{"a": said("A", 5), "b": said("B", 1)}, {"a": said("A", 9), "b": said("B", 2)}], 5),
        ([{"a": said("A", 5)}, {"a": None}, {"a": said("A", 9)}], 4),
        ([{"a": said("A", 5)}, {"a": said("A", 9)}, {}], 4),
        ([{"a": said("A", 5)}, {"a": said("A", 9)}, {"a": said("B", 3)}], 7),
        ([{"a": said("A", 5)}, {"a": said("A", 9)}, {"b": said("B", 3)}, {"b": said("B", 4)}], 5),
        ([{"a": said("A", 5), "b": said("A", 5)}, {"a": said("A", 9), "b": said("A", 9)}], 4),
        ([{"a": said("A", 5)}, {"a": said("A", 9)}, {"a": said("A", 2)}, {"a": said("A", 3)}], 7),
        ([{"a": said("A", 5, step=0)}, {"a": said("A", 9)}, {"a": said("A", 10)}], 1),
        ([{"a": said("A", 5, challenger=None)}, {"a": said("A", 9, challenger=model("other", 9))}], 0),
        ([{"a": said("A", 5)}, {"a": said("A", 9)}, {"a": said("A", 12, step=2)}], 4),
    ],
    ids=[
        "nobody",
        "what was before does not count",
        "what came on top does",
        "of all replicas",
        "one that did not answer for a while",
        "one that left stays counted",
        "one that was started again began from zero",
        "one that comes late begins where it is",
        "two addresses of one replica",
        "a challenger that went live there anew",
        "another step does not count",
        "nor does another challenger",
        "nor what comes after the step",
    ],
)
def test_what_counts(rounds: list[dict[str, dict[str, Any] | None]], requests: int) -> None:
    """A step is what came on top of what each replica had counted when it first showed the step."""
    assert noted(*rounds) == requests


@dataclass
class Server:
    """A replica that counts, and what it had counted when it was first looked at."""

    nonce: str = field(default_factory=lambda: secrets.token_hex(4))
    requests: int = 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["ask", "restart", "leave", "look"]), st.integers(0, 5)),
        max_size=40,
    )
)
def test_no_request_counts_twice_and_none_below_zero(events: list[tuple[str, str, int]]) -> None:
    """Whatever replicas do, the sum never falls, and is never more than the requests that there were."""
    ledger, servers, sent, before = Ledger(CANARY), {at: Server() for at in "abc"}, 0, 0
    for at, event, count in events:
        server = servers.get(at)
        if event == "restart":
            servers[at] = Server()
        elif event == "leave":
            servers.pop(at, None)
        elif event == "ask" and server:
            server.requests += count
            sent += count
        reports = {replica(each): Report.model_validate(said(one.nonce, one.requests)) for each, one in servers.items()}
        ledger.note(reports if event == "look" else {})
        total = ledger.total()
        assert before <= total.challenger.requests <= sent
        assert total.champion.requests == 2 * total.challenger.requests == 2 * total.challenger.seconds.total
        before = total.challenger.requests


def test_all_that_was_looked_at_counts() -> None:
    """Replicas that stay are summed up exactly, histograms and comparisons included."""
    ledger = Ledger(CANARY)
    for requests in (0, 10, 30):
        ledger.note({replica(at): Report.model_validate(said(at, requests)) for at in "abc"})
    total = ledger.total()
    assert (total.challenger.requests, total.champion.requests, total.compared) == (90, 180, 90)
    assert total.champion.seconds.counts == (0, 0, 180)


def test_buckets_that_differ_are_refused() -> None:
    """Replicas of two releases are not added up by guesswork."""
    ledger = Ledger(CANARY)
    ledger.note({replica("a"): Report.model_validate(said("A", 1))})
    other = said("B", 1, champion=model("old", 1, [0.5]), challenger=model("new", 1, [0.5]))
    with pytest.raises(DeployFailed, match="different buckets"):
        ledger.note({replica("b"): Report.model_validate(other)})


class TestAsked:
    """What a replica answers."""

    def test_it_says_what_it_counted(self) -> None:
        """Fields that nobody reads here may be there too."""
        found = asked(replica("a", httpx.Response(200, json=said("A", 3, swap="x"))), "pets")
        assert found
        assert (found.counts.challenger.requests, found.shows(CANARY)) == (3, True)

    def test_nothing_live_counts_nothing(self) -> None:
        """A replica without models has counted nothing."""
        found = asked(replica("a", httpx.Response(200, json=said("A", 3, champion=None, challenger=None))), "pets")
        assert found
        assert not found.shows(CANARY)
        assert found.counts == Counts(compared=3)

    @pytest.mark.parametrize("answer", [None, httpx.Response(503, json={"detail": "later"})])
    def test_one_that_is_not_there(self, answer: httpx.Response | None) -> None:
        """It may come yet."""
        assert asked(replica("a", answer), "pets") is None

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (httpx.Response(404, json={"detail": "?"}), r"status 404\); is it of this release"),
            (httpx.Response(200, text="<html>"), "is it of this release"),
            (httpx.Response(200, json=said("A", -1)), "is it of this release"),
            (httpx.Response(200, json=said("A", 3), headers={"Via": "1.1 gateway"}), "is a gateway"),
            (httpx.Response(401, json={"detail": "?"}), "asks for a key: set SAFELIGHT_INFERENCE_API_KEY"),
        ],
    )
    def test_one_that_cannot_be_summed_up(self, answer: httpx.Response, reason: str) -> None:
        """A stranger, a gateway behind which replicas hide, and one that wants a key."""
        with pytest.raises(DeployFailed, match=reason):
            asked(replica("a", answer), "pets")
