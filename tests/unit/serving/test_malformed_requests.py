"""Clients that send what is not HTTP/1.1, or could be read in two ways, over real sockets."""

import pytest
from bounded_server import HEAD, POST, BoundedServer, answer, is_problem, read
from live_server import wait_until

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
def test_what_is_not_http_is_a_400(server: BoundedServer, name: str) -> None:
    """A request that cannot be parsed is answered as a problem that says why, and disturbs nobody."""
    assert is_problem(read(server.connect(UNREADABLE[name])), 400).startswith("The request is not HTTP/1.1: ")
    assert server.refused == ["invalid"]
    assert answer(server.connect(HEAD + b"\r\n")).endswith(b"\r\n\r\n0")


def test_rubbish_behind_a_request_does_not_answer_for_it(server: BoundedServer) -> None:
    """What was asked before is answered, with its own answer, and then the connection ends."""
    client = server.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n", b"rubbish\r\n\r\n")
    wait_until(lambda: server.refused == ["invalid"])
    server.loop.call_soon_threadsafe(server.release.set)
    got = read(client)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("offer", [b"Upgrade: h2c", b"upgrade: websocket"])
def test_an_offer_of_another_protocol_is_declined(server: BoundedServer, offer: bytes) -> None:
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


def test_an_offer_behind_another_request_is_no_way_in(server: BoundedServer) -> None:
    """Where one request could be read as part of another, it is refused."""
    first = POST + b"Content-Length: 5\r\n\r\nhello"
    offer = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
    got = read(server.connect(first + offer))
    assert got.count(b"HTTP/1.1 200 ") == 1
    assert got.count(b"HTTP/1.1") == 1
    assert server.refused == ["invalid"]
