"""One request for predictions: who asks, under which id, and until when an answer is of use.

- **Request id**: the client's ``X-Request-Id``, else the trace id of W3C's ``traceparent``, else a random one. Whatever
  would not be safe in a log or a header is not taken over.
- **Deadline**: ``X-Request-Timeout-Ms``, or what Envoy tells the servers behind it; counted from the first byte on.
- **Caller**: whom a canary sticks to: ``X-Caller-Key``, else who the API key belongs to, else the request.
"""

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import InvalidInput

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: lower-case names."""

SAFE_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
TRACE: Final = re.compile(rb"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")
NO_TRACE: Final = b"0" * 32
MILLISECONDS: Final = re.compile(rb"[0-9]{1,9}")
TIMEOUTS: Final = frozenset({b"x-request-timeout-ms", b"x-envoy-expected-rq-timeout-ms"})
SPAN: Final = random.Random()  # noqa: S311 - names spans, keeps no secret


@dataclass(slots=True)
class Call:
    """One request.

    Attributes:
        request_id: goes back with the answer, and into the prediction log.
        caller: whom a canary sticks to.
        begun: when it arrived, by ``time.perf_counter``.
        gone: whether the client has left.
        deadline: by ``time.perf_counter``; None where the client waits for as long as it takes.
        traceparent: of this server's part in the client's trace; None where there is no trace.
        version: the live one, by its name, where the client wants no other: then no challenger answers.
        early: the client had just been told to come again later.
    """

    request_id: str
    caller: str
    begun: float
    gone: Callable[[], bool]
    deadline: float | None = None
    traceparent: str | None = None
    version: str | None = None
    early: bool = False

    def is_late(self, now: float) -> bool:
        """Whether nobody wants the answer any more."""
        return self.deadline is not None and now >= self.deadline


def never() -> bool:
    """Of a client of whom nobody can tell whether it has left."""
    return False


def call_of(headers: Headers, begun: float, gone: Callable[[], bool] = never, key: str | None = None) -> Call:
    """The call that these headers begin; ``key`` is the name of the API key that it came with.

    Raises:
        InvalidInput: the deadline is not a number.
    """
    request_id = caller = trace = None
    timeouts = []
    for name, value in headers:
        if name == b"x-request-id" and SAFE_ID.fullmatch(value):
            request_id = value.decode()
        elif name == b"traceparent":
            trace = _trace(value)
        elif name == b"x-caller-key" and value:
            caller = value.decode("latin-1")
        elif name in TIMEOUTS:
            timeouts.append(_seconds(name, value))
    request_id = request_id or (trace[0] if trace else _random_id())
    deadline = begun + min(timeouts) if timeouts else None
    return Call(request_id, caller or key or request_id, begun, gone, deadline, trace[1] if trace else None)


def _trace(value: bytes) -> tuple[str, str] | None:
    """The trace id, and the traceparent of our own span; W3C Trace Context, level 1."""
    found = TRACE.fullmatch(value.strip())
    if not found or found[1] == NO_TRACE:
        return None
    trace = found[1].decode()
    return trace, f"00-{trace}-{SPAN.getrandbits(64):016x}-{found[2].decode()}"


def _seconds(name: bytes, value: bytes) -> float:
    if not MILLISECONDS.fullmatch(value):
        raise InvalidInput(f"{name.decode()}: {value[:40].decode('latin-1')!r} is not a number of milliseconds.")
    return int(value) / 1000


def _random_id() -> str:
    return f"{SPAN.getrandbits(128):032x}"


def now() -> float:
    """The clock of all calls, in seconds."""
    return time.perf_counter()
