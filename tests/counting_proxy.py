"""A pass-through HTTP proxy in front of an S3 endpoint that counts requests and bytes, by zone."""

import http.client
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
PATIENCE_S = 300.0
"""For an answer from the endpoint, which may be frozen."""


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


class Proxy(ThreadingHTTPServer):
    """Listens on a free port of this machine, one thread per connection, and passes on to ``endpoint``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, endpoint: str, handler: "type[Passing] | None" = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Passing)
        self.target = urlsplit(endpoint)
        self.counts = Counts()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Drop the connection: one of the two ends broke it, and the other one learns it so."""


class Passing(BaseHTTPRequestHandler):
    """One connection of a client, with one of its own to the endpoint."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def setup(self) -> None:
        """Make the second connection possible; it is opened by its first request."""
        super().setup()
        target = self.server.target
        self.upstream = http.client.HTTPConnection(target.hostname or "", target.port, timeout=PATIENCE_S)

    def finish(self) -> None:
        """Close it with the client's."""
        self.upstream.close()
        super().finish()

    def forward(self) -> None:
        """Pass one request on, and count it."""
        body = self.body()
        status, headers, data = self.ask(body)
        self.server.counts.add(*kind(self.command, self.path), len(body) + len(data))
        self.respond(status, headers, data)

    def body(self) -> bytes:
        """What the client sent."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of the endpoint's answer to this request."""
        # The Host header is signed: it goes on as it came.
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self.upstream.putheader(name, value)
        self.upstream.endheaders()
        self.transmit(body)
        answer = self.upstream.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def transmit(self, body: bytes) -> None:
        """Send a request's body to the endpoint, which has its headers."""
        self.upstream.send(body)

    def respond(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None) -> None:
        """Send an answer to the client, whose body is announced as ``length`` bytes (by default as long as it is)."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        own = next((value for name, value in headers if name.lower() == "content-length"), "0")
        announced = own if self.command == "HEAD" else str(len(data) if length is None else length)
        self.send_header("Content-Length", announced)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Forward, as a subclass may have it."""
        self.forward()

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def listening(proxy: Proxy) -> Iterator[None]:
    """Let a proxy serve, in a thread, as long as the context."""
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    with proxy:
        thread.start()
        try:
            yield
        finally:
            proxy.shutdown()
            thread.join()


@contextmanager
def counting(endpoint: str) -> Iterator[tuple[str, Counts]]:
    """The URL of a proxy in front of ``endpoint`` (path-style keys below ``bucket/prefix/zone/``), and its counts."""
    proxy = Proxy(endpoint)
    with listening(proxy):
        yield proxy.url, proxy.counts


def kind(method: str, path: str) -> tuple[str, str]:
    """The operation, listings apart from reads, and the zone that it went to."""
    url = urlsplit(path)
    query = parse_qs(url.query)
    listed = query.get("prefix", [""])[0]
    operation = "LIST" if method == "GET" and "list-type" in query else method
    parts = (listed if operation == "LIST" else url.path.strip("/").partition("/")[2]).split("/")
    return operation, parts[1] if len(parts) > 1 else ""


def main() -> None:
    """Be a proxy in a process of its own: say the URL, then for each line that comes the counts since the last one."""
    with counting(sys.argv[1]) as (url, counts):
        print(url, flush=True)  # noqa: T201 - that is how it talks
        for _ in sys.stdin:
            found = [
                {"operation": operation, "zone": zone, "requests": requests, "bytes": counts.bytes[operation, zone]}
                for (operation, zone), requests in counts.requests.items()
            ]
            counts.clear()
            print(json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
