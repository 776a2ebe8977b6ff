"""A proxy in front of a real S3 endpoint that goes wrong on demand, as networks and servers do."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from counting_proxy import Passing, Proxy, kind, listening


class FaultyProxy(Proxy):
    """Passes on, but for the requests that are waited for with a fault."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, Faulty)
        self.over = threading.Event()
        self.happened: list[str] = []
        self._coming: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()

    def expect(self, operation: str, *faults: "Fault | None") -> None:
        """Let the next requests of an operation (``GET``, ``LIST``, …) each meet its fault; None lets one through."""
        with self._lock:
            self._coming.setdefault(operation, []).extend(fault or Faulty.pass_on for fault in faults)

    def fault_of(self, operation: str) -> "Fault":
        """What the request that has just come meets."""
        with self._lock:
            coming = self._coming.get(operation)
            fault = coming.pop(0) if coming else Faulty.pass_on
            if fault is not Faulty.pass_on:
                self.happened.append(operation)
            return fault


class Faulty(Passing):
    """One connection of a client; each of its requests may meet a fault."""

    server: FaultyProxy

    def forward(self) -> None:
        """Meet the fault, or pass on."""
        self.server.fault_of(kind(self.command, self.path)[0])(self)

    def pass_on(self) -> None:
        """Nothing goes wrong."""
        super().forward()

    def unheard(self) -> None:
        """The connection breaks before the store hears of the request."""
        self.close_connection = True

    def unanswered(self) -> None:
        """The store does what it is asked for, and its answer is lost."""
        self.ask(self.body())
        self.close_connection = True

    def broken_off(self) -> None:
        """The connection breaks in the middle of the answer's body."""
        status, headers, data = self.ask(self.body())
        self.respond(status, headers, data[: len(data) // 2], length=len(data))
        self.close_connection = True

    def too_long(self) -> None:
        """The answer's announced length is more than comes."""
        status, headers, data = self.ask(self.body())
        self.respond(status, headers, data, length=len(data) + 10)
        self.close_connection = True

    def too_short(self) -> None:
        """The answer's announced length is less than its body's."""
        status, headers, data = self.ask(self.body())
        self.respond(status, headers, data, length=len(data) // 2)
        self.close_connection = True

    def silent(self) -> None:
        """The store does what it is asked for, but nothing comes back until the proxy ends."""
        self.ask(self.body())
        self.server.over.wait()
        self.close_connection = True


Fault = Callable[[Faulty], None]


def refusing(status: int, code: str) -> Fault:
    """The store refuses, as S3 does."""

    def refuse(connection: Faulty) -> None:
        connection.body()
        reason = f"<Error><Code>{code}</Code></Error>".encode()
        connection.respond(status, [], b"" if connection.command == "HEAD" else reason)

    return refuse


def repeating() -> Fault:
    """The store answers with what it answered first, whatever is asked."""
    first: list[tuple[int, list[tuple[str, str]], bytes]] = []

    def repeat(connection: Faulty) -> None:
        body = connection.body()
        if not first:
            first.append(connection.ask(body))
        connection.respond(*first[0])

    return repeat


@contextmanager
def faulty(endpoint: str) -> Iterator[FaultyProxy]:
    """A proxy of that kind in front of ``endpoint``."""
    proxy = FaultyProxy(endpoint)
    with listening(proxy):
        try:
            yield proxy
        finally:
            proxy.over.set()
