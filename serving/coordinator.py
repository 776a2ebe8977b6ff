"""What the processes of one replica have agreed on, and the one change that is proposed to them at a time.

It knows the board and the shelf, and how a proposal becomes live; what to propose, and when, is ``model_watch``'s.
"""

import logging
import time
from dataclasses import dataclass
from typing import Literal

from pipeline.artifacts import utc_now
from serving.agreement import Agreement, Baseline, Prepared, PreparedCanary
from serving.board import Board
from serving.canary_report import counted
from serving.model_files import ModelFile, Shelf
from serving.schemas import SwapError
from serving.swap import Verdict, Voter, verdict

log = logging.getLogger(__name__)

Complaint = Literal["error", "canary_error"]
"""About the champion, or about its challenger."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the processes are preparing for.

    Attributes:
        keep: what the cache is to keep once it is live.
        since: by the monotonic clock, in seconds.
        deaths: of processes, until then.
    """

    prepared: Prepared
    keep: ModelFile | None
    since: float
    deaths: int


class Coordinator:
    """Speaks to the processes of one replica."""

    def __init__(self, model: str, board: Board, shelf: Shelf) -> None:
        """Nothing is live yet; ``model`` is its name."""
        self._model = model
        self.said = Agreement()
        self.proposal: Proposal | None = None
        self._board = board
        self._shelf = shelf
        self._number = 0
        self._deaths = 0

    @property
    def live(self) -> Prepared:
        """What answers."""
        return self.said.live

    def say(self, **changed: object) -> None:
        """Let the processes know."""
        self.said = self.said.model_copy(update=changed)
        self._board.agree(self.said)

    def put(self, model: ModelFile) -> int:
        """Lay a version on the shelf, beside what is live; the number of its file."""
        file = self._shelf.free(self.live.files.values())
        self._shelf.put(file, model)
        return file

    def shelved(self, version: str) -> ModelFile:
        """A version that lies on the shelf, verified.

        Raises:
            KeyError: it is none of those that are live.
            Corrupted: it was altered, or its memory was given back.
        """
        return self._shelf.read(self.live.files[version])

    def propose(
        self,
        version: str | None,
        file: int | None,
        canary: PreparedCanary | None = None,
        *,
        keep: ModelFile | None = None,
    ) -> None:
        """Let the processes prepare for a version (None: for none), and perhaps another one for a share."""
        self._number += 1
        prepared = Prepared(generation=self._number, version=version, file=file, canary=canary)
        self.proposal = Proposal(prepared, keep, time.monotonic(), self._board.deaths)
        self.say(proposed=prepared)

    def verdict(self, proposal: Proposal) -> Verdict:
        """What the processes say to the proposal."""
        return verdict(
            [self._voter(seat, proposal.prepared.generation) for seat in range(self._board.seats)],
            time.monotonic() - proposal.since,
            deaths=self._board.deaths - proposal.deaths,
            first=self.live.generation == 0,
        )

    def commit(self, live: Prepared) -> None:
        """From now on, all processes answer as ``live`` says."""
        before, baseline = self.live, self._baseline(live)
        swapped = live.version != before.version
        self._board.flip(live.generation)
        self.say(
            live=live,
            proposed=None,
            since=utc_now() if swapped else self.said.since,
            swaps=self.said.swaps + swapped,
            baseline=baseline,
        )
        self.proposal = None
        log.info("%s %s", self._model, _news(live, swapped=swapped))
        self._clear(set(before.files.values()) - set(live.files.values()))
        if self._board.seats == 1 and live.file is not None:
            self._clear({live.file})  # nobody can join later

    def withdraw(self) -> None:
        """Nobody needs to prepare for the proposal any more."""
        proposal, self.proposal = self.proposal, None
        self.say(proposed=None)
        if proposal:
            self._clear(set(proposal.prepared.files.values()) - set(self.live.files.values()))

    def refuse(self, about: Complaint, version: str | None, why: str) -> None:
        """Say that a version was tried and failed."""
        self.say(swap_failures=self.said.swap_failures + 1)
        self.complain(about, version, why)

    def complain(self, about: Complaint, version: str | None, why: str) -> None:
        """Say what is wrong; the log hears it once."""
        seen: SwapError | None = getattr(self.said, about)
        if seen and (seen.version, seen.reason) == (version, why):
            return
        log.warning("%s: %s", self._model, why)
        self.say(**{about: SwapError(version=version, reason=why, at=utc_now())})

    def settle(self, about: Complaint) -> None:
        """Say that nothing is wrong any more."""
        if getattr(self.said, about):
            log.info("%s: all is well again", self._model)
            self.say(**{about: None})

    def deaths(self) -> int:
        """Of processes, since the challenger that is live went so; 0 where none is."""
        return self._board.deaths - self._deaths if self.live.canary else 0

    def _baseline(self, live: Prepared) -> Baseline | None:
        """What was counted when the challenger of ``live`` went live: at this moment, or already before."""
        asked, known = live.asked, self.said.baseline
        if asked is None:
            return known
        if self.live.canary is None:
            self._deaths = self._board.deaths
        if known and known.is_of(asked):
            return known
        return Baseline(challenger=asked.challenger, started_at=asked.started_at, counts=counted(self._board))

    def _voter(self, seat: int, generation: int) -> Voter:
        report = self._board.report(seat)
        return Voter(
            pid=report.pid,
            silent_s=self._board.silent_s(seat),
            holds=generation in report.held,
            refusal=report.refused.get(generation),
        )

    def _clear(self, files: set[int]) -> None:
        """Give memory back."""
        for file in files:
            self._shelf.clear(file)


def _news(live: Prepared, *, swapped: bool) -> str:
    if swapped:
        return f"is at version {live.version}" if live.version else "is withdrawn"
    if live.asked is None:
        return "has no challenger any more"
    what = "a copy of " if live.asked.mode == "shadow" else ""
    return f"has challenger {live.asked.challenger}, which gets {what}{live.asked.share:.0%} of the requests"
