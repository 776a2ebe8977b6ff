"""The short way: an image as the plain body of ``POST /predict``, answered without ASGI or FastAPI in between.

- It is uvicorn's own protocol for a connection, in which a plain request does not become a task: its body goes to the
  predictor as soon as it is there, and the answer is written when it is ready. It costs half of what the way through
  ASGI costs, and answers with the same bytes.
- **Whatever is not plain takes the long way**: forms, large or compressed bodies, bodies of unknown length, clients
  that ask before they send, and a request that came before the one ahead of it was answered.
- **Whom we could not answer in time, and who asks again at once, waits a moment** before its next request is read: else
  a storm of refusals would take the time that answers need. As long as the server is busy, it
  is refused again. Connections that a proxy shares among clients are spared.
"""

from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from pipeline.errors import InvalidInput, SafelightError
from serving.api_keys import ApiKeys
from serving.batch import Outcome
from serving.calls import Call, Headers, call_of, now
from serving.connections import Connection, Limits
from serving.counts import Counts
from serving.encode import json_of
from serving.errors import Overloaded, Unauthorized
from serving.front import PREDICT, marks_of
from serving.live_model import Answers
from serving.predictor import Predictor
from serving.problems import problem_of, unforeseen
from serving.uploads import Upload

URL: Final = PREDICT.encode()
LARGEST: Final = 256 << 10
"""Bytes of a body that is collected without slowing its sender down."""
NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"})
PROXIED: Final = frozenset({b"via", b"forwarded", b"x-forwarded-for"})
JSON: Final = (b"content-type", b"application/json")
PAUSE_S: Final = 0.4
"""For who was refused; well below what it was told to wait for."""
AT_ONCE_S: Final = 0.05
"""So soon after a pause, a request was sent before its end."""


class Express(Connection):
    """uvicorn's protocol, with a short way."""

    def __init__(
        self,
        predictor: Predictor,
        counts: Counts,
        keys: ApiKeys,
        limits: Limits,
        not_plain: frozenset[bytes] = NOT_PLAIN,
        **given: Any,
    ) -> None:
        """``not_plain`` are headers for the long way; ``given`` is what uvicorn gives to its protocols."""
        super().__init__(limits, **given)
        self.predictor = predictor
        self.counts = counts
        self.keys = keys
        self._not_plain = not_plain
        self._plain_one: Plain | None = None
        self._unread_since: float | None = None
        self._resumed = 0.0

    def begin(self) -> None:
        """Take the short way, where it can be taken."""
        self._plain_one = self._plain()
        if self._plain_one:
            self.cycle = self._plain_one  # type: ignore[assignment]
        else:
            super().begin()

    def on_body(self, body: bytes) -> None:
        """Collect it."""
        if self._plain_one:
            self._plain_one.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Ask the predictor."""
        super().on_message_complete()
        if self._plain_one:
            self.predictor.submit(self._plain_one.call, [Upload("", bytes(self._plain_one.body))], self._plain_one.done)

    def answer(self, plain: "Plain", status: int, headers: Headers, body: bytes) -> None:
        """Write an answer, and get ready for the next request."""
        lines = [*self.server_state.default_headers, *headers, *marks_of(plain.call)]
        closes = not plain.keep_alive or (b"connection", b"close") in lines
        if not plain.keep_alive:
            lines.append((b"connection", b"close"))
        head = b"".join([b"%s: %s\r\n" % line for line in lines])
        self.transport.write(b"%s%scontent-length: %d\r\n\r\n%s" % (STATUS_LINE[status], head, len(body), body))
        plain.response_complete = True
        self.counts.answered("predict", status, now() - plain.call.begun)
        if closes:
            self.transport.close()
        self.on_response_complete()

    def pause(self) -> None:
        """Read nothing for a moment."""
        self.flow.pause_reading()
        self._unread_since = now()
        self.loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._resumed = now()

    def _call(self) -> Call:
        """Of the request that is being read; one that is there just after a pause was sent before its end."""
        begun, since = now(), self._unread_since
        self._unread_since = None
        early = since is not None and begun - self._resumed < AT_ONCE_S
        call = call_of(self.headers, begun, self.transport.is_closing, self.keys.caller(self.headers))
        if since is not None and early:
            call.begun, call.early = since, True
        return call

    def _plain(self) -> "Plain | None":
        if self.url != URL or self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        if self.flow.write_paused or not (self.cycle is None or self.cycle.response_complete):
            return None
        proxied, length = False, b""
        for name, value in self.headers:
            if name in self._not_plain or (name == b"content-type" and value[:10].lower() == b"multipart/"):
                return None
            if name == b"content-length":
                length = value
            proxied = proxied or name in PROXIED
        if not length.isdigit() or not 0 < int(length) <= LARGEST:
            return None
        try:
            call = self._call()
        except (InvalidInput, Unauthorized):
            return None
        return Plain(self, call, keep_alive=self.parser.should_keep_alive(), patient=not proxied)


class Plain:
    """A plain request and its answer; to uvicorn's protocol, what its own ``RequestResponseCycle`` is."""

    __slots__ = (
        *("_patient", "_protocol", "body", "call"),
        *(
            "disconnected",
            "keep_alive",
            "message_event",
            "more_body",
            "response_complete",
            "response_started",
        ),  # as uvicorn has them
    )

    def __init__(self, protocol: Express, call: Call, *, keep_alive: bool, patient: bool) -> None:
        """Nothing of the body is there; ``patient``: the client may be made to wait after a refusal."""
        self._protocol = protocol
        self._patient = patient
        self.call = call
        self.body = bytearray()
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_complete = False
        self.response_started = False
        self.disconnected = False
        self.message_event = _NO_TASK

    def done(self, outcome: Outcome) -> None:
        """Answer."""
        protocol = self._protocol
        if protocol.transport.is_closing():
            protocol.counts.answered("predict", 499, now() - self.call.begun)
            return
        if isinstance(outcome, Answers):
            protocol.answer(self, 200, [JSON], json_of(outcome, self.call.request_id))
            return
        response = problem_of(outcome) if isinstance(outcome, SafelightError) else unforeseen()
        headers = [line for line in response.raw_headers if line[0] != b"content-length"]
        protocol.answer(self, response.status_code, headers, bytes(response.body))
        if isinstance(outcome, Overloaded) and self._patient:
            protocol.pause()


class _NoTask:
    """In place of the event by which uvicorn wakes the task of a request."""

    def set(self) -> None:
        """There is none."""


_NO_TASK: Final = _NoTask()
