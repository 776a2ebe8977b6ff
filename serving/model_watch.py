"""The model that answers, kept what the alias says: fetched and verified once, proposed to all processes, then live.

- One thread in each replica coordinates; requests never wait for it, nor for the store.
- **Whatever fails, the model that answered before goes on answering**, and the status says why the new one does not. A
  version that does not load is tried again ever more rarely, since each try downloads it; a store that does not answer
  is asked again at the next look.
- An alias that points at nothing (the first version was taken back) does take the model away. An alias that is not
  there at all, after it was, does not: that is an accident of the store and nobody's decision.
- The cached version goes live only while nobody could tell this replica what the alias says.
- **The champion comes first**: a new one goes live alone, and what the alias says of a challenger afterwards, as a
  generation of its own. Challengers are fetched aside. So none of them can hold up a champion, or take it down; one
  that is no longer wanted goes at once.
"""

import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from pipeline.aliases import Canary
from pipeline.errors import Corrupted, StoreError, StoreUnavailable
from pipeline.store import Store
from serving.agreement import Prepared, PreparedCanary
from serving.alias_watch import AliasWatch, Reading
from serving.aside import aside
from serving.board import Board, reason
from serving.coordinator import Coordinator, Proposal
from serving.model_cache import ModelCache
from serving.model_files import ModelFile, Shelf
from serving.settings import ServingSettings
from serving.swap import FATAL_DEATHS
from serving.tries import Tries

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
"""How often the processes are asked how far they are: a part of how long a swap takes."""
STOP_PATIENCE_S: Final = 2.0


class ModelWatch:
    """Coordinates one replica: follows its model's alias, or loads the version that it is pinned to."""

    def __init__(self, models: Store, settings: ServingSettings, board: Board, shelf: Shelf) -> None:
        """Nothing is read yet; ``models`` is the models zone, best opened without patience."""
        self._models = models
        self._settings = settings
        self._alias = AliasWatch(models, settings)
        self._cache = ModelCache(settings.cache, models.url, settings)
        self._replica = Coordinator(settings.model, board, shelf)
        self._champions = Tries(settings.poll_s)
        self._challengers = Tries(settings.poll_s)
        self._fetching: tuple[str, Future[ModelFile]] | None = None
        self._told = False
        self._cache_asked = False
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
        if self._replica.proposal is not None:
            self._judge(self._replica.proposal, reading)
        elif self._replica.deaths() >= FATAL_DEATHS:
            self._drop_deadly()
        elif reading is None:
            return
        elif reading.error is not None:
            self._without_alias(reading.error)
        else:
            self._follow(reading)

    def _follow(self, reading: Reading) -> None:
        if self._replica.live.version == reading.version:
            self._champions.forget()
            self._replica.settle("error")
            self._follow_canary(reading.canary)
        elif self._champions.may_try(reading.version):
            self._propose_champion(reading.version)
        else:
            self._follow_canary(None)  # the one that is live is measured against a champion that is to go

    def _follow_canary(self, asked: Canary | None) -> None:
        live = self._replica.live
        wanted = asked if asked and self._challengers.may_try(asked.challenger) else None
        if live.asked == wanted:
            if wanted == asked:
                self._replica.settle("canary_error")
        elif wanted is None or (live.asked and live.asked.challenger != wanted.challenger):
            self._replica.propose(live.version, live.file)
        else:
            self._propose_challenger(wanted)

    def _without_alias(self, error: Exception) -> None:
        self._fail(None, error)
        if self._told or self._cache_asked:
            return
        self._cache_asked = True
        if kept := self._cache.read():
            log.warning("%s: version %s is taken from the cache", self._settings.model, kept.manifest.version)
            self._replica.propose(kept.manifest.version, self._replica.put(kept))

    def _propose_champion(self, version: str | None) -> None:
        self._fetching = None
        if version is None:
            self._replica.propose(None, None)
            return
        found = self._found(version)
        file = self._replica.live.files.get(version)
        self._replica.propose(version, self._replica.put(found) if file is None else file, keep=found)

    def _found(self, version: str) -> ModelFile:
        """The version, verified: from the shelf or the cache if that is what they hold, else from the store."""
        with suppress(KeyError, Corrupted):
            return self._replica.shelved(version)
        kept = self._cache.read() if self._replica.live.generation == 0 else None
        if kept and kept.manifest.version == version:
            return kept
        return ModelFile.fetched(self._models, self._settings.model, version)

    def _propose_challenger(self, asked: Canary) -> None:
        """Propose it if it is here; else go on fetching it."""
        live = self._replica.live
        try:
            file = live.files.get(asked.challenger)
            if file is None:
                if (found := self._fetched(asked.challenger)) is None:
                    return
                file = self._replica.put(found)
            self._replica.propose(live.version, live.file, PreparedCanary(asked=asked, file=file))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the challenger's, and the champion goes on
            self._fail_challenger(asked.challenger, error)

    def _fetched(self, version: str) -> ModelFile | None:
        """A challenger, verified; None while it is on its way. Raises what ``ModelFile.fetched`` does."""
        if self._fetching is None or self._fetching[0] != version:
            model = self._settings.model
            work = aside(lambda: ModelFile.fetched(self._models, model, version), "challenger-fetch")
            self._fetching = version, work
        _, fetch = self._fetching
        if not fetch.done():
            return None
        self._fetching = None
        return fetch.result()

    def _judge(self, proposal: Proposal, reading: Reading | None) -> None:
        """Commit the proposal, give it up, or leave it for the next step."""
        prepared = proposal.prepared
        if reading and reading.error is None and not self._is_wanted(prepared, reading):
            self._replica.withdraw()
            return
        found = self._replica.verdict(proposal)
        if found.committed:
            self._commit(proposal)
        elif found.refusal:
            self._replica.withdraw()
            if prepared.version == self._replica.live.version:
                self._refuse_challenger(prepared.asked.challenger if prepared.asked else None, found.refusal)
            else:
                self._refuse(prepared.version, found.refusal)

    def _is_wanted(self, prepared: Prepared, reading: Reading) -> bool:
        """Whether the proposal is what the alias says, or the end of a canary on the way to that."""
        if prepared.canary is None and prepared.version == self._replica.live.version:
            return prepared.version == reading.version or not self._champions.may_try(reading.version)
        return prepared.version == reading.version and prepared.asked in (None, reading.canary)

    def _commit(self, proposal: Proposal) -> None:
        self._replica.commit(proposal.prepared)
        if proposal.prepared.version is None:
            self._cache.forget()
        elif proposal.keep:
            self._cache.keep(proposal.keep)

    def _drop_deadly(self) -> None:
        """Take away the challenger with which processes die: how would they be counted whom it answered?"""
        asked, deaths = self._replica.live.asked, self._replica.deaths()
        if asked:
            self._refuse_challenger(asked.challenger, f"{deaths} processes ended while it answered.")
            self._follow_canary(asked)

    def _fail(self, version: str | None, error: Exception) -> None:
        """Say what is wrong; ``version`` is what was to go live, if that much is known."""
        if isinstance(error, StoreUnavailable):  # which says nothing against the version
            if version is not None:
                self._champions.unanswered(version)
            self._replica.complain("error", None, reason(error))
        elif version is None:
            self._replica.complain("error", None, reason(error))
        else:
            self._refuse(version, reason(error))

    def _fail_challenger(self, version: str, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            self._challengers.unanswered(version)
            self._replica.complain("canary_error", None, reason(error))
        else:
            self._refuse_challenger(version, reason(error))

    def _refuse(self, version: str | None, why: str) -> None:
        """The version cannot go live; it is tried again later, and then ever later."""
        self._champions.refused(version)
        self._replica.refuse("error", version, why)

    def _refuse_challenger(self, version: str | None, why: str) -> None:
        """It gets no requests; it is tried again as a champion would be. None: it could not even be taken away."""
        if version is not None:
            self._challengers.refused(version)
        self._replica.refuse("canary_error", version, why)


def _is_told(reading: Reading | None) -> bool:
    """Whether the store answered: what it said of the alias counts, be it that there is none."""
    return reading is not None and not isinstance(reading.error, StoreError)
