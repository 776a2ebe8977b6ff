"""What a connection may cost: uvicorn's HTTP protocol, with the bounds on time and memory that it does not have.

- **One look a second**, at all connections, in place of a timer for each request: a client that is too slow is given up
  on a second later at the most, and a request that comes at once pays a microsecond.
- **Slow clients**: a head has ``HEAD_S``, from its first byte or from the connection's first moment; a body has to
  bring ``RATE_BYTES`` in each ``RATE_S``, and the whole request has ``REQUEST_S``. Who reads an answer more slowly than
  that is cut off.
- **Memory**: a head has ``HEAD_BYTES`` and ``HEADERS``, trailers among them; a process has so many connections, and so
  many request bytes that are not answered yet. Where three quarters of the connections are taken, idle ones are closed
  after ``CROWDED_IDLE_S``.
- **What is refused here is a problem like any other**, and the client gets to read it: what it still sends is thrown
  away for ``LINGER_S`` before the connection ends. Closing at once would reset it, and the answer would be lost.
- **An offer to speak another protocol is declined by answering in this one** (RFC 9110, 7.8). Java's client makes it
  with every first request; llhttp would take the body for the other protocol's.
- A client that has shut down its side counts as gone: nobody can tell whether it still reads.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.counts import Reason
from serving.problems import problem

HEAD_S: Final = 10.0
RATE_S: Final = 10.0
RATE_BYTES: Final = 10 << 10
REQUEST_S: Final = 300.0
LINGER_S: Final = 3.0
KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than most clients and gateways do, so that they end it, not we."""
CROWDED_IDLE_S: Final = 2.0
HEAD_BYTES: Final = 32 << 10
HEADERS: Final = 100
PIPELINED: Final = 16
"""Requests of one connection that wait while an earlier one is answered."""
FRAMING: Final = 4
"""So many times the largest body a request may take on the wire: tiny chunks, or what follows after a refusal."""
HELD_BODIES: Final = 8
"""So many of the largest bodies a process holds at once."""
TOO_LARGE: Final = f"The head of the request is over the limit of {HEAD_BYTES >> 10} KiB or {HEADERS} headers."


@dataclass(slots=True)
class Limits:
    """What all connections of a process share.

    Attributes:
        body_bytes: largest body of a request.
        connections: most of them at once.
        refused: told the reason of each refusal.
        held: bytes that have come in and are not answered yet.
    """

    body_bytes: int
    connections: int
    refused: Callable[[Reason], None]
    held: int = 0


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, limits: Limits, **given: Any) -> None:
        """``given`` is what uvicorn gives to its own."""
        super().__init__(**given)
        self._limits = limits
        self._received = 0
        self._begun, self._before = time.monotonic(), 0
        self._held = 0
        self._follows = False
        self._state: Literal["idle", "head", "body"] = "head"
        self._left: float | None = None
        self._window: tuple[object, float, int] = (None, 0.0, 0)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections * 5 // 4:
            transport.abort()
        elif len(self.connections) > self._limits.connections:
            self._refuse(503, "This server has as many connections as it may have.", "overload")

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """It has sent something."""
        if self._left is not None:
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        self._held += len(data)
        self._limits.held += len(data)
        self._feed(data)
        if self._state != "idle" and self._left is None:
            self._bound_memory()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._state = "head"
        self._follows = self._before == self._received
        self._begun, self._before = time.monotonic(), self._received

    def on_headers_complete(self) -> None:
        """Its head is there."""
        if len(self.headers) > HEADERS or len(self.pipeline) >= PIPELINED:
            raise _TooMuch
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            raise _Offered
        self.begin()
        self._state = "body"

    def begin(self) -> None:
        """Start to answer."""
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._state = "idle"
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It has been answered."""
        self._release()
        super().on_response_complete()

    def look(self, now: float, *, crowded: bool) -> None:
        """Give up on a client that is too slow; ``now`` is ``time.monotonic()``."""
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            if self._stands_still("answer", now, -unsent):
                self._limits.refused("slow")
                self.transport.abort()
        elif self.transport.is_closing():
            pass  # it ends as soon as the loop comes to it
        elif self._left is not None and now - self._left > LINGER_S:
            self.transport.abort()
        elif self._left is None and self._state != "idle":
            self._look_at_request(now)
        elif self._is_idle and self._stands_still(self._received, now, 0, CROWDED_IDLE_S if crowded else KEEP_ALIVE_S):
            self.transport.close()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _Offered) and not self._follows and b"\r\n\r\n" in data:
                self._decline(data)
            else:
                self._refuse_unreadable(error)
        except httptools.HttpParserUpgrade as error:
            self._refuse_unreadable(error)

    def _decline(self, data: bytes) -> None:
        """Read the request anew, without its offer; ``data`` is what ended its head."""
        head = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        head += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._before = -1  # the same request, not one that follows
        self._feed(b"\r\n".join([*head, b"", data.partition(b"\r\n\r\n")[2]]))

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _look_at_request(self, now: float) -> None:
        if self.flow.read_paused:
            self._window = (None, now, 0)  # it waits for us
        elif self._state == "head":
            if now - self._begun > HEAD_S and not self._received:
                self.transport.close()  # a browser's connection in reserve: nothing was asked
            elif now - self._begun > HEAD_S:
                self._refuse(408, f"The head of the request was not complete after {HEAD_S:.0f} s.", "slow")
        elif now - self._begun > REQUEST_S:
            self._refuse(408, f"The request was not complete after {REQUEST_S:.0f} s.", "slow")
        elif self._stands_still(self._begun, now, self._received):
            self._refuse(408, f"Less than {RATE_BYTES >> 10} KiB of the body came in {RATE_S:.0f} s.", "slow")

    def _stands_still(self, what: object, now: float, count: int, seconds: float = RATE_S) -> bool:
        """Whether it has been at the same thing for so long, and ``count`` has hardly grown in that time."""
        doing, since, before = self._window
        if doing == what and now - since < seconds:
            return False
        self._window = (what, now, count)
        return doing == what and count - before < RATE_BYTES

    def _bound_memory(self) -> None:
        """Refuse what takes too much before it is complete."""
        size, limits = self._received - self._before, self._limits
        if self._is_idle:
            self._release()  # a head, or what follows after a refusal
        if len(self.headers or ()) > HEADERS or (self._state == "head" and size > HEAD_BYTES):
            self._refuse(431, TOO_LARGE, "too_large")
        elif size > FRAMING * limits.body_bytes + HEAD_BYTES:
            self._refuse(413, f"The body is over the limit of {limits.body_bytes >> 20} MiB.", "too_large")
        elif limits.held > HELD_BODIES * limits.body_bytes and not self._is_idle:
            self._refuse(503, "This server holds as many unanswered images as it may.", "overload")

    def _refuse_unreadable(self, error: Exception) -> None:
        if isinstance(error.__context__, _TooMuch):
            self._refuse(431, TOO_LARGE, "too_large")
        elif isinstance(error, httptools.HttpParserCallbackError):
            self._refuse(400, "The request is not HTTP/1.1: its target is not a path.", "invalid")
        else:
            self._refuse(400, f"The request is not HTTP/1.1: {str(error) or 'another protocol'}.", "invalid")

    def _refuse(self, status: int, detail: str, reason: Reason) -> None:
        """Answer, and let the connection end; what was asked before is answered instead."""
        self._limits.refused(reason)
        self._left = time.monotonic()
        cycle = self.cycle
        if self._state != "body" and not self._is_idle:
            cycle.keep_alive = False  # the answer to the request before ends the connection
            return
        if self._state != "body" or not (cycle.response_started or self.pipeline):
            self.transport.write(self._problem(status, detail))
        if not self._is_idle:
            cycle.disconnected = True
            cycle.message_event.set()
        if not self.pipeline:
            self.transport.write_eof()
        self._release()
        self.flow.resume_reading()

    def _problem(self, status: int, detail: str) -> bytes:
        answer = problem(status, detail, {"Connection": "close"})
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = b"".join(b"%s: %s\r\n" % header for header in dict(headers).items())
        return STATUS_LINE[status] + lines + b"\r\n" + bytes(answer.body)

    def _release(self) -> None:
        self._limits.held -= self._held
        self._held = 0


class _TooMuch(Exception):
    """A head of too many headers, or too many requests at once."""


class _Offered(Exception):
    """A request with an offer to speak another protocol."""


def look_at_all(connections: Iterable[object], limits: Limits, now: float) -> None:
    """Give up on clients that are too slow; to be called once a second, with ``time.monotonic()``."""
    found = [each for each in connections if isinstance(each, Connection)]
    crowded = len(found) > limits.connections * 3 // 4
    for each in found:
        each.look(now, crowded=crowded)
