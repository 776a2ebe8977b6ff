"""Clients that send more, or come in greater number, than the server takes in, over real sockets."""

import re
import threading

import pytest
from bounded_server import HEAD, POST, BoundedServer, answer, bounded_server, is_problem, read, send
from live_server import wait_until

from serving.connections import HEAD_BYTES, HEADERS


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
def test_a_head_over_the_limit_is_a_431(server: BoundedServer, head: bytes) -> None:
    """Endless targets, headers and trailers are refused while they come, and the client gets to read why."""
    client = server.connect()
    sending = threading.Thread(target=send, args=(client, head))
    sending.start()
    assert "32 KiB or 100 headers" in is_problem(read(client), 431)
    sending.join()
    assert server.limits.held <= HEAD_BYTES


def test_what_follows_a_refusal_is_thrown_away_to_an_end(server: BoundedServer) -> None:
    """A client that is told 413 and sends on reads that one answer, and is cut off four bodies later."""
    client = server.connect(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert b" 413 " in answer(client)
    client.sendall(bytes(5 << 20))
    wait_until(lambda: server.refused == ["too_large"])
    assert read(client) == b""
    assert server.limits.held == 0


def test_chunks_of_one_byte_have_an_end_too(server: BoundedServer) -> None:
    """Framing does not go on for ever where the body itself stays small."""
    client = server.connect(POST + b"Transfer-Encoding: chunked\r\n\r\n1;")
    sending = threading.Thread(target=send, args=(client, b"a" * (6 << 20)))
    sending.start()
    assert "1 MiB" in is_problem(read(client), 413)
    sending.join()


def test_unanswered_bodies_have_a_bound_together(server: BoundedServer) -> None:
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
    with bounded_server(connections=4) as server:
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


def test_pipelined_requests_are_answered_in_order_up_to_a_number(server: BoundedServer) -> None:
    """Those that were sent together are answered one by one; an endless row of them is not taken in."""
    several = b"".join(POST + b"Content-Length: %d\r\n\r\n" % n + bytes(n) for n in range(10))
    client = server.connect(several + HEAD + b"Connection: close\r\n\r\n")
    assert re.findall(rb"\r\n\r\n(\d)", read(client)) == [b"%d" % n for n in [*range(10), 0]]
    assert read(server.connect((HEAD + b"\r\n") * 2000)).count(b"HTTP/1.1 200 ") <= 18
    assert server.refused == ["too_large"]
