"""The endpoint for a store's webhook: it says that images were uploaded, and nothing more is believed of it.

A hint only makes the next look at the store's listing sooner, so that a hint that is lost, doubled or made up does no
harm. Without a token nothing is listened for.
"""

import hmac
import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_plus, urlsplit

log = logging.getLogger(__name__)

LARGEST_BODY = 1 << 20
"""Bytes; stores send one record, or a few, at a time."""
TIMEOUT_S = 10


def datasets_in(body: bytes, zone: str) -> set[str]:
    """The datasets of the objects in an S3 event notification that lie in the images zone at ``zone``.

    Raises:
        ValueError: the body is no such notification.
    """
    bucket, prefix = urlsplit(zone).netloc, urlsplit(zone).path.strip("/")
    found = set()
    try:
        for record in json.loads(body)["Records"]:
            key = unquote_plus(record["s3"]["object"]["key"])
            if record["s3"]["bucket"]["name"] == bucket and key.startswith(f"{prefix}/" if prefix else ""):
                dataset, _, path = key.removeprefix(prefix).lstrip("/").partition("/")
                found |= {dataset} if path else set()
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"no S3 event records: {error!r}") from error
    return found


class Endpoint(ThreadingHTTPServer):
    """A server, not serving yet: ``POST`` of events with the token as bearer, and ``GET /health``.

    Args:
        address: host and port to listen on; port 0 takes a free one.
        zone: URL of the images zone.
        token: what the store must send; None: no event is accepted.
        hint: called where a notification names an object of the zone.
        is_well: whether the watching goes on.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        zone: str,
        token: str | None,
        hint: Callable[[], None],
        is_well: Callable[[], bool],
    ) -> None:
        super().__init__(address, _Request)
        self.zone = zone
        self.token = token
        self.hint = hint
        self.is_well = is_well


class _Request(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    server: Endpoint

    def do_GET(self) -> None:
        if self.path != "/health":
            self._answer(HTTPStatus.NOT_FOUND)
        else:
            self._answer(HTTPStatus.OK if self.server.is_well() else HTTPStatus.SERVICE_UNAVAILABLE)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not _is_allowed(self.headers.get("Authorization"), self.server.token):
            self._answer(HTTPStatus.UNAUTHORIZED)
        elif not length.isdecimal():
            self._answer(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > LARGEST_BODY:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._answer(self._take(self.rfile.read(int(length))))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that it has there
        log.debug(format, *args)

    def _take(self, body: bytes) -> HTTPStatus:
        try:
            names_ours = bool(datasets_in(body, self.server.zone))
        except ValueError as error:
            log.warning("a webhook sent what is no event: %s", error)
            return HTTPStatus.BAD_REQUEST
        if names_ours:
            self.server.hint()
        return HTTPStatus.NO_CONTENT

    def _answer(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()


def _is_allowed(header: str | None, token: str | None) -> bool:
    if token is None or header is None:
        return False
    given = header.removeprefix("Bearer ").strip()
    return hmac.compare_digest(given.encode(), token.encode())
