"""Waiting for an object store that is away: for a bounded time, and never without a word.

- **One rule.** What finds the store away is repeated until ``seconds`` after it began; nothing above repeats it again.
  A request that is under way then still has its own timeout (``store.REQUEST_TIMEOUT``): that is the whole bound.
- **The patience is an outage's, not a request's.** All requests to one store share one ``Patience``. Who asks when it
  is used up is told at once: what closes after a failure (a lease to release, say) must not wait all over again.
- **A store that is frozen refuses nothing**: the request itself hangs and can say nothing. A thread, which lives only
  while there are requests, says every ``SAY_EVERY_S`` what is waited for, and since when.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from pipeline.errors import StoreError, StoreUnavailable

R = TypeVar("R")

log = logging.getLogger(__name__)

SAY_EVERY_S = 5.0
LOOK_EVERY_S = 1.0
IDLE_S = 10.0
"""How long the watching thread stays when there is nothing to watch."""
PAUSE = wait_exponential_jitter(multiplier=0.1, max=3.0, jitter=0.5)
"""Longer and longer, and never the same for two who failed together."""
BREATH_S = 5.0
"""For so long after a failure nobody asks again a store whose outage was given up."""


class Patience:
    """The patience with one object store. Safe to share between threads."""

    def __init__(self, seconds: float, store: str) -> None:
        """Nothing is started yet.

        Args:
            seconds: how long an absent store is asked again; 0: never, the caller has a rule of its own.
            store: what to call it.
        """
        self._seconds = seconds
        self._store = store
        self._under_way: dict[object, tuple[float, str]] = {}
        self._answered = time.monotonic()
        self._away_since: float | None = None
        self._failed = 0.0
        self._said = 0.0
        self._silent_since: float | None = None
        self._lock = threading.Lock()
        self._watch: threading.Thread | None = None

    def __call__(self, request: Callable[[], R], what: str) -> R:
        """What ``request`` returns, repeated while it raises ``StoreUnavailable``.

        Args:
            request: one request to the store, which ends by itself.
            what: it asks for; begins the sentences that say that it waits.

        Raises:
            StoreUnavailable: the store stayed away.
        """
        began = time.monotonic()
        mark = object()
        self._under_way[mark] = began, what
        if self._watch is None:
            self._begin_to_watch()
        try:
            return self._repeated(request, what, began)
        finally:
            del self._under_way[mark]

    def _repeated(self, request: Callable[[], R], what: str, began: float) -> R:
        if self._is_given_up(began):
            raise self._sentence(what, began)
        try:  # the usual case, at no cost
            return self._asked(request)
        except StoreUnavailable:
            if not self._seconds:
                raise
        again = Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=lambda attempt: min(PAUSE(attempt), max(0.0, self._left(began))),
            stop=lambda _: self._left(began) <= 0,
            retry_error_callback=partial(self._give_up, began),
        )
        answer: R = again(self._asked, request)
        return answer

    def _asked(self, request: Callable[[], R]) -> R:
        """What one attempt brought; its outcome is noted."""
        asked = time.monotonic()
        try:
            answer = request()
        except StoreUnavailable as error:
            self._note_failure(asked, error)
            raise
        except StoreError:  # a refusal is an answer
            self._note_answer()
            raise
        self._note_answer()
        return answer

    def _left(self, began: float) -> float:
        """Seconds for which a request that began then is repeated: its own, or the outage's if that is older."""
        return self._seconds - (time.monotonic() - self._since(began))

    def _since(self, began: float) -> float:
        away_since = self._away_since
        return began if away_since is None else min(began, away_since)

    def _give_up(self, began: float, attempt: RetryCallState) -> NoReturn:
        error = attempt.outcome.exception() if attempt.outcome else None
        raise self._sentence(str(error), began) from error

    def _is_given_up(self, now: float) -> bool:
        """Whether the store was away for longer than it is waited for, up to this moment."""
        since, failed = self._away_since, self._failed
        return since is not None and failed - since >= self._seconds > 0 and now - failed < BREATH_S

    def _note_failure(self, asked: float, error: StoreUnavailable) -> None:
        with self._lock:
            now = time.monotonic()
            # Unasked for a long time, the store may have been back meanwhile.
            if self._away_since is None or asked - self._failed > max(self._seconds, BREATH_S):
                self._away_since = asked
            self._failed = now
            if self._seconds and now - self._said >= SAY_EVERY_S:
                self._say(self._away_since, "%s Asked again until %.0f s are over.", error, self._seconds)

    def _note_answer(self) -> None:
        self._answered = time.monotonic()
        if self._away_since is None and self._silent_since is None:
            return
        with self._lock:
            since, self._away_since, self._silent_since = self._silent_since, None, None
        if since is not None:
            log.warning("%s answers again, after %.0f s.", self._store, self._answered - since)

    def _say(self, since: float, text: str, *parts: object) -> None:
        """A line in the log; the store counts as silent from then on."""
        self._said = time.monotonic()
        self._silent_since = since if self._silent_since is None else min(since, self._silent_since)
        log.warning(text, *parts)

    def _sentence(self, what: str, began: float) -> StoreUnavailable:
        seconds = time.monotonic() - self._since(began)
        return StoreUnavailable(
            f"{what.rstrip('.')}: {self._store} has not answered for {seconds:.0f} s; see that it is "
            "running and can be reached, then repeat the command, which goes on from what is stored."
        )

    def _begin_to_watch(self) -> None:
        with self._lock:
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name=f"patience with {self._store}", daemon=True)
                self._watch.start()

    def _look(self) -> None:
        busy = time.monotonic()
        while True:
            time.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            waiting = list(self._under_way.copy().values())
            if waiting:
                busy = now
                self._say_who_waits(now, waiting)
            elif now - busy > IDLE_S and self._leave():
                return

    def _leave(self) -> bool:
        """Whether the watching thread may end; a request that begins just now either sees it or is seen."""
        with self._lock:
            watch, self._watch = self._watch, None
            if self._under_way:
                self._watch = watch
            return self._watch is None

    def _say_who_waits(self, now: float, waiting: list[tuple[float, str]]) -> None:
        began, what = min(waiting)
        since = max(began, self._answered)
        with self._lock:
            if now - max(since, self._said) < SAY_EVERY_S:
                return
            others = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            limit = f"; given up after {self._seconds:.0f} s" if self._seconds else ""
            self._say(since, "%s%s: %s has not answered for %.0f s%s.", what, others, self._store, now - since, limit)
