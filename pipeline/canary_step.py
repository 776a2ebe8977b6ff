"""One step of a ramp: a challenger has its share until what all replicas counted says that it may have more, or none.

- **Each replica that there is must show the step.** One that does not, or that does not answer, is waited for, and is
  a doubt after that; so is one that says that it cannot load the challenger.
- **Without any request for a while, test images are sent** (``replay``). Where those do not do, or do not suffice, the
  step holds: it ends with ``CanaryHeld``, and the challenger keeps the share that it has proven itself worth.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from pipeline import aliases, canary_counts
from pipeline.aliases import CHAMPION, Canary
from pipeline.artifacts import CanaryConfig, CanaryStep
from pipeline.canary_counts import Ledger, Report, Reports
from pipeline.canary_rule import Counts, Outcome, Side, Verdict, verdict
from pipeline.errors import CanaryHeld, Conflict
from pipeline.progress import OnProgress, Progress
from pipeline.proof import Question
from pipeline.registry import ModelManifest
from pipeline.replay import Replay, Role
from pipeline.replicas import FAILURE_GRACE_S, POLL_S, Replica, Replicas
from pipeline.store import Store

OnStep = Callable[[CanaryStep], None]
"""Told of each step that came to an end."""


LONGEST_PAUSE_S = 1.0
"""Between two looks at the replicas, while none is sent a test image."""


class Doubt(Exception):
    """Why a challenger goes back, as a clause."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """What a ramp is made with.

    Attributes:
        models: the models zone.
        challenger: its manifest.
        config: steps, minimum and limits.
        replicas: that are asked.
        questions: reads the test images that are sent where nobody else sends any.
        expected: share of the test images on which champion and challenger disagree.
        timeout_s: how long a replica may not answer, or not show the step, in seconds.
        on_progress: told in each round how many requests there are.
        on_step: told of each step.
        still_wanted: called in each round; raises where nobody wants the ramp to go on now.
    """

    models: Store
    challenger: ModelManifest
    config: CanaryConfig
    replicas: Replicas
    questions: Callable[[], Sequence[Question]]
    expected: float
    timeout_s: float
    on_progress: OnProgress
    on_step: OnStep
    still_wanted: Callable[[], object] = lambda: None


class Latecomers:
    """Replicas that do not show a step, and since when: each is waited for, but not for ever."""

    def __init__(self, canary: Canary, timeout_s: float) -> None:
        """Nobody was looked at yet; ``timeout_s`` is how long a replica may not answer, or not show the step."""
        self._canary = canary
        self._timeout_s = timeout_s
        self._late: dict[str, float] = {}
        self._refusing: dict[str, float] = {}

    def look(self, reports: Reports, now: float) -> list[str]:
        """Who is waited for and why, as clauses; none once all show the step.

        Args:
            reports: what each replica says.
            now: the time, in seconds of a clock that only goes forward.

        Raises:
            Doubt: somebody was waited for long enough, or has been refusing the challenger for too long.
        """
        missing = dict(_missing(reports, self._canary))
        refusing = [each.name for each, report in reports.items() if report and report.refuses(self._canary)]
        self._late = {who: self._late.get(who, now) for who in missing}
        self._refusing = {who: self._refusing.get(who, now) for who in refusing if who in missing}
        for who, why in missing.items():
            refused_s = now - self._refusing.get(who, now)
            if now - self._late[who] > self._timeout_s or refused_s > FAILURE_GRACE_S:
                raise Doubt(f"{who} {why}")
        return [f"{who} {why}" for who, why in missing.items()]


@dataclass(slots=True)
class Step:
    """One step while it lasts; ``etag`` is that of the alias that says so."""

    ramp: Ramp
    canary: Canary
    etag: str
    _begun: float = field(init=False, default_factory=time.monotonic)
    _busy: float = field(init=False, default_factory=time.monotonic)
    _counts: Counts = field(init=False, default_factory=Counts)
    _latecomers: Latecomers = field(init=False)
    _ledger: Ledger = field(init=False)
    _replay: Replay = field(init=False)

    def __post_init__(self) -> None:
        ramp, share = self.ramp, self.canary.share if self.canary.mode == "split" else 0.0
        self._latecomers = Latecomers(self.canary, ramp.timeout_s)
        self._ledger = Ledger(self.canary)
        self._replay = Replay(ramp.questions, ramp.challenger, share, ramp.config.minimum_requests)

    def last(self) -> None:
        """Return once the challenger may have more.

        Raises:
            Doubt: it may not, and has to go back.
            CanaryHeld: there is too little to say; it keeps its share.
            Conflict: somebody else changed the alias.
        """
        while True:
            self.ramp.still_wanted()
            self._refuse_changed()
            reports = self.ramp.replicas.each(self._asked)
            waiting = self._latecomers.look(reports, time.monotonic())
            self._count(reports)
            found = verdict(self._counts, self.ramp.config, self.ramp.expected)
            self._say("; ".join(waiting) or found.reason)
            if found.outcome == "back":
                raise Doubt(found.reason)
            if found.outcome == "go on" and not waiting and self._may_end():
                return self.tell("go on", found.reason)
            if self._lasted > max(self.ramp.config.hold_s, self.ramp.config.step_s) and not waiting:
                self._give_up(found)
            if not self._send(reports, found):
                time.sleep(pause_s(self._lasted))

    def tell(self, outcome: Outcome, reason: str) -> None:
        """Report what the step came to."""
        ours, theirs = self._counts.challenger, self._counts.champion
        step = CanaryStep(
            share=self.canary.share,
            mode=self.canary.mode,
            requests=ours.requests,
            errors=ours.errors,
            p95_ms=_p95_ms(ours),
            champion_requests=theirs.requests,
            champion_errors=theirs.errors,
            champion_p95_ms=_p95_ms(theirs),
            compared=self._counts.compared,
            disagreed=self._counts.disagreed,
            replayed=self._replay.sent,
            seconds=round(self._lasted, 1),
            outcome=outcome,
            reason=reason,
        )
        self.ramp.on_step(step)

    @property
    def _lasted(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self._begun

    def _asked(self, replica: Replica) -> Report | None:
        return canary_counts.asked(replica, self.ramp.challenger.model)

    def _refuse_changed(self) -> None:
        model = self.ramp.challenger.model
        if aliases.etag_of(self.ramp.models, model, CHAMPION) != self.etag:
            raise Conflict(
                f"Alias {CHAMPION!r} of model {model!r} was changed by somebody else while version "
                f"{self.canary.challenger} had {size(self.canary)}: the ramp ends, and leaves it as it is."
            )

    def _count(self, reports: Reports) -> None:
        self._ledger.note(reports)
        before, self._counts = self._counts, self._ledger.total()
        if _requests(self._counts) > _requests(before):
            self._busy = time.monotonic()

    def _may_end(self) -> bool:
        """Whether the step has lasted long enough, and clients have sent what is wanted of them."""
        config, sent = self.ramp.config, self._replay.by_role
        copies = sent["champion"] if self.canary.mode == "shadow" else 0
        of_clients = min(
            self._counts.champion.requests - sent["champion"],
            self._counts.challenger.requests - sent["challenger"] - copies,
        )
        return self._lasted >= config.step_s and (not config.real_traffic or of_clients >= config.minimum_requests)

    def _send(self, reports: Reports, found: Verdict) -> bool:
        """Send test images where nobody has sent anything for a while; whether it did.

        Raises:
            Doubt: an answer was wrong.
        """
        quiet = self._replay.sent or time.monotonic() - self._busy >= self.ramp.config.step_s
        if not quiet or self._replay.is_over or found.outcome == "go on":
            return False
        clients = [replica.client for replica, report in reports.items() if report and report.shows(self.canary)]
        ours, theirs = self._counts.challenger.requests, self._counts.champion.requests
        # The champion first: what it takes is known then, and a slow challenger is found out by a few requests.
        lacking: Role = "challenger" if theirs >= max(self.ramp.config.minimum_requests, ours) else "champion"
        doubt = self._replay.round(clients, lacking)
        if doubt:
            self._count(self.ramp.replicas.each(self._asked))
            raise Doubt(doubt)
        return bool(clients)

    def _say(self, why: str) -> None:
        least = self.ramp.config.minimum_requests
        done = min(self._counts.champion.requests, self._counts.challenger.requests)
        total = least if done < least else None  # enough of them end no step before its time
        self.ramp.on_progress(Progress(f"canary: {size(self.canary)}", done, total, "requests", note=why))

    def _give_up(self, found: Verdict) -> NoReturn:
        """End a step that could not be judged in time."""
        if found.doubtful:
            raise Doubt(found.reason)
        lack = "clients sent too few of the requests" if found.outcome == "go on" else found.reason
        self.tell("hold", lack)
        version, model = self.canary.challenger, self.ramp.challenger.model
        raise CanaryHeld(
            f"Version {version} of model {model!r} keeps {size(self.canary)}: after {self._lasted:.0f} s there is too "
            f"little to judge it by, namely {lack}; deploy it with a canary again to go on, or stop it with "
            "`safelight models canary`."
        )


def pause_s(lasted_s: float) -> float:
    """Seconds until replicas and alias are looked at again: of a step that has lasted long, a doubt may take longer."""
    return min(LONGEST_PAUSE_S, max(POLL_S, lasted_s / 20))


def size(canary: Canary | CanaryStep) -> str:
    """What a challenger gets, as a clause."""
    return f"{'a copy of ' if canary.mode == 'shadow' else ''}{100 * canary.share:.4g} % of the requests"


def _missing(reports: Reports, canary: Canary) -> Iterator[tuple[str, str]]:
    """Who does not show a step, and a clause that says what it does instead."""
    if not reports:
        yield "no replica", "was found"
    for replica, report in reports.items():
        if report is None:
            yield replica.name, "does not answer"
        elif not report.shows(canary):
            refusal = report.refuses(canary)
            yield replica.name, f"did not load the version; it says: {refusal}" if refusal else "does not show the step"


def _requests(counts: Counts) -> int:
    return counts.champion.requests + counts.challenger.requests


def _p95_ms(side: Side) -> float | None:
    """In milliseconds; None without requests, or beyond all buckets."""
    found = side.seconds.quantile(0.95)
    return None if found is None or math.isinf(found) else round(found * 1000, 2)
