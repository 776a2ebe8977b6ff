"""What the replicas count of a canary, summed up over one step of its ramp.

Each replica counts for itself, over all of its processes, from when the challenger went live there; steps share these
counters. So a step is what came on top of what a replica had counted when it first showed the step:

- **A replica is who it says that it is**: each start of a server draws a nonce. Two addresses of one server count once.
- One that answers with a new nonce where another one was counted during this step began from zero, and all that it has
  counted is of this step.
- What a replica counted before it left, or was started again, stays counted: those requests were answered. Nothing is
  ever subtracted for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import httpx
from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.aliases import Canary, Mode
from pipeline.canary_rule import Counts, Histogram, Side
from pipeline.errors import DeployFailed
from pipeline.replicas import STATUS_TIMEOUT, Replica, refuse_unusable

Count = Annotated[int, Field(ge=0)]


class _Seconds(BaseModel):
    """A histogram of a replica."""

    bounds: tuple[float, ...]
    counts: tuple[Count, ...]

    @model_validator(mode="after")
    def _refuse_lengths(self) -> "_Seconds":
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError("one count more than bounds is needed")
        return self


class _Model(BaseModel):
    """What one of the two models of a replica was asked."""

    version: str
    requests: Count
    errors: Count
    seconds: _Seconds

    def side(self) -> Side:
        return Side(self.requests, self.errors, Histogram(self.seconds.bounds, self.seconds.counts))


class _Refusal(BaseModel):
    """A version that a replica could not load, and why."""

    version: str | None
    reason: str


class Report(BaseModel):
    """What a replica says of a canary; fields that are not read here may be there too.

    Attributes:
        replica: drawn anew whenever the server starts.
        champion: None where nothing is live.
        challenger: None where none is live.
        error: why not, where there should be one.
    """

    replica: str
    step: int | None
    mode: Mode | None
    share: float | None
    champion: _Model | None
    challenger: _Model | None
    compared: Count
    disagreed: Count
    error: _Refusal | None = None

    def shows(self, canary: Canary) -> bool:
        """Whether the replica is at this very step."""
        return self.has(canary.challenger) and (self.step, self.mode, self.share) == (
            canary.step,
            canary.mode,
            canary.share,
        )

    def has(self, challenger: str) -> bool:
        """Whether a challenger of this version gets anything here."""
        return self.challenger is not None and self.challenger.version == challenger

    def refuses(self, canary: Canary) -> str:
        """Why the replica cannot load the challenger; empty where it does not say so."""
        return self.error.reason if self.error and self.error.version == canary.challenger else ""

    @property
    def counts(self) -> Counts:
        """All that it has counted."""
        champion, challenger = (each.side() if each else Side() for each in (self.champion, self.challenger))
        return Counts(champion, challenger, self.compared, self.disagreed)


Reports = Mapping[Replica, Report | None]
"""What each replica says; None of one that does not answer."""


def asked(replica: Replica, model: str) -> Report | None:
    """What a replica says of the canary of ``model``; None while it does not answer.

    Raises:
        DeployFailed: it says nothing that could be read, is a gateway, or asks for a key.
    """
    try:
        answer = replica.client.get(f"/v2/models/{model}/canary", timeout=STATUS_TIMEOUT)
        refuse_unusable(replica, answer)
        if answer.is_server_error:
            return None
        return Report.model_validate_json(answer.content)
    except httpx.TransportError:
        return None
    except ValidationError as error:
        raise DeployFailed(
            f"{replica.name} does not say what it counts of a canary (status {answer.status_code}); is it of this "
            "release?"
        ) from error


@dataclass(slots=True)
class _Known:
    """A replica in this step: what it had counted at its beginning, and what it has counted now."""

    before: Counts
    now: Counts


class Ledger:
    """The counts of one step."""

    def __init__(self, canary: Canary) -> None:
        """Nothing is counted yet."""
        self._canary = canary
        self._known: dict[str, _Known] = {}
        self._nonces: dict[str, str] = {}
        self._left = Counts()

    def note(self, reports: Reports) -> None:
        """Take down what the replicas that show this step say.

        Raises:
            DeployFailed: they count in different buckets.
        """
        for replica, report in reports.items():
            if report is not None and report.shows(self._canary):
                self._note(replica.address, report)

    def total(self) -> Counts:
        """All that was counted during the step."""
        total = self._left
        for each in self._known.values():
            total += each.now - each.before
        return total

    def _note(self, address: str, report: Report) -> None:
        known, now = self._known.get(report.replica), report.counts
        if known is None:
            follows = self._nonces.get(address, report.replica) != report.replica
            self._known[report.replica] = _Known(Counts() if follows else now, now)
        elif _fewer(now, known.now):  # the challenger went live there anew
            self._left += known.now - known.before
            self._known[report.replica] = _Known(Counts(), now)
        else:
            known.now = now
        self._nonces[address] = report.replica
        self._refuse_other_buckets(now)

    def _refuse_other_buckets(self, now: Counts) -> None:
        bounds = {
            side.seconds.bounds
            for counts in (now, *(each.now for each in self._known.values()))
            for side in (counts.champion, counts.challenger)
            if side.seconds.bounds
        }
        if len(bounds) > 1:
            raise DeployFailed("the replicas count in different buckets: let them all run the same release")


def _fewer(now: Counts, before: Counts) -> bool:
    """Whether a counter that only grows went back."""
    pairs = [
        (now.champion.requests, before.champion.requests),
        (now.challenger.requests, before.challenger.requests),
        (now.compared, before.compared),
    ]
    return any(one < two for one, two in pairs)
