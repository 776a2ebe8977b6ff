"""One process's part in a swap: load what is proposed, verify and warm it, say so, and answer with what was agreed.

- **A request asks for the lineup once**, which is to read one shared word and look its number up. Between that word
  and the look-up a swap may pass and the old model go: then the word is read again.
- All this happens on a thread of its own; requests go on meanwhile. A challenger is loaded on one more: however long
  that takes, the next champion does not wait for it.
- **A model is loaded once**, however many generations name its version: a share that moves loads nothing, nor does a
  challenger that becomes the champion.
- A process that comes back after the others flipped without it (it hung, or was started again) has no model for the
  generation that answers. Its requests wait until it has loaded that one, and are never answered by an older one. Until
  it has the challenger too, the champion answers for it.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Final

from pipeline.errors import Corrupted
from serving import cores
from serving.agreement import Agreement, Prepared, PreparedCanary, Report
from serving.aside import aside
from serving.board import Board, reason
from serving.canary import NOTHING, Lineup
from serving.live_model import LiveModel
from serving.model_files import Shelf

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
"""How often the board is looked at: a part of how long a swap takes."""
JOIN_S: Final = 10.0
"""How long a request waits in a process that has yet to load the generation that answers."""
AGAIN_S: Final = 1.0
"""Between two tries to load what the others answer with already."""


class Participant:
    """The models that one process of a replica holds."""

    def __init__(self, board: Board, shelf: Shelf, seat: int, pid: int, *, threads: int | None = None) -> None:
        """Nothing is loaded yet.

        Args:
            board: of the replica.
            shelf: where versions lie.
            seat: this process's place on the board, and nobody else's.
            pid: of this process.
            threads: cores that it may use while others compute too; by default its share of them.
        """
        self.seat = seat
        self.board = board
        self.draining = False
        self._shelf = shelf
        self._cores = cores.of_this_machine()
        self._share = threads or cores.share(self._cores, board.seats)
        self._lineups: Mapping[int, Lineup] = {0: NOTHING}
        self._refused: Mapping[int, str] = {}
        self._loading: dict[int, Future[LiveModel]] = {}
        self._again_at = 0.0
        self._report = Report(pid=pid)
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-swap", daemon=True)

    def start(self) -> None:
        """Begin to take part."""
        self._thread.start()

    def stop(self) -> None:
        """Cease to; what is loaded stays so."""
        self._stopping.set()

    def live(self) -> LiveModel | None:
        """The champion that answers at this moment; None where none does. May wait, so not for the event loop."""
        return self.lineup().champion

    def live_now(self) -> LiveModel | None:
        """The same without waiting: None also where this process has yet to load it."""
        return self._lineups.get(self.board.generation, NOTHING).champion

    def lineup(self) -> Lineup:
        """The champion and its challenger at this moment. May wait, so not for the event loop."""
        try:
            return self._lineups[self.board.generation]
        except KeyError:
            return self._awaited()

    def lineup_now(self) -> Lineup | None:
        """The same without waiting: None where this process has yet to load it."""
        return self._lineups.get(self.board.generation)

    @property
    def has_joined(self) -> bool:
        """Whether this process can answer as the others do."""
        return self.board.generation in self._lineups

    def drain(self) -> None:
        """This process will end: it is not ready from now on, and the others hear of it with the next look."""
        self.draining = True

    def step(self) -> None:
        """Load what the board names and this process lacks, forget what it names no more."""
        agreement = self.board.agreement()
        for wanted in (agreement.live, agreement.proposed):
            if wanted and not self._has(wanted) and self._may_try(wanted, agreement):
                self._prepare(wanted, is_live=wanted == agreement.live)
        self._forget(agreement)
        self._say()

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            try:
                self.step()
            except Exception:  # a thread that ends in silence would leave this process behind for good
                log.exception("the next model could not be looked at")

    def _may_try(self, wanted: Prepared, agreement: Agreement) -> bool:
        """A proposal is judged once; what the others answer with already is tried until this process has it too."""
        again = wanted == agreement.live and time.monotonic() >= self._again_at
        return again or wanted.generation not in self._refused

    def _has(self, wanted: Prepared) -> bool:
        held = self._lineups.get(wanted.generation)
        return held is not None and (wanted.canary is None or held.challenger is not None)

    def _prepare(self, wanted: Prepared, *, is_live: bool) -> None:
        """Load what ``wanted`` names. With what all answer with, the champion need not wait for its challenger."""
        try:
            champion = self._champion(wanted)
            if is_live and wanted.generation not in self._lineups:
                self._hold(wanted.generation, Lineup(champion))
            if wanted.canary is None:
                self._hold(wanted.generation, Lineup(champion))
            elif challenger := self._challenger(wanted.generation, wanted.canary):
                asked = wanted.canary.asked
                self._hold(wanted.generation, Lineup(champion, challenger, asked.share, asked.mode, asked.step))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this version's, and the old one goes on
            # A shelf that was filled anew meanwhile says nothing against the version; the next look tells.
            if wanted in (self.board.agreement().live, self.board.agreement().proposed):
                self._refused = {**self._refused, wanted.generation: reason(error)}
                self._again_at = time.monotonic() + AGAIN_S

    def _hold(self, generation: int, lineup: Lineup) -> None:
        with self._changed:
            self._lineups = {**self._lineups, generation: lineup}
            self._changed.notify_all()

    def _champion(self, wanted: Prepared) -> LiveModel | None:
        if wanted.version is None or wanted.file is None:
            return None
        return self._held(wanted.version) or self._loaded(wanted.version, wanted.file)

    def _challenger(self, generation: int, canary: PreparedCanary) -> LiveModel | None:
        """The challenger; None while it is being loaded."""
        version, file = canary.asked.challenger, canary.file
        if held := self._held(version):
            return held
        if generation not in self._loading:
            self._loading[generation] = aside(lambda: self._loaded(version, file), "challenger-load")
        return self._loading.pop(generation).result() if self._loading[generation].done() else None

    def _loaded(self, version: str, file: int) -> LiveModel:
        try:
            found = self._shelf.read(file)
        except Corrupted as error:
            raise Corrupted(f"Version {version} changed in this server's memory: {error}.") from error
        if found.manifest.version != version:
            raise Corrupted(f"Version {version} gave way to another one in this server's memory.")
        return LiveModel.loaded(found.manifest, found.onnx, self._share, self._cores)

    def _held(self, version: str) -> LiveModel | None:
        """A version that some generation brought here already."""
        return next((model for model in self._models() if model.manifest.version == version), None)

    def _models(self) -> Iterator[LiveModel]:
        for lineup in self._lineups.values():
            yield from (model for model in (lineup.champion, lineup.challenger) if model)

    def _forget(self, agreement: Agreement) -> None:
        named = {self.board.generation, agreement.live.generation}
        named |= {agreement.proposed.generation} if agreement.proposed else set()
        if not named >= self._lineups.keys():
            self._lineups = {number: lineup for number, lineup in self._lineups.items() if number in named}
        if not named >= self._refused.keys():
            self._refused = {number: why for number, why in self._refused.items() if number in named}
        for number in self._loading.keys() - named:
            del self._loading[number]

    def _say(self) -> None:
        lineups = self._lineups.items()
        report = Report(
            pid=self._report.pid,
            held={number: _version(lineup.champion) for number, lineup in lineups},
            challengers={number: each.manifest.version for number, lineup in lineups if (each := lineup.challenger)},
            refused=self._refused,
            draining=self.draining,
        )
        if report != self._report:
            self.board.say(self.seat, report)
            self._report = report

    def _awaited(self) -> Lineup:
        deadline = time.monotonic() + JOIN_S
        with self._changed:
            while not self.has_joined and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        return self.lineup_now() or NOTHING


def _version(model: LiveModel | None) -> str | None:
    return model.manifest.version if model else None
