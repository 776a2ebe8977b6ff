"""A pass-through HTTP proxy in front of an S3 endpoint that counts requests and bytes, by zone."""

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class Counts:
    """What went through: requests and body bytes by (operation, zone), e.g. ``("GET", "images")``."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, operation: str, zone: str, size: int) -> None:
        """Count one request."""
        with self._lock:
            self.requests[operation, zone] += 1
            self.bytes[operation, zone] += size

    def clear(self) -> None:
        """Begin anew."""
        with self._lock:
            self.requests.clear()
            self.bytes.clear()


@contextmanager
def counting(endpoint: str) -> Iterator[tuple[str, Counts]]:
    """The URL of a proxy in front of ``endpoint`` (path-style keys below ``bucket/prefix/zone/``), and its counts."""
    counts = Counts()
    target = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            """Open a connection of this client's own to the endpoint."""
            super().setup()
            self.upstream = http.client.HTTPConnection(target.hostname or "", target.port)

        def finish(self) -> None:
            """Close it with the client's."""
            self.upstream.close()
            super().finish()

        def forward(self) -> None:
            """Pass one request on, and count it."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # The Host header is signed: it goes on as it came.
            self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                self.upstream.putheader(name, value)
            self.upstream.endheaders(body)
            answer = self.upstream.getresponse()
            data = answer.read()
            counts.add(*_kind(self.command, self.path), len(body) + len(data))
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", counts
        finally:
            server.shutdown()
            thread.join()


def _kind(method: str, path: str) -> tuple[str, str]:
    """The operation, listings apart from reads, and the zone that it went to."""
    url = urlsplit(path)
    query = parse_qs(url.query)
    listed = query.get("prefix", [""])[0]
    operation = "LIST" if method == "GET" and "list-type" in query else method
    parts = (listed if operation == "LIST" else url.path.strip("/").partition("/")[2]).split("/")
    return operation, parts[1] if len(parts) > 1 else ""
