"""The model that answers, kept what the alias says: fetched and verified once, proposed to all processes, then live.

- One thread in each replica coordinates; requests never wait for it, nor for the store.
- **Whatever fails, the model that answered before goes on answering**, and the status says why the new one does not. A
  version that does not load is tried again ever more rarely, since each try downloads it; a store that does not answer
  is asked again at the next look.
- An alias that points at nothing (the first version was taken back) does take the model away. An alias that is not
  there at all, after it was, does not: that is an accident of the store and nobody's decision.
- The cached version goes live only while nobody could tell this replica what the alias says.
"""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from pipeline.artifacts import utc_now
from pipeline.errors import StoreError, StoreUnavailable
from pipeline.store import Store
from serving.alias_watch import AliasWatch, Reading
from serving.board import Agreement, Board, Prepared, reason
from serving.model_cache import ModelCache
from serving.model_files import ModelFile, Shelf
from serving.schemas import SwapError
from serving.settings import ServingSettings
from serving.swap import Voter, verdict

log = logging.getLogger(__name__)

LONGEST_WAIT_S: Final = 60.0
"""Between two tries of a version that does not load."""
TICK_S: Final = 0.05
"""How often the processes are asked how far they are: a part of how long a swap takes."""
STOP_PATIENCE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A version that the processes are loading."""

    prepared: Prepared
    model: ModelFile | None
    from_cache: bool
    since: float
    deaths: int


class ModelWatch:
    """Coordinates one replica: follows its model's alias, or loads the version that it is pinned to."""

    def __init__(self, models: Store, settings: ServingSettings, board: Board, shelf: Shelf) -> None:
        """Nothing is read yet; ``models`` is the models zone, best opened without patience."""
        self._models = models
        self._settings = settings
        self._board = board
        self._shelf = shelf
        self._alias = AliasWatch(models, settings)
        self._cache = ModelCache(settings.cache, models.url, settings)
        self._said = Agreement()
        self._number = 0
        self._proposal: Proposal | None = None
        self._told = False
        self._cache_asked = False
        self._failures = 0
        self._retry_at = 0.0
        self._failed: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._alias.start()
        self._thread.start()

    def stop(self) -> None:
        """Cease to look; what is live stays so."""
        self._stopping.set()
        self._alias.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_PATIENCE_S)

    def look(self) -> None:
        """Look at the alias once, here and now, and go one step on."""
        self._alias.look()
        self.step()

    def step(self) -> None:
        """Go one step on towards what the alias said last."""
        reading = self._alias.latest()
        wanted = reading.version if reading else None
        try:
            self._go_on(reading)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old model must stay and the watch go on
            self._fail(wanted, error)

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            self.step()

    def _go_on(self, reading: Reading | None) -> None:
        if not self._told and _is_told(reading):
            self._told = True
            if reading == Reading():
                self._cache.forget()
        if self._proposal is not None:
            self._judge(self._proposal, reading)
        elif reading is None:
            return
        elif reading.error is not None:
            self._without_alias(reading.error)
        else:
            self._follow(reading.version)

    def _follow(self, version: str | None) -> None:
        if self._said.live.version == version:
            self._settle()
        elif time.monotonic() >= self._retry_at or version != self._failed:
            self._propose(self._found(version) if version else None, from_cache=False)

    def _without_alias(self, error: Exception) -> None:
        self._fail(None, error)
        if self._told or self._cache_asked:
            return
        self._cache_asked = True
        if kept := self._cache.read():
            log.warning("%s: version %s is taken from the cache", self._settings.model, kept.manifest.version)
            self._propose(kept, from_cache=True)

    def _found(self, version: str) -> ModelFile:
        """The version, verified: from the cache if that is what it holds, else from the store."""
        kept = self._cache.read() if self._said.live.generation == 0 else None
        if kept and kept.manifest.version == version:
            return kept
        return ModelFile.fetched(self._models, self._settings.model, version)

    def _propose(self, model: ModelFile | None, *, from_cache: bool) -> None:
        self._number += 1
        prepared = Prepared(generation=self._number)
        if model:
            file = 1 - (self._said.live.file or 0)
            self._shelf.put(file, model)
            prepared = Prepared(generation=self._number, version=model.manifest.version, file=file)
        self._proposal = Proposal(prepared, model, from_cache, time.monotonic(), self._board.deaths)
        self._agree(proposed=prepared)

    def _judge(self, proposal: Proposal, reading: Reading | None) -> None:
        """Commit the proposal, give it up, or leave it for the next step."""
        if reading and reading.error is None and reading.version != proposal.prepared.version:
            self._withdraw()
            return
        found = verdict(
            [self._voter(seat, proposal.prepared.generation) for seat in range(self._board.seats)],
            time.monotonic() - proposal.since,
            deaths=self._board.deaths - proposal.deaths,
            first=self._said.live.generation == 0,
        )
        if found.committed:
            self._commit(proposal)
        elif found.refusal:
            self._withdraw()
            self._refuse(proposal.prepared.version, found.refusal)

    def _voter(self, seat: int, generation: int) -> Voter:
        report = self._board.report(seat)
        return Voter(
            pid=report.pid,
            silent_s=self._board.silent_s(seat),
            holds=generation in report.held,
            refusal=report.refused.get(generation),
        )

    def _commit(self, proposal: Proposal) -> None:
        live, before = proposal.prepared, self._said.live
        self._board.flip(live.generation)
        error = self._said.error if proposal.from_cache else None
        self._agree(live=live, proposed=None, since=utc_now(), swaps=self._said.swaps + 1, error=error)
        self._proposal = None
        log.info("%s %s", self._settings.model, f"is at version {live.version}" if live.version else "is withdrawn")
        self._clear(before, live)
        if proposal.model is None:
            self._cache.forget()
        elif not proposal.from_cache:
            self._cache.keep(proposal.model)

    def _clear(self, before: Prepared, live: Prepared) -> None:
        """Give memory back: of the version before, and where nobody can join later, of this one."""
        for each in (before, live) if self._board.seats == 1 else (before,):
            if each.file is not None:
                self._shelf.clear(each.file)

    def _withdraw(self) -> None:
        """Nobody needs to load the proposal any more."""
        proposal, self._proposal = self._proposal, None
        self._agree(proposed=None)
        if proposal and proposal.prepared.file is not None:
            self._shelf.clear(proposal.prepared.file)

    def _settle(self) -> None:
        self._failures, self._retry_at, self._failed = 0, 0.0, None
        if self._said.error:
            log.info("%s: all is well again", self._settings.model)
            self._agree(error=None)

    def _fail(self, version: str | None, error: Exception) -> None:
        """Say what is wrong; ``version`` is what was to go live, if that much is known."""
        if isinstance(error, StoreUnavailable):  # which says nothing against the version
            self._failed, self._retry_at = version, time.monotonic() + self._settings.poll_s
            self._complain(None, reason(error))
        elif version is None:
            self._complain(None, reason(error))
        else:
            self._refuse(version, reason(error))

    def _refuse(self, version: str | None, why: str) -> None:
        """The version cannot go live; it is tried again later, and then ever later."""
        self._failures += 1
        self._failed = version
        self._retry_at = time.monotonic() + min(LONGEST_WAIT_S, self._settings.poll_s * 2**self._failures)
        self._agree(swap_failures=self._said.swap_failures + 1)
        self._complain(version, why)

    def _complain(self, version: str | None, why: str) -> None:
        seen = self._said.error
        if seen and (seen.version, seen.reason) == (version, why):
            return
        log.warning("%s: %s", self._settings.model, why)
        self._agree(error=SwapError(version=version, reason=why, at=utc_now()))

    def _agree(self, **changed: object) -> None:
        self._said = self._said.model_copy(update=changed)
        self._board.agree(self._said)


def _is_told(reading: Reading | None) -> bool:
    """Whether the store answered: what it said of the alias counts, be it that there is none."""
    return reading is not None and not isinstance(reading.error, StoreError)
