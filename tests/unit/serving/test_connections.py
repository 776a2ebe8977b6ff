"""Clients that send, or read, more slowly than honest ones: over real sockets, on a clock that the tests move."""

import socket
import threading
import time
from contextlib import suppress

import httpx
import pytest
from bounded_server import HEAD, LARGE, POST, BoundedServer, answer, is_problem, read
from live_server import wait_until

from serving import connections
from serving.connections import LINGER_S, look_at_all


def test_a_client_that_never_finishes_its_head_is_given_up_on(server: BoundedServer) -> None:
    """A byte now and then does not keep a connection: ten seconds after the first one it is a 408."""
    client = server.connect(b"GET / HT")
    wait_until(lambda: [each._received for each in server.connections] == [8])  # noqa: SLF001 - nothing else shows it
    server.look(9)
    client.sendall(b"TP/")
    server.look(11)
    assert "not complete after 10 s" in is_problem(read(client), 408)
    assert server.refused == ["slow"]


def test_a_connection_that_never_asks_is_closed(server: BoundedServer) -> None:
    """What a browser opens in reserve is closed without an answer that it could take for one."""
    client = server.connect()
    wait_until(lambda: len(server.connections) == 1)
    server.look(9)
    assert len(server.connections) == 1
    server.look(11)
    assert read(client) == b""


def test_a_body_has_to_come_at_some_pace(server: BoundedServer) -> None:
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


def test_a_request_has_an_end(server: BoundedServer) -> None:
    """However steadily it comes, after five minutes it is a 408."""
    client = server.connect(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    wait_until(lambda: len(server.connections) == 1 and server.connections[0].cycle is not None)
    server.look(301)
    assert "not complete after 300 s" in is_problem(read(client), 408)


def test_a_client_that_does_not_read_its_answer_is_cut_off(server: BoundedServer) -> None:
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


def test_a_client_that_waits_for_its_answer_may_wait(server: BoundedServer) -> None:
    """Slowness of ours is not held against a client."""
    client = server.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_until(lambda: len(server.connections) == 1 and server.connections[0].cycle is not None)
    server.look(0, 100, 1000)
    server.loop.call_soon_threadsafe(server.release.set)
    assert answer(client).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_ends_anyway_is_left_alone(server: BoundedServer) -> None:
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


def test_an_idle_connection_is_kept_a_while(server: BoundedServer) -> None:
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


def test_what_was_refused_does_not_linger(server: BoundedServer) -> None:
    """A client that goes on sending after a refusal is cut off."""
    client = server.connect(b"rubbish\r\n\r\n")
    answer(client)
    server.look(LINGER_S + 1)
    wait_until(lambda: not server.connections)
    client.close()


def test_a_real_server_looks_at_its_connections(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so by itself, about once a second."""
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as waiting:
        waiting.sendall(b"GET / HT")
        assert is_problem(read(waiting), 408)
