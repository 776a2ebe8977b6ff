"""What the alias says, looked at by a thread of its own: whoever reads it never waits for the store.

- A look is one HEAD while nothing changes: every state of an alias has other bytes, so its etag tells. Only one process
  of a replica looks.
- The store's own patience is switched off: the next look is the retry. A store that accepts connections and never
  answers counts as away after ``SILENT_S``, and is asked again long before that request gives up.
"""

import threading
from dataclasses import dataclass

from pipeline import aliases
from pipeline.aliases import Canary
from pipeline.errors import NotFound, StoreUnavailable
from pipeline.store import Store
from serving.settings import ServingSettings

SILENT_S = 4.0
"""After which a store that has not answered a look counts as away."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a look brought: the version that should be live (None for none) and its challenger, or why nobody knows."""

    version: str | None = None
    canary: Canary | None = None
    error: Exception | None = None


Look = tuple[Reading, str | None]
"""What a look brought, and the etag by which the next one sees that nothing changed."""


class AliasWatch:
    """Looks at one model's alias; one that is pinned to a version always says that one."""

    def __init__(self, models: Store, settings: ServingSettings, *, silent_s: float = SILENT_S) -> None:
        """Nothing is read yet; ``models`` is the models zone, best opened without patience."""
        self._silent_s = silent_s
        self._models = models
        self._settings = settings
        self._etag: str | None = None
        self._reading = Reading(settings.version) if settings.version else None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alias-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if not self._settings.version:
            self._thread.start()

    def stop(self) -> None:
        """Cease to look; a look under way is not waited for."""
        self._stopping.set()

    def latest(self) -> Reading | None:
        """What the last look brought; None before the first."""
        return self._reading

    def look(self) -> None:
        """Look once, however long it takes."""
        if not self._settings.version:
            self._note(self._looked())

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._look_briefly()
            self._stopping.wait(self._settings.poll_s)

    def _look_briefly(self) -> None:
        """Look once, and give up on the answer of a store that is silent; its request ends by itself some time."""
        found: list[Look] = []
        # A daemon, as the watch itself: a store that never answers must not keep the process from ending.
        look = threading.Thread(target=lambda: found.append(self._looked()), name="alias-look", daemon=True)
        look.start()
        look.join(self._silent_s)
        if found:
            self._note(found[0])
        else:
            where = self._models.url
            silent = StoreUnavailable(f"{where}: the store has not answered for {self._silent_s:.0f} s.")
            self._note((Reading(error=silent), None))

    def _note(self, look: Look) -> None:
        self._reading, self._etag = look

    def _looked(self) -> Look:
        try:
            return self._read()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look comes
            return Reading(error=error), None

    def _read(self) -> Look:
        model, alias = self._settings.model, self._settings.alias
        reading, etag = self._reading, self._etag
        if reading and etag and aliases.etag_of(self._models, model, alias) == etag:
            return reading, etag
        found = aliases.read_alias(self._models, model, alias)
        if found is None:
            raise NotFound(f"Model {model!r} has no alias {alias!r} yet.")
        state, etag = found
        return Reading(state.version, state.canary), etag
