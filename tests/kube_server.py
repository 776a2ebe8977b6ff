"""The Kubernetes API of the tests over HTTPS: who asks, may that one, and then the answer, the watch or the log."""

import json
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kube_resources
from kube_access import Access, Request
from kube_objects import Object, Objects, chooser
from kube_refusals import Refused
from kube_requests import Call, Registry, understood

BOOKMARK_S = 1.0
"""Between two bookmarks of a watch; a real API sends one a minute."""
WATCH_S = 300.0
Log = Callable[[str, str, dict[str, str]], Iterator[bytes]]
"""The log of a pod: namespace, name, and what is wanted of it."""


class Api:
    """The API's server; it can be away for a while, as one that is being upgraded, and comes back with all objects."""

    def __init__(self, objects: Objects, access: Access, log: Log, tls: ssl.SSLContext) -> None:
        """Nothing listens yet."""
        self.objects = objects
        self.access = access
        self.log = log
        self.registry = Registry(objects, access)
        self.requests: list[tuple[str, str, str, int]] = []
        self.stopping = threading.Event()
        self._tls = tls
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        """Listen, where it listened before."""
        self.stopping.clear()
        self._server = _Server(("127.0.0.1", self.port), _handler(self), self._tls)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="kube api", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more; whoever is connected is disconnected."""
        if self._server is None or self._thread is None:
            return
        self.stopping.set()
        with self.objects.changed:
            self.objects.changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.disconnect()
        self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext) -> None:
        super().__init__(address, handler)
        self.open: set[Any] = set()
        self._lock = threading.Lock()
        self._tls = tls

    def get_request(self) -> tuple[Any, Any]:
        """A connection; hands are shaken in its own thread."""
        connection, address = super().get_request()
        connection.settimeout(330)
        wrapped = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self.open.add(wrapped)
        return wrapped, address

    def shutdown_request(self, request: Any) -> None:
        """Close one."""
        with self._lock:
            self.open.discard(request)
        with suppress(OSError):
            super().shutdown_request(request)

    def disconnect(self) -> None:
        """Close all."""
        with self._lock:
            still = list(self.open)
        for each in still:
            with suppress(OSError):
                each.shutdown(2)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients come and go."""


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            call = Call(
                self.command,
                url.path.rstrip("/") or "/",
                dict(parse_qsl(url.query)),
                self.headers.get("Content-Type", "").partition(";")[0],
                self.rfile.read(length) if length else b"",
            )
            if api.stopping.is_set():
                self.close_connection = True
                return
            _Answering(api, self).answer(call)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            del format, args

    return Handler


class _Answering:
    """One request on its way."""

    def __init__(self, api: Api, http: BaseHTTPRequestHandler) -> None:
        self._api = api
        self._http = http
        self._chunked = False
        self._user = ""

    def answer(self, call: Call) -> None:
        status = 200
        try:
            status = self._answered(call)
        except Refused as refused:
            status = refused.code
            self._json(refused.code, refused.status)
        except (BrokenPipeError, ConnectionError, ssl.SSLError):
            self._http.close_connection = True
        except Exception as error:  # noqa: BLE001 - a fault of the test API must be seen by the test
            traceback.print_exc()
            status = 500
            self._json(500, Refused(500, "InternalError", f"a fault of the tests' API: {error!r}").status)
        self._api.requests.append((self._user, call.method, call.path, status))

    def _answered(self, call: Call) -> int:
        if call.path in {"/healthz", "/livez", "/readyz"}:
            return self._bytes(200, b"ok", "text/plain")
        self._user = self._api.access.user(self._http.headers.get("Authorization", ""))
        found = kube_resources.discovery(call.path) or kube_resources.openapi(call.path)
        if found is not None:
            return self._json(200, found)
        if call.path.count("/") < 3 or not call.path.startswith(("/api/", "/apis/")):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        request = understood(call)
        self._api.access.refuse(self._user, request)
        if request.verb == "watch":
            return self._watch(call, request)
        if request.subresource == "log":
            return self._log(call, request)
        return self._json(*self._api.registry.carry_out(call, request))

    def _watch(self, call: Call, request: Request) -> int:
        objects = self._api.objects
        wanted = chooser(request.namespace, call.query.get("labelSelector", ""), call.query.get("fieldSelector", ""))
        asked = call.query.get("resourceVersion", "")
        with objects.changed:
            at = int(asked) if asked not in {"", "0"} else objects.version
            first = [] if asked not in {"", "0"} else [each for each in objects.each(request.resource) if wanted(each)]
        self._begin_stream("application/json")
        for each in first:
            self._event("ADDED", each)
        if call.query.get("sendInitialEvents") == "true":
            self._bookmark(request, at, {"k8s.io/initial-events-end": "true"})
        end = time.monotonic() + float(call.query.get("timeoutSeconds", WATCH_S))
        bookmarks = call.query.get("allowWatchBookmarks") == "true"
        while time.monotonic() < end and not self._api.stopping.is_set():
            try:
                at = self._tell(request, wanted, at, min(end - time.monotonic(), BOOKMARK_S))
            except Refused as refused:
                self._event("ERROR", refused.status)
                break
            if bookmarks:
                self._bookmark(request, at, {})
        if self._api.stopping.is_set():
            self._http.close_connection = True  # without the last chunk: as an API that went away
        else:
            self._chunk(b"")
        return 200

    def _tell(self, request: Request, wanted: Callable[[Object], bool], at: int, patience_s: float) -> int:
        """Tell what has changed since a version, after some time at most; up to which version was looked."""
        objects = self._api.objects
        with objects.changed:
            if objects.version == at:
                objects.changed.wait(patience_s)
            changes = objects.since(at)
            now = objects.version
        for each in changes:
            told = each.told(wanted) if each.resource is request.resource else None
            if told:
                self._event(*told)
        return now

    def _bookmark(self, request: Request, at: int, annotations: dict[str, str]) -> None:
        metadata = (
            {"resourceVersion": str(at), "annotations": annotations} if annotations else {"resourceVersion": str(at)}
        )
        resource = request.resource
        self._event("BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})

    def _log(self, call: Call, request: Request) -> int:
        parts = self._api.log(request.namespace, request.name, call.query)
        if call.query.get("follow") != "true":
            return self._bytes(200, b"".join(parts), "text/plain")
        self._begin_stream("text/plain")
        for part in parts:
            if self._api.stopping.is_set():
                self._http.close_connection = True
                return 200
            if part:
                self._chunk(part)
        self._chunk(b"")
        return 200

    def _event(self, kind: str, found: Object) -> None:
        self._chunk(json.dumps({"type": kind, "object": found}).encode() + b"\n")

    def _begin_stream(self, content_type: str) -> None:
        self._chunked = True
        self._http.send_response(200)
        self._http.send_header("Content-Type", content_type)
        self._http.send_header("Transfer-Encoding", "chunked")
        self._http.end_headers()

    def _chunk(self, data: bytes) -> None:
        self._http.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._http.wfile.flush()

    def _json(self, status: int, body: Object) -> int:
        return self._bytes(status, json.dumps(body).encode(), "application/json")

    def _bytes(self, status: int, body: bytes, content_type: str) -> int:
        if self._chunked:
            self._http.close_connection = True
            return status
        self._http.send_response(status)
        self._http.send_header("Content-Type", content_type)
        self._http.send_header("Content-Length", str(len(body)))
        self._http.end_headers()
        self._http.wfile.write(body)
        return status
