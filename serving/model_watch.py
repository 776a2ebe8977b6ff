"""The model that answers, kept what the alias says: look, load, verify, warm up, and only then swap one reference.

- One thread of its own looks at the alias every ``poll_s`` seconds. Requests never wait for it, nor for the store.
- **Whatever fails, the model that answered before goes on answering**, and ``status`` says why the new one does not.
  A version that does not load is tried again ever more rarely, since each try downloads it; a store that does not
  answer is asked again at the next look.
- An alias that points at nothing (the first version was taken back) does take the model away. An alias that is not
  there at all, after it was, does not: that is an accident of the store and nobody's decision.
- The store's own patience is switched off: the next look is the retry. While a store is silent (frozen, not gone), it
  is ``patience`` that says so in the log, and what is live goes on answering.
"""

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Final

from pipeline import aliases, registry
from pipeline.artifacts import utc_now
from pipeline.errors import NotFound, SafelightError, StoreUnavailable
from pipeline.onnx_model import OnnxModel
from pipeline.store import Store
from serving.predictor import LiveModel, warm_up
from serving.schemas import SwapError
from serving.settings import ServingSettings

log = logging.getLogger(__name__)

MODEL_FILE: Final = "model.onnx"
LONGEST_WAIT_S = 60.0
"""Between two tries of a version that does not load."""
STOP_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class WatchState:
    """What answers, and why nothing newer does; replaced as a whole, so that every reader sees a consistent one."""

    live: LiveModel | None = None
    error: SwapError | None = None


class ModelWatch:
    """Follows one model's alias, or loads one pinned version."""

    def __init__(self, models: Store, settings: ServingSettings) -> None:
        """Nothing is read yet; ``models`` is the models zone, best opened without patience."""
        self.state = WatchState()
        self._models = models
        self._settings = settings
        self._failures = 0
        self._retry_at = 0.0
        self._failed: str | None = None
        self._stopping = threading.Event()
        # A daemon: a store that accepts connections and never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="model-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Cease to look; what is live stays so."""
        self._stopping.set()
        self._thread.join(STOP_PATIENCE_S)

    def look(self) -> None:
        """Look at the alias once, and follow it."""
        wanted: str | None = None
        try:
            wanted = self._wanted()
            if self._is_live(wanted):
                self._settle(self.state.live)
            elif time.monotonic() >= self._retry_at or wanted != self._failed:
                self._settle(self._loaded(wanted) if wanted else None)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old model must stay and the watch go on
            self._fail(wanted, error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(self._settings.poll_s)

    def _wanted(self) -> str | None:
        """The version that should be live; None for none.

        Raises:
            NotFound: there is no such alias (yet).
        """
        if self._settings.version is not None:
            return self._settings.version
        found = aliases.read_alias(self._models, self._settings.model, self._settings.alias)
        if found is None:
            raise NotFound(f"Model {self._settings.model!r} has no alias {self._settings.alias!r} yet.")
        return found[0].version

    def _is_live(self, wanted: str | None) -> bool:
        live = self.state.live
        return (live.manifest.version if live else None) == wanted

    def _loaded(self, version: str) -> LiveModel:
        """The version, read, verified, and warm."""
        manifest = registry.read_manifest(self._models, self._settings.model, version)
        model = OnnxModel(registry.load_file(self._models, manifest, MODEL_FILE))
        warm_up(model, manifest.pixels, len(manifest.classes))
        return LiveModel(manifest, model, utc_now())

    def _settle(self, live: LiveModel | None) -> None:
        before = self.state
        self.state = WatchState(live)
        self._failures, self._retry_at, self._failed = 0, 0.0, None
        if live is not before.live:
            log.info(
                "%s %s", self._settings.model, f"is at version {live.manifest.version}" if live else "is withdrawn"
            )
        elif before.error:
            log.info("%s: all is well again", self._settings.model)

    def _fail(self, version: str | None, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            version = None  # a store that is away says nothing against the version
        else:
            self._failures += 1
            self._failed = version
            wait = min(LONGEST_WAIT_S, self._settings.poll_s * 2**self._failures)
            self._retry_at = time.monotonic() + wait
        seen = self.state.error
        reason = str(error) if isinstance(error, SafelightError) else f"{type(error).__name__}: {error}"
        if seen and (seen.version, seen.reason) == (version, reason):
            return
        log.warning("%s: %s", self._settings.model, reason)
        self.state = replace(self.state, error=SwapError(version=version, reason=reason, at=utc_now()))
