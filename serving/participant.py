"""One process's part in a swap: load what is proposed, verify and warm it, say so, and answer with what was agreed.

- **A request asks for the live model once**, which is to read one shared word and look its number up. Between that word
  and the look-up a swap may pass and the old model go: then the word is read again.
- All this happens on a thread of its own; requests go on meanwhile.
- A process that comes back after the others flipped without it (it hung, or was started again) has no model for the
  generation that answers. Its requests wait until it has loaded that one, and are never answered by an older one.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Final

from pipeline.errors import Corrupted
from serving import cores
from serving.board import Agreement, Board, Prepared, Report, reason
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
        self._models: Mapping[int, LiveModel | None] = {0: None}
        self._refused: Mapping[int, str] = {}
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
        """The model that answers at this moment; None where none does. May wait, so not for the event loop."""
        try:
            return self._models[self.board.generation]
        except KeyError:
            return self._awaited()

    def live_now(self) -> LiveModel | None:
        """The same without waiting: None also where this process has yet to load it."""
        return self._models.get(self.board.generation)

    @property
    def has_joined(self) -> bool:
        """Whether this process can answer as the others do."""
        return self.board.generation in self._models

    def drain(self) -> None:
        """This process will end: it is not ready from now on, and the others hear of it with the next look."""
        self.draining = True

    def step(self) -> None:
        """Load what the board names and this process lacks, forget what it names no more."""
        agreement = self.board.agreement()
        for wanted in (agreement.live, agreement.proposed):
            if wanted and wanted.generation not in self._models and self._may_try(wanted, agreement):
                self._prepare(wanted)
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

    def _prepare(self, wanted: Prepared) -> None:
        try:
            model = self._loaded(wanted)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this version's, and the old one goes on
            # A shelf that was filled anew meanwhile says nothing against the version; the next look tells.
            if wanted in (self.board.agreement().live, self.board.agreement().proposed):
                self._refused = {**self._refused, wanted.generation: reason(error)}
                self._again_at = time.monotonic() + AGAIN_S
            return
        with self._changed:
            self._models = {**self._models, wanted.generation: model}
            self._changed.notify_all()

    def _loaded(self, wanted: Prepared) -> LiveModel | None:
        if wanted.version is None or wanted.file is None:
            return None
        try:
            found = self._shelf.read(wanted.file)
        except Corrupted as error:
            raise Corrupted(f"Version {wanted.version} changed in this server's memory: {error}.") from error
        manifest = found.manifest
        if manifest.version != wanted.version:
            raise Corrupted(f"Version {wanted.version} gave way to another one in this server's memory.")
        return LiveModel.loaded(manifest, found.onnx, self._share, self._cores)

    def _forget(self, agreement: Agreement) -> None:
        named = {self.board.generation, agreement.live.generation}
        named |= {agreement.proposed.generation} if agreement.proposed else set()
        if not named >= self._models.keys():
            self._models = {number: model for number, model in self._models.items() if number in named}
        if not named >= self._refused.keys():
            self._refused = {number: why for number, why in self._refused.items() if number in named}

    def _say(self) -> None:
        held = {number: model.manifest.version if model else None for number, model in self._models.items()}
        report = Report(pid=self._report.pid, held=held, refused=self._refused, draining=self.draining)
        if report != self._report:
            self.board.say(self.seat, report)
            self._report = report

    def _awaited(self) -> LiveModel | None:
        deadline = time.monotonic() + JOIN_S
        with self._changed:
            while not self.has_joined and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        return self.live_now()
