"""Clients that send, or read, what no honest one does: over real sockets, on a clock that the tests move."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from live_server import wait_until

from serving import connections
from serving.connections import HEAD_BYTES, HEADERS, LINGER_S, Connection, Limits, look_at_all

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
LARGE = 8 << 20
ANSWER = re.compile(rb".*?content-length: (\d+)\r\n(?:.*?\r\n)?\r\n(.*)", re.DOTALL)


class Running:
    """A server whose connections are bounded; requests of ``/held`` wait for ``release``."""

    def __init__(self, body_bytes: int = 1 << 20, connections: int = 20) -> None:
        self.refused: list[str] = []
        self.limits = Limits(body_bytes, connections, self.refused.append)
        self.release = asyncio.Event()
        self.bodies: list[int] = []
        self.left = 0
        self.listener = socket.socket(proto=socket.IPPROTO_TCP)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.clients = ExitStack()
        config = uvicorn.Config(
            self.answer,
            interface="asgi3",
            http=partial(Connection, self.limits),
            log_config=None,
            ws="none",
            lifespan="off",
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """An application that reads all of a request and says how much that was."""
        self.loop = asyncio.get_running_loop()
        if scope["path"] == "/early":
            await self.say(send, 413, b"early")
            return
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size, more = size + len(message["body"]), message["more_body"]
        if scope["path"] == "/held":
            await self.release.wait()
        self.bodies.append(size)
        await self.say(send, 200, bytes(LARGE) if scope["path"] == "/large" else b"%d" % size)

    @staticmethod
    async def say(send: Any, status: int, body: bytes) -> None:
        """Send an answer."""
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def connect(self, *sent: bytes) -> socket.socket:
        """A client that has sent something."""
        client = self.clients.enter_context(socket.create_connection(self.listener.getsockname(), timeout=10))
        for each in sent:
            client.sendall(each)
        return client

    @property
    def connections(self) -> list[Any]:
        """The server's side of all clients."""
        return list(self.server.server_state.connections)

    def look(self, *seconds: float) -> None:
        """Look at all connections, so many seconds from now."""

        def look(each: float) -> None:
            look_at_all(self.connections, self.limits, time.monotonic() + each)
            looked.set()

        for each in seconds:
            looked = threading.Event()
            self.connections[0].loop.call_soon_threadsafe(look, each)
            assert looked.wait(10)


@contextmanager
def running(**settings: int) -> Iterator[Running]:
    """A server, as long as the context."""
    found = Running(**settings)
    found.thread.start()
    try:
        wait_until(lambda: found.server.started)
        yield found
    finally:
        found.clients.close()
        found.server.should_exit = found.server.force_exit = True
        found.thread.join()


@pytest.fixture
def server() -> Iterator[Running]:
    """A server with room for twenty connections and bodies of 1 MiB."""
    with running() as found:
        yield found


def send(client: socket.socket, data: bytes) -> None:
    """Send on until the server, or whoever reads its answer, has had enough."""
    with suppress(OSError):
        client.sendall(data)


def read(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    with client:
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def answer(client: socket.socket) -> bytes:
    """One small answer of a connection that may stay open."""
    got = client.recv(1 << 16)
    while not (found := ANSWER.match(got)) or len(found[2]) < int(found[1]):
        more = client.recv(1 << 16)
        assert more, got
        got += more
    return got


def is_problem(got: bytes, status: int) -> str:
    """Assert that ``got`` is one answer, a problem that ends the connection; its detail."""
    head, _, body = got.partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head.lower()
    assert problem.keys() == {"type", "title", "status", "detail", "error"}
    assert problem["status"] == status
    return str(problem["detail"])


UNREADABLE = {
    "noise": bytes(range(256)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown method": b"FOO / HTTP/1.1\r\n\r\n",
    "NUL in a path": b"GET /\x00 HTTP/1.1\r\n\r\n",
    "NUL in a header": HEAD + b"A: \x00\r\n\r\n",
    "a header without a colon": HEAD + b"hello\r\n\r\n",
    "no path": b"GET http://x HTTP/1.1\r\n\r\n",
    "an impossible port": b"GET http://x:99999999/ HTTP/1.1\r\n\r\n",
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length beyond all numbers": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a length and chunks": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "a chunk without a size": POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "a chunk beyond all numbers": POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_http_is_a_400(server: Running, name: str) -> None:
    """A request that cannot be parsed is answered as a problem that says why, and disturbs nobody."""
    assert is_problem(read(server.connect(UNREADABLE[name])), 400).startswith("The request is not HTTP/1.1: ")
    assert server.refused == ["invalid"]
    assert answer(server.connect(HEAD + b"\r\n")).endswith(b"\r\n\r\n0")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * (4 << 20),
        HEAD + b"A: " + b"b" * (4 << 20),
        HEAD + b"A: b\r\n" * 400_000,
        HEAD + b"A: b\r\n" * HEADERS + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 400_000,
    ],
)
def test_a_head_over_the_limit_is_a_431(server: Running, head: bytes) -> None:
    """Endless targets, headers and trailers are refused while they come, and the client gets to read why."""
    client = server.connect()
    sending = threading.Thread(target=send, args=(client, head))
    sending.start()
    assert "32 KiB or 100 headers" in is_problem(read(client), 431)
    sending.join()
    assert server.limits.held <= HEAD_BYTES


def test_a_client_that_never_finishes_its_head_is_given_up_on(server: Running) -> None:
    """A byte now and then does not keep a connection: ten seconds after the first one it is a 408."""
    client = server.connect(b"GET / HT")
    wait_until(lambda: [each._received for each in server.connections] == [8])  # noqa: SLF001 - nothing else shows it
    server.look(9)
    client.sendall(b"TP/")
    server.look(11)
    assert "not complete after 10 s" in is_problem(read(client), 408)
    assert server.refused == ["slow"]


def test_a_connection_that_never_asks_is_closed(server: Running) -> None:
    """What a browser opens in reserve is closed without an answer that it could take for one."""
    client = server.connect()
    wait_until(lambda: len(server.connections) == 1)
    server.look(9)
    assert len(server.connections) == 1
    server.look(11)
    assert read(client) == b""


def test_a_body_has_to_come_at_some_pace(server: Running) -> None:
    """Who sends ten kibibytes in ten seconds may go on; who sends less is a 408, and the route knows that it left."""
    client = server.connect(POST + b"Content-Length: 100000\r\n\r\n")
    wait_until(lambda: len(server.connections) == 1 and server.connections[0].cycle is not None)
    server.look(0)
    client.sendall(bytes(20_000))
    wait_until(lambda: server.limits.held > 20_000)
    server.look(11, 20)
    assert server.refused == []
    server.look(22)
    assert "10 KiB of the body came in 10 s" in is_problem(read(client), 408)
    wait_until(lambda: server.left == 1)
    assert server.limits.held == 0


def test_a_request_has_an_end(server: Running) -> None:
    """However steadily it comes, after five minutes it is a 408."""
    client = server.connect(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    wait_until(lambda: len(server.connections) == 1 and server.connections[0].cycle is not None)
    server.look(301)
    assert "not complete after 300 s" in is_problem(read(client), 408)


def test_a_client_that_does_not_read_its_answer_is_cut_off(server: Running) -> None:
    """An answer that nobody takes is not kept."""
    client = server.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_until(lambda: len(server.connections) == 1 and server.connections[0].transport.get_write_buffer_size() > 0)
    server.look(0, 9)
    assert server.refused == []
    server.look(11)
    wait_until(lambda: not server.connections)
    with client:
        got = iter(lambda: client.recv(1 << 20), b"")
        with suppress(ConnectionResetError):
            assert sum(map(len, got)) < LARGE


def test_a_client_that_waits_for_its_answer_may_wait(server: Running) -> None:
    """Slowness of ours is not held against a client."""
    client = server.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_until(lambda: len(server.connections) == 1 and server.connections[0].cycle is not None)
    server.look(0, 100, 1000)
    server.loop.call_soon_threadsafe(server.release.set)
    assert answer(client).startswith(b"HTTP/1.1 200 ")


def test_what_follows_a_refusal_is_thrown_away_to_an_end(server: Running) -> None:
    """A client that is told 413 and sends on reads that one answer, and is cut off four bodies later."""
    client = server.connect(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert b" 413 " in answer(client)
    client.sendall(bytes(5 << 20))
    wait_until(lambda: server.refused == ["too_large"])
    assert read(client) == b""
    assert server.limits.held == 0


def test_a_connection_that_ends_anyway_is_left_alone(server: Running) -> None:
    """A look at one that is closing, in the middle of a request, does nothing to it, or to the server."""
    client = server.connect(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")
    answer(client)
    (connection,) = server.connections

    def close_and_look() -> None:
        connection.transport.close()
        look_at_all([connection], server.limits, time.monotonic() + 1000)
        looked.set()

    looked = threading.Event()
    connection.loop.call_soon_threadsafe(close_and_look)
    assert looked.wait(10)
    assert server.refused == []


def test_chunks_of_one_byte_have_an_end_too(server: Running) -> None:
    """Framing does not go on for ever where the body itself stays small."""
    client = server.connect(POST + b"Transfer-Encoding: chunked\r\n\r\n1;")
    sending = threading.Thread(target=send, args=(client, b"a" * (6 << 20)))
    sending.start()
    assert "1 MiB" in is_problem(read(client), 413)
    sending.join()


def test_unanswered_bodies_have_a_bound_together(server: Running) -> None:
    """Ten clients that each have sent most of a body hold eight bodies' worth; the others are told to come again."""
    part = POST + b"Content-Length: 1000000\r\n\r\n" + bytes(990_000)
    clients = [server.connect(part) for _ in range(10)]
    wait_until(lambda: server.refused == ["overload"] * 2)
    assert server.limits.held <= 8 << 20
    answers = []
    for client in clients:
        client.sendall(bytes(10_000))
        answers.append(answer(client))
        client.close()
    assert [got[9:12] for got in answers].count(b"200") == 8
    refused = next(got for got in answers if b" 503 " in got)
    assert b"retry-after: 2" in refused
    is_problem(refused, 503)
    wait_until(lambda: server.limits.held == 0)


def test_connections_have_a_bound() -> None:
    """One too many is told to come again; when others have gone, there is room."""
    with running(connections=4) as server:
        kept = [server.connect(HEAD + b"\r\n") for _ in range(4)]
        assert all(answer(client).startswith(b"HTTP/1.1 200 ") for client in kept)
        late = server.connect()
        assert "as many connections" in is_problem(answer(late), 503)
        late.close()
        wait_until(lambda: len(server.connections) == 4)
        server.look(0, 3)  # crowded: idle ones go first
        assert [read(client) for client in kept] == [b""] * 4
        wait_until(lambda: not server.connections)
        assert answer(server.connect(HEAD + b"\r\n")).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_is_kept_a_while(server: Running) -> None:
    """Where there is room, a connection between two requests is closed after 75 seconds, blank lines or not."""
    client = server.connect(HEAD + b"\r\n")
    answer(client)
    client.sendall(b"\r\n")
    wait_until(lambda: server.limits.held == 2)
    server.look(0, 70)
    client.sendall(HEAD + b"\r\n")
    answer(client)
    server.look(0, 76)
    assert read(client) == b""


def test_pipelined_requests_are_answered_in_order_up_to_a_number(server: Running) -> None:
    """Those that were sent together are answered one by one; an endless row of them is not taken in."""
    several = b"".join(POST + b"Content-Length: %d\r\n\r\n" % n + bytes(n) for n in range(10))
    client = server.connect(several + HEAD + b"Connection: close\r\n\r\n")
    assert re.findall(rb"\r\n\r\n(\d)", read(client)) == [b"%d" % n for n in [*range(10), 0]]
    assert read(server.connect((HEAD + b"\r\n") * 2000)).count(b"HTTP/1.1 200 ") <= 18
    assert server.refused == ["too_large"]


def test_rubbish_behind_a_request_does_not_answer_for_it(server: Running) -> None:
    """What was asked before is answered, with its own answer, and then the connection ends."""
    client = server.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n", b"rubbish\r\n\r\n")
    wait_until(lambda: server.refused == ["invalid"])
    server.loop.call_soon_threadsafe(server.release.set)
    got = read(client)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("offer", [b"Upgrade: h2c", b"upgrade: websocket"])
def test_an_offer_of_another_protocol_is_declined(server: Running, offer: bytes) -> None:
    """The request is answered with its body, as Java's client expects, and so is the next one."""
    head = (
        POST + b"Connection: Upgrade, HTTP2-Settings\r\n" + offer + b"\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    )
    client = server.connect(head + b"Content-Length: 5\r\n\r\nhello")
    assert answer(client).endswith(b"\r\n\r\n5")
    client.sendall(head + b"Content-Length: 70000\r\n\r\n" + bytes(70_000))
    assert answer(client).endswith(b"\r\n\r\n70000")
    client.sendall(POST + b"Content-Length: 3\r\n\r\nabc")
    assert answer(client).endswith(b"\r\n\r\n3")
    client.close()


def test_what_was_refused_does_not_linger(server: Running) -> None:
    """A client that goes on sending after a refusal is cut off."""
    client = server.connect(b"rubbish\r\n\r\n")
    answer(client)
    server.look(LINGER_S + 1)
    wait_until(lambda: not server.connections)
    client.close()


def test_an_offer_behind_another_request_is_no_way_in(server: Running) -> None:
    """Where one request could be read as part of another, it is refused."""
    first = POST + b"Content-Length: 5\r\n\r\nhello"
    offer = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
    got = read(server.connect(first + offer))
    assert got.count(b"HTTP/1.1 200 ") == 1
    assert got.count(b"HTTP/1.1") == 1
    assert server.refused == ["invalid"]


def test_a_real_server_looks_at_its_connections(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so by itself, about once a second."""
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as waiting:
        waiting.sendall(b"GET / HT")
        assert is_problem(read(waiting), 408)
