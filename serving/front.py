"""What stands in front of FastAPI: every request becomes a call, is counted, and gets its ids with the answer."""

from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import InvalidInput
from serving.api_keys import ApiKeys, needs_key
from serving.calls import Call, call_of, never, now
from serving.counts import Counts, Route
from serving.errors import Unauthorized
from serving.problems import problem_of

CALL: Final = "safelight.call"
PREDICT: Final = "/predict"
INFER: Final = "/infer"


class Front:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, counts: Counts, keys: ApiKeys) -> None:
        """``counts`` and ``keys`` are this process's."""
        self.app = app
        self.counts = counts
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, with the call's ids among the headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, app, status = now(), self.app, 500
        try:
            key = self.keys.caller(scope["headers"]) if needs_key(scope["path"]) else None
            call = call_of(scope["headers"], begun, _gone(receive), key)
        except (InvalidInput, Unauthorized) as error:
            call, app = call_of((), begun), problem_of(error)
            if isinstance(error, Unauthorized):
                self.counts.refused("unauthorized")
        scope[CALL] = call

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *marks_of(call)]
            await send(message)

        try:
            await app(scope, receive, noted)
        finally:
            self.counts.answered(_route(scope["path"]), status, now() - begun)


def call_in(scope: Scope) -> Call:
    """The call that ``Front`` made of a request."""
    call: Call = scope[CALL]
    return call


def marks_of(call: Call) -> list[tuple[bytes, bytes]]:
    """Headers by which a client finds its request again, and sees how long it was here: in milliseconds, until now."""
    spent = b"total;dur=%.1f" % ((now() - call.begun) * 1000)
    marks = [(b"x-request-id", call.request_id.encode()), (b"server-timing", spent)]
    if call.traceparent:
        marks.append((b"traceparent", call.traceparent.encode()))
    return marks


def _gone(receive: Receive) -> Callable[[], bool]:
    """Whether the client has left: uvicorn's cycle of a request and its answer knows, without being waited for."""
    cycle: Any = getattr(receive, "__self__", None)
    return (lambda: bool(cycle.disconnected)) if hasattr(cycle, "disconnected") else never


def _route(path: str) -> Route:
    if path == PREDICT:
        return "predict"
    return "infer" if path.endswith(INFER) else "other"
