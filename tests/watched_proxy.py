"""A proxy in front of a real S3 endpoint that shows a process's requests, and acts at one of its writes."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from counting_proxy import Passing, Proxy, kind

WRITES = frozenset({"PUT", "DELETE", "POST"})


@dataclass(frozen=True)
class Plan:
    """What to do at a write: its number, whether the store answers it first, and who then says if it goes on."""

    write: int
    at_answer: bool
    act: Callable[[], bool]


class Observer:
    """Sees a process's requests, and acts at the moment that was planned."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.writes = 0
        self._plan: Plan | None = None
        self._lock = threading.Lock()

    def expect(self, plan: Plan | None = None) -> None:
        """A new process comes; what is planned happens once."""
        self.begun.clear()
        self.writes, self._plan = 0, plan

    def witness(self, operation: str, *, answered: bool) -> bool:
        """Whether a request goes on."""
        with self._lock:
            self.begun.set()
            self.writes += operation in WRITES and not answered
            plan = self._plan
            if plan is None or operation not in WRITES or self.writes < plan.write or answered is not plan.at_answer:
                return True
            self._plan = None
        return plan.act()


class WatchedProxy(Proxy):
    """A proxy that asks an observer whether each request goes on."""

    def __init__(self, endpoint: str, observer: Observer) -> None:
        super().__init__(endpoint, Watched)
        self.observer = observer


class Watched(Passing):
    """One connection; it is broken where the observer says so, and where the client was killed while it sent."""

    server: WatchedProxy

    def forward(self) -> None:
        """Pass one request on, if it goes on."""
        operation, _ = kind(self.command, self.path)
        body = self.body()
        whole = len(body) == int(self.headers.get("Content-Length") or 0)
        if whole and self.server.observer.witness(operation, answered=False):
            answer = self.ask(body)
            if self.server.observer.witness(operation, answered=True):
                self.respond(*answer)
                return
        self.close_connection = True
