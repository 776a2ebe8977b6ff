"""The canary's rule, against exact arithmetic and by what must hold whatever was counted."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.artifacts import CanaryConfig
from pipeline.canary_rule import CHANCE, Counts, Histogram, Side, binomial, fisher, verdict

LIMITS = CanaryConfig()
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
WORSE = ("go on", "hold", "back")
"""Verdicts, the better ones first."""


def took(**milliseconds: int) -> Histogram:
    """Requests by how long they took at most, as in ``ms5=200``."""
    counts = [0] * (len(BOUNDS) + 1)
    for name, count in milliseconds.items():
        counts[BOUNDS.index(float(name.removeprefix("ms")) / 1000)] += count
    return Histogram(BOUNDS, tuple(counts))


def counted(
    requests: int = 200, *, errors: int = 0, seconds: Histogram | None = None, disagreed: int = 0, champion: int = 1000
) -> Counts:
    """A step in which the champion answered without errors in 5 ms."""
    return Counts(
        champion=Side(champion, 0, took(ms5=champion)),
        challenger=Side(requests, errors, seconds or took(ms5=requests)),
        compared=requests,
        disagreed=disagreed,
    )


class TestVerdict:
    """What becomes of a challenger."""

    @pytest.mark.parametrize(
        ("counts", "outcome", "reason"),
        [
            (counted(), "go on", "0 of 200 requests failed, and 0 of 200 images were answered otherwise"),
            (counted(199), "hold", "199 of 200 requests to the challenger"),
            (counted(champion=12), "hold", "12 of 200 requests to the champion"),
            (replace(counted(), compared=49), "hold", "49 of 50 comparisons"),
            (counted(errors=2), "go on", "2 of 200 requests failed"),
            (counted(errors=200), "back", "200 of 200 requests to the challenger failed, and 0 of 1,000"),
            (counted(7, errors=7), "back", "7 of 7 requests to the challenger failed"),
            (counted(errors=3, champion=200), "hold", "this may still be chance"),
            (counted(disagreed=30), "go on", "30 of 200 images were answered otherwise"),
            (counted(disagreed=180), "back", r"disagree on 180 of 200 images; 15.0% may, after 10.0% of the test"),
            (counted(20, disagreed=18), "back", "disagree on 18 of 20 images"),
            (counted(disagreed=34), "hold", "this may still be chance"),
            (counted(seconds=took(ms25=200)), "go on", "0 of 200"),
            (counted(seconds=took(ms250=200)), "back", "200 of 200 requests to the challenger took longer than 24."),
            (counted(seconds=took(ms5=186, ms250=14)), "hold", "this may still be chance"),
            (counted(3, seconds=took(ms250=3)), "back", "3 of 3 requests to the challenger took longer than 24."),
            (counted(2, seconds=took(ms250=2)), "hold", "2 of 200 requests"),
            (counted(20, seconds=took(ms250=20), champion=199), "hold", "199 of 200 requests to the champion"),
            (Counts(), "hold", "0 of 200 requests to the challenger"),
        ],
    )
    def test_what_is_judged(self, counts: Counts, outcome: str, reason: str) -> None:
        """Fine, too few, beyond a limit by chance perhaps, and beyond it for certain; the numbers are in the reason."""
        found = verdict(counts, LIMITS, 0.1)
        assert found.outcome == outcome
        assert reason in found.reason
        assert found.doubtful == ("chance" in found.reason)

    @given(requests=st.integers(200, 5000), errors=st.integers(0, 5000), disagreed=st.integers(0, 5000), more=st.data())
    def test_worse_counts_are_never_judged_better(
        self, requests: int, errors: int, disagreed: int, more: st.DataObject
    ) -> None:
        """One more error, disagreement or slow request improves no verdict."""
        errors, disagreed = min(errors, requests), min(disagreed, requests)
        slow = more.draw(st.integers(0, requests - 1), "slow requests")
        before = counted(
            requests, errors=errors, seconds=took(ms5=requests - slow, ms250=slow), disagreed=disagreed, champion=3000
        )
        worse = counted(
            requests,
            errors=min(errors + 1, requests),
            seconds=took(ms5=requests - slow - 1, ms250=slow + 1),
            disagreed=min(disagreed + 1, requests),
            champion=3000,
        )
        one, two = (WORSE.index(verdict(each, LIMITS, 0.1).outcome) for each in (before, worse))
        assert two >= one

    @given(
        requests=st.integers(0, 100_000),
        error=st.fractions(0, 1),
        buckets=st.lists(st.integers(0, 5000), min_size=len(BOUNDS) + 1, max_size=len(BOUNDS) + 1),
        compared=st.integers(0, 5000),
    )
    def test_an_equal_is_never_sent_back(
        self, requests: int, error: Fraction, buckets: list[int], compared: int
    ) -> None:
        """A challenger that does exactly what the champion does goes on, or waits for want of requests."""
        side = Side(requests, int(requests * error), Histogram(BOUNDS, tuple(buckets)))
        found = verdict(Counts(side, side, compared, compared // 10), LIMITS, 0.1)
        assert found.outcome != "back"
        assert not found.doubtful

    @settings(max_examples=30)
    @given(expected=st.floats(0, 0.5), requests=st.integers(1, 250))
    def test_chance_alone_hardly_ever_sends_back(self, expected: float, requests: int) -> None:
        """Of the challengers that disagree exactly as much as they may, less than one in a thousand goes back."""
        limit = expected + LIMITS.more_disagreement
        assume(limit < 1)
        sent_back = [
            count
            for count in range(requests + 1)
            if verdict(counted(requests, disagreed=count), LIMITS, expected).outcome == "back"
        ]
        assert not sent_back or binomial(min(sent_back), requests, limit) < CHANCE

    def test_a_wrong_model_is_found_within_the_minimum(self) -> None:
        """At 200 requests a challenger that is wrong a third of the time too often goes back nearly always."""
        back = min(count for count in range(201) if verdict(counted(disagreed=count), LIMITS, 0.1).outcome == "back")
        assert back <= 50
        assert binomial(back, 200, 0.4) > 0.999


class TestChance:
    """The exact tests."""

    @given(st.integers(0, 40), st.integers(0, 40), st.fractions(0, 1, max_denominator=50))
    def test_binomial(self, successes: int, tries: int, chance: Fraction) -> None:
        """As exact arithmetic says."""
        assume(successes <= tries)
        exact = sum(
            math.comb(tries, number) * chance**number * (1 - chance) ** (tries - number)
            for number in range(successes, tries + 1)
        )
        assert binomial(successes, tries, float(chance)) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)

    @given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
    def test_fisher(self, errors: int, requests: int, other_errors: int, other_requests: int) -> None:
        """As exact arithmetic says."""
        assume(errors <= requests and other_errors <= other_requests)
        total, both = errors + other_errors, requests + other_requests
        exact = Fraction(
            sum(
                math.comb(requests, number) * math.comb(other_requests, total - number)
                for number in range(errors, min(total, requests) + 1)
            ),
            math.comb(both, total),
        )
        assert fisher(errors, requests, other_errors, other_requests) == pytest.approx(float(exact), rel=1e-9)

    def test_large_counts_take_no_time(self) -> None:
        """A million requests are judged by a few terms, not by a million."""
        assert fisher(600_000, 1_000_000, 500_000, 1_000_000) < CHANCE
        assert binomial(51_000, 1_000_000, 0.05) < CHANCE


class TestHistogram:
    """How long requests took."""

    @given(st.lists(st.integers(0, 50), min_size=len(BOUNDS) + 1, max_size=len(BOUNDS) + 1), st.floats(0.01, 1))
    def test_a_quantile_has_its_share_below_it(self, counts: list[int], share: float) -> None:
        """Not more requests than the rest took longer than a quantile, up to one and the bucket without a bound."""
        found = Histogram(BOUNDS, tuple(counts))
        at = found.quantile(share)
        if at is None:
            assert found.total == 0
        elif at < BOUNDS[-1]:
            assert found.above(at) <= (1 - share) * found.total + 1e-6

    def test_an_even_bucket(self) -> None:
        """Within a bucket requests lie evenly; beyond the last bound nothing is known but that."""
        ten = took(ms10=10)
        assert ten.quantile(0.5) == pytest.approx(0.0075)
        assert (ten.above(0.005), ten.above(0.0075), ten.above(0.01)) == (10, 5, 0)
        beyond = Histogram(BOUNDS, (*[0] * len(BOUNDS), 3))
        assert (beyond.quantile(0.5), beyond.above(0.9), beyond.above(5)) == (math.inf, 3, 3)
        assert Histogram().quantile(0.95) is None

    def test_different_buckets_do_not_add_up(self) -> None:
        """Rather than to guess, it is refused."""
        with pytest.raises(ValueError, match="different bounds"):
            _ = took(ms5=1) + Histogram((1.0,), (1, 0))
