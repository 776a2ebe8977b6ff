"""Who may ask: the key that a request came with, looked up in the file of keys, which is followed while it changes.

- A key comes as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``, or as the password of HTTP's Basic scheme, for a
  person who follows a link to a report: the browser asks for it, whatever the user's name.
- **What needs none**: the health routes, the page and its files (which ask nothing by themselves; the page asks for the
  key), the documentation, and ``/metrics``, for a scraper inside of the network: it tells how many and how long, never
  what was asked. The gateway of the stack does not pass it on.
- **A header that was accepted is remembered as it is**, until the file changes: one lookup for a request. What was not
  accepted is compared anew each time, in a time that does not depend on how much of it is right.
- **The file is looked at once a second**, by time and inode. One that is broken or gone changes nothing, and the log
  says so: half a rotation must not lock everybody out.
"""

import base64
import binascii
import hmac
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline import api_keys
from pipeline.errors import InvalidInput, InvalidSettings
from pipeline.settings import SERVING_PREFIX
from serving.errors import Unauthorized

log = logging.getLogger(__name__)

VARIABLE: Final = f"{SERVING_PREFIX}API_KEYS_FILE"
OPEN: Final = frozenset({"/", "/docs", "/openapi.json", "/metrics", "/favicon.ico"})
OPEN_BELOW: Final = ("/v2/health/", "/static/", "/static-offline-docs/")
CARRIERS: Final = frozenset({b"authorization", b"x-api-key"})
SCHEMES: Final = {
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}
"""As OpenAPI calls them: either one will do."""
REMEMBERED: Final = 1024
"""Headers at most, of accepted keys."""

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: lower-case names."""


class ApiKeys:
    """The keys of one server, as one process knows them."""

    def __init__(self, path: Path | None) -> None:
        """Of the file ``path``; of None, nothing asks for a key.

        Raises:
            InvalidSettings: there is no such file, or it is broken.
        """
        self._path = path
        self._seen = _state(path)
        self._keys: Mapping[str, str] | None = None
        self._accepted: dict[bytes, str] = {}
        if path:
            self._keys = _read(path)

    def look(self) -> None:
        """Read the file anew if it has changed; to be called once a second."""
        seen = _state(self._path)
        if self._path is None or seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = _read(self._path)
        except InvalidSettings as error:
            log.warning("the keys stay as they were: %s", error)
            return
        self._accepted = {}
        log.info("%s", "no key is needed now" if self._keys is None else f"{len(self._keys)} keys are good now")

    def caller(self, headers: Headers) -> str | None:
        """The name of the key that a request came with; None where no key is needed.

        Raises:
            Unauthorized: it has none, or none that is good.
        """
        if self._keys is None:
            return None
        for name, value in headers:
            if name in CARRIERS and (known := self._accepted.get(value) or self._looked_up(name, value)):
                return known
        raise _refusal(headers)

    def _looked_up(self, header: bytes, value: bytes) -> str | None:
        key = value.strip() if header == b"x-api-key" else _credential(value)
        digest = api_keys.digest_of_key(key)
        found = [name for name, good in (self._keys or {}).items() if hmac.compare_digest(good, digest)]
        if not found:
            return None
        if len(self._accepted) >= REMEMBERED:
            self._accepted.clear()
        self._accepted[value] = found[0]
        return found[0]


def needs_key(path: str) -> bool:
    """Whether a path is one for which a key is asked, where there are keys."""
    return path not in OPEN and not path.startswith(OPEN_BELOW)


def describe_keys(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document which of its operations ask for a key, and how it is sent."""
    document["components"]["securitySchemes"] = SCHEMES
    for path, operations in document["paths"].items():
        for operation in operations.values() if needs_key(path) else ():
            operation["security"] = [{name: []} for name in SCHEMES]


def _credential(value: bytes) -> bytes:
    """The key in an Authorization header; empty where there is none."""
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _refusal(headers: Headers) -> Unauthorized:
    given = any(name in CARRIERS for name, _ in headers)
    # A browser that follows a link asks its user; a script must not make it do so.
    scheme = "Basic" if (b"sec-fetch-mode", b"navigate") in headers else "Bearer"
    what = "The key of this request is not one of this server's" if given else "This server asks for a key"
    return Unauthorized(f"{what}: send one as Authorization: Bearer, or X-API-Key.", f'{scheme} realm="safelight"')


def _read(path: Path) -> Mapping[str, str] | None:
    try:
        return api_keys.read(path.read_text(encoding="utf-8"), f"{VARIABLE}: {path}")
    except InvalidInput as error:
        raise InvalidSettings(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidSettings(f"{VARIABLE}: {path} cannot be read: {reason}.") from error


def _state(path: Path | None) -> tuple[int, ...] | None:
    """By which a change of the file is seen; None where there is none."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size) if found else None
