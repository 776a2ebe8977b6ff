"""The canary's rule: whether a challenger gets more requests, waits, or goes back, and why. Pure; ``canary`` obeys it.

Three things are judged, each by itself: how many requests fail, how long they take, and how often the two models
disagree. Each is a share of what was counted, with a limit:

- *errors*: the champion's own share, and ``more_errors`` on top;
- *time*: 5 % of the requests may take longer than ``slower`` times the champion's 95th percentile, or than that and
  ``slower_ms``, whichever is more. At 200 requests a 99th percentile would be made of two of them;
- *disagreement*: as often as on the test images, which both evaluations stored, and ``more_disagreement`` on top.

**A share within its limit is fine. One beyond it that chance does not explain sends the challenger back**, however few
requests there are so far; **one beyond it that chance may explain waits for more.** Chance is asked by exact one-sided
tests (binomial; for errors Fisher's, since the champion's share is an estimate too), at ``CHANCE``: small, because a
step is looked at again and again while its counts grow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.artifacts import CanaryConfig

CHANCE = 0.001
"""How improbable a finding has to be, were the challenger within its limit, before the challenger goes back for it."""

TAIL = 0.05
"""Share of the requests that may take longer than the limit on time."""

COMPARED = 4
"""One in so many of the minimum of requests has to have been answered by both models."""

Outcome = Literal["go on", "hold", "back"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long requests took.

    Attributes:
        bounds: upper bounds of the buckets in seconds, ascending; one more bucket has none.
        counts: requests in each bucket, one more than ``bounds``.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)

    @property
    def total(self) -> int:
        """Requests in all buckets."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The time in seconds within which a share of the requests ended, as if each bucket were filled evenly.

        None without requests; infinite where the time is beyond all bounds.
        """
        wanted, passed = share * self.total, 0
        for (lower, upper), count in zip(self._edges(), self.counts, strict=True):
            if count and passed + count >= wanted:
                return lower + (upper - lower) * (wanted - passed) / count if math.isfinite(upper) else upper
            passed += count
        return None

    def above(self, seconds: float) -> int:
        """Requests that took longer, as if each bucket were filled evenly; rounded down, in favour of the judged."""
        return int(sum(self._longer(seconds)) + 1e-9)

    def _longer(self, seconds: float) -> Iterator[float]:
        for (lower, upper), count in zip(self._edges(), self.counts, strict=True):
            if seconds <= lower:
                yield count
            elif seconds < upper:
                # Of a bucket without an upper bound nothing is known but that its requests took longer than the last.
                yield count * (upper - seconds) / (upper - lower) if math.isfinite(upper) else count

    def _edges(self) -> Iterator[tuple[float, float]]:
        return zip((0.0, *self.bounds), (*self.bounds, math.inf), strict=True)

    def __add__(self, other: Self) -> Self:
        """Both together; the bounds have to be the same."""
        if not self.total or not other.total:
            return other if other.total else self
        if self.bounds != other.bounds:
            raise ValueError("histograms of different bounds cannot be added up")
        return type(self)(self.bounds, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def __neg__(self) -> Self:
        """What takes these requests away where it is added."""
        return type(self)(self.bounds, tuple(-count for count in self.counts))


@dataclass(frozen=True, slots=True)
class Side:
    """What one of the two models was asked: requests, those in which it failed, and the time that they took."""

    requests: int = 0
    errors: int = 0
    seconds: Histogram = Histogram()

    @property
    def error_share(self) -> float:
        """Of the requests; 0 without any."""
        return self.errors / self.requests if self.requests else 0.0

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(self.requests + other.requests, self.errors + other.errors, self.seconds + other.seconds)

    def __sub__(self, other: Self) -> Self:
        """What came on top of ``other``."""
        return type(self)(self.requests - other.requests, self.errors - other.errors, self.seconds + -other.seconds)


@dataclass(frozen=True, slots=True)
class Counts:
    """All that a step is judged by; ``compared`` images were answered by both models, ``disagreed`` of them twice."""

    champion: Side = Side()
    challenger: Side = Side()
    compared: int = 0
    disagreed: int = 0

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(
            self.champion + other.champion,
            self.challenger + other.challenger,
            self.compared + other.compared,
            self.disagreed + other.disagreed,
        )

    def __sub__(self, other: Self) -> Self:
        """What came on top of ``other``."""
        return type(self)(
            self.champion - other.champion,
            self.challenger - other.challenger,
            self.compared - other.compared,
            self.disagreed - other.disagreed,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a challenger, with a clause that says why; ``doubtful``: it waits, and not for want of counts."""

    outcome: Outcome
    reason: str
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class _Finding:
    """One of the three things: whether it is beyond its limit, how improbable that is by chance, and a clause."""

    beyond: bool
    chance: float
    clause: str


def verdict(counts: Counts, limits: CanaryConfig, expected: float) -> Verdict:
    """Whether a challenger goes on, waits or goes back.

    Args:
        counts: of one step, summed over all replicas.
        limits: the minimum of requests and the limits.
        expected: share of the test images on which champion and challenger disagree, from 0 to 1.
    """
    few = lacking(counts, limits)
    beyond = [found for found in _findings(counts, limits, expected) if found.beyond]
    if back := [found.clause for found in beyond if found.chance < CHANCE]:
        return Verdict("back", "; ".join(back))
    if beyond and not few:
        clauses = "; ".join(found.clause for found in beyond)
        return Verdict("hold", f"{clauses}: this may still be chance", doubtful=True)
    if few:
        return Verdict("hold", few)
    return Verdict("go on", _summary(counts))


def lacking(counts: Counts, limits: CanaryConfig) -> str:
    """What there is too little of, as a clause; empty where there is enough."""
    least = limits.minimum_requests
    wanted = [
        (counts.challenger.requests, least, "requests to the challenger"),
        (counts.champion.requests, least, "requests to the champion"),
        (counts.compared, -(-least // COMPARED), "comparisons of the two"),
    ]
    return ", ".join(f"{have:,} of {want:,} {what}" for have, want, what in wanted if have < want)


def _findings(counts: Counts, limits: CanaryConfig, expected: float) -> Iterator[_Finding]:
    yield _errors(counts, limits)
    yield _disagreement(counts, limits, expected)
    if counts.champion.requests >= limits.minimum_requests:  # a percentile of fewer is none
        yield _time(counts, limits)


def _errors(counts: Counts, limits: CanaryConfig) -> _Finding:
    ours, theirs = counts.challenger, counts.champion
    beyond = ours.error_share > theirs.error_share + limits.more_errors
    return _Finding(
        beyond,
        fisher(ours.errors, ours.requests, theirs.errors, theirs.requests) if beyond else 1.0,
        f"{ours.errors:,} of {ours.requests:,} requests to the challenger failed, and {theirs.errors:,} of "
        f"{theirs.requests:,} to the champion; {limits.more_errors:.1%} more may",
    )


def _time(counts: Counts, limits: CanaryConfig) -> _Finding:
    ours, theirs = counts.challenger.seconds, counts.champion.seconds.quantile(1 - TAIL) or 0.0
    limit = max(theirs * limits.slower, theirs + limits.slower_ms / 1000)
    slow = ours.above(limit)
    beyond = slow > TAIL * ours.total
    return _Finding(
        beyond,
        binomial(slow, ours.total, TAIL) if beyond else 1.0,
        f"{slow:,} of {ours.total:,} requests to the challenger took longer than {limit * 1000:,.1f} ms, where the "
        f"champion's 95th percentile is {theirs * 1000:,.1f} ms; {TAIL:.0%} may",
    )


def _disagreement(counts: Counts, limits: CanaryConfig, expected: float) -> _Finding:
    limit = min(1.0, expected + limits.more_disagreement)
    beyond = counts.disagreed > limit * counts.compared
    return _Finding(
        beyond,
        binomial(counts.disagreed, counts.compared, limit) if beyond else 1.0,
        f"champion and challenger disagree on {counts.disagreed:,} of {counts.compared:,} images; {limit:.1%} may, "
        f"after {expected:.1%} of the test images",
    )


def _summary(counts: Counts) -> str:
    return (
        f"{counts.challenger.errors:,} of {counts.challenger.requests:,} requests failed, and {counts.disagreed:,} of "
        f"{counts.compared:,} images were answered otherwise"
    )


def binomial(successes: int, tries: int, chance: float) -> float:
    """Probability of so many successes or more, each of the ``tries`` being one with the probability ``chance``."""
    if successes <= 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    odds = math.log(chance) - math.log1p(-chance)
    first = _log_choose(tries, successes) + successes * math.log(chance) + (tries - successes) * math.log1p(-chance)
    return _tail(first, (math.log((tries - number) / (number + 1)) + odds for number in range(successes, tries)))


def fisher(errors: int, requests: int, other_errors: int, other_requests: int) -> float:
    """Fisher's exact test, one-sided: probability that so many of all errors, or more, fall among ``requests``."""
    total, both = errors + other_errors, requests + other_requests
    first = (
        _log_choose(requests, errors) + _log_choose(other_requests, other_errors) - _log_choose(both, total)
        if both
        else 0.0
    )
    ratios = (
        math.log((requests - number) * (total - number))
        - math.log((number + 1) * (other_requests - total + number + 1))
        for number in range(errors, min(total, requests))
    )
    return _tail(first, ratios)


def _tail(first: float, ratios: Iterator[float]) -> float:
    """Sum of terms, each larger than the one before by a factor; first term and factors as logarithms."""
    found, term = math.exp(first), first
    for ratio in ratios:
        term += ratio
        found += math.exp(term)
        if ratio < 0 and term < first - 50:  # from here on they only shrink
            break
    return min(1.0, found)


def _log_choose(things: int, taken: int) -> float:
    return math.lgamma(things + 1) - math.lgamma(taken + 1) - math.lgamma(things - taken + 1)
