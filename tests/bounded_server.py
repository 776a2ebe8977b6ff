"""A server with bounded connections and no model behind them, and what its clients send and read on plain sockets."""

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

import uvicorn
from live_server import wait_until

from serving.connections import Connection, Limits, look_at_all

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
LARGE = 8 << 20
ANSWER = re.compile(rb".*?content-length: (\d+)\r\n(?:.*?\r\n)?\r\n(.*)", re.DOTALL)


class BoundedServer:
    """A server whose connections are bounded: bodies of so many bytes, so many connections.

    ``/early`` is answered before its body, ``/large`` with 8 MiB, ``/held`` after ``release``; all else with its size.

    Attributes:
        refused: why, each time that it refused something.
        left: how many clients the application saw go before their request was complete.
    """

    def __init__(self, body_bytes: int = 1 << 20, connections: int = 20) -> None:
        self.refused: list[str] = []
        self.limits = Limits(body_bytes, connections, self.refused.append)
        self.release = asyncio.Event()
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
def bounded_server(**settings: int) -> Iterator[BoundedServer]:
    """A server, as long as the context."""
    found = BoundedServer(**settings)
    found.thread.start()
    try:
        wait_until(lambda: found.server.started)
        yield found
    finally:
        found.clients.close()
        found.server.should_exit = found.server.force_exit = True
        found.thread.join()


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
