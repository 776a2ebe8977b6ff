import re
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import tiny_models
from live_server import wait_until
from serving_process import MODEL, PNG, Serving, Start, point_at

from pipeline import images
from pipeline.settings import Settings
from pipeline.zones import Zones

SAME = {"X-Request-Id": "same"}
WAITING = 20
"""Requests that are sent at once to a server which answers ten a second."""
SLOW = tiny_models.slow_onnx(tiny_models.DATASET, 1, ms=100)

ANSWER = re.compile(rb"HTTP/1.1 (\d+) (?:[^\n]+\n)+?content-length: (\d+)\r\n(?:[^\r]+\r\n)*\r\n", re.IGNORECASE)
"""The head of one, with its status and the size of its body."""


def head(*lines: str, length: int = len(PNG)) -> bytes:
    """Of a request for a prediction."""
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]).encode()


@contextmanager
def connected(server: Serving) -> Iterator[socket.socket]:
    """A connection."""
    url = server.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        yield connection


def answers(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Status and body of the next so many answers."""
    found, data = [], b""
    while len(found) < count:
        data += (more := connection.recv(65536))
        assert more, data
        while complete := ANSWER.match(data):
            end = complete.end() + int(complete[2])
            if len(data) < end:
                break
            found.append((int(complete[1]), data[complete.end() : end]))
            data = data[end:]
    assert not data
    return found


@pytest.fixture
def server(zones: Zones, zone_settings: Settings, start: Start) -> Serving:
    """A server at which version 1 is live."""
    return at(zones, start(zone_settings), None)


@pytest.fixture
def slow(zones: Zones, zone_settings: Settings, start: Start) -> Serving:
    """One that takes a tenth of a second for each image, and lets nobody wait for longer than a quarter."""
    return at(zones, start(zone_settings, QUEUE_MS="250"), SLOW)


def at(zones: Zones, server: Serving, onnx_file: bytes | None) -> Serving:
    """The server, once a version is live."""
    version = tiny_models.register(zones.checkpoints, zones.models, MODEL, 1, onnx_file=onnx_file)
    point_at(zones, version)
    server.wait_for(version)
    return server


def test_both_ways_give_the_same_bytes(server: Serving) -> None:
    """A plain body, one of unknown length, one whose sender asks first, and a form: the same answer."""
    plain = server.client.post("/predict", content=PNG, headers=SAME)
    chunked = server.client.post("/predict", content=iter([PNG[:20], PNG[20:]]), headers=SAME)
    asking = server.client.post("/predict", content=PNG, headers=SAME | {"Expect": "100-continue"})
    form = server.client.post("/predict", files={"image": ("a.png", PNG)}, headers=SAME)
    assert plain.status_code == 200
    assert chunked.content == asking.content == form.content == plain.content
    for answer in (plain, chunked, asking, form):
        assert answer.headers["x-request-id"] == "same"
        assert answer.headers["content-type"] == "application/json"
    assert dict(plain.headers).keys() == dict(form.headers).keys()


def test_a_body_may_come_in_pieces(server: Serving) -> None:
    """Byte by byte, on a connection that is used again."""
    with connected(server) as connection:
        for _ in range(2):
            for byte in head(*["X-Request-Id: same"]) + PNG:
                connection.send(bytes([byte]))
            ((status, body),) = answers(connection, 1)
            assert (status, body) == (200, server.client.post("/predict", content=PNG, headers=SAME).content)


def test_requests_that_did_not_wait_are_answered_in_order(server: Serving) -> None:
    """Several at once on one connection, with a form and a bad image among them."""
    other = images.encode_png(tiny_models.picture(6))
    expected = [server.client.post("/predict", content=each, headers=SAME) for each in (PNG, b"text", other, PNG)]
    boundary = "--x\r\nContent-Disposition: form-data; name=a; filename=a\r\n\r\n"
    form = boundary.encode() + other + b"\r\n--x--\r\n"
    same = "X-Request-Id: same"
    with connected(server) as connection:
        connection.sendall(
            head(same)
            + PNG
            + head(same, length=4)
            + b"text"
            + head(same, "Content-Type: multipart/form-data; boundary=x", length=len(form))
            + form
            + head(same)
            + PNG
        )
        assert answers(connection, 4) == [(each.status_code, each.content) for each in expected]


@pytest.mark.parametrize("line", ["Connection: close", "connection: Close"])
def test_a_connection_ends_where_its_client_wants_it(server: Serving, line: str) -> None:
    """The answer comes, and then the end."""
    with connected(server) as connection:
        connection.sendall(head(line) + PNG)
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close\r\n" in data.lower()


def test_what_is_wrong_is_a_problem_on_both_ways(server: Serving) -> None:
    """The same status and sentence for a bad image as a plain body and as a form."""
    plain = server.client.post("/predict", content=b"text")
    form = server.client.post("/predict", files={"image": ("a.png", b"text")})
    assert plain.status_code == form.status_code == 422
    assert plain.headers["content-type"] == form.headers["content-type"] == "application/problem+json"
    assert plain.json() == form.json()


def test_a_deadline_is_kept_or_refused(slow: Serving) -> None:
    """One that cannot be kept is refused without a computation, and an odd one is named."""
    before = predicted(slow)
    late = slow.client.post("/predict", content=PNG, headers={"X-Request-Timeout-Ms": "0"})
    soon = slow.client.post("/predict", content=PNG, headers={"X-Request-Timeout-Ms": "1"})
    odd = slow.client.post("/predict", content=PNG, headers={"X-Request-Timeout-Ms": "soon"})
    assert late.status_code == 504
    assert soon.status_code in (429, 504)
    assert odd.status_code == 400
    assert "'soon' is not a number of milliseconds" in odd.json()["detail"]
    assert predicted(slow) == before
    assert slow.client.post("/predict", content=PNG, headers={"X-Request-Timeout-Ms": "5000"}).status_code == 200


def predicted(server: Serving) -> int:
    """Images that the server has classified."""
    found = re.findall(r"^safelight_predictions_total\{.*\} (\S+)", server.get("/metrics").text, re.MULTILINE)
    return int(sum(map(float, found)))


def rejected(server: Serving, reason: str) -> int:
    """Requests that it did not work on, for a reason."""
    found = re.search(
        rf'^safelight_rejections_total\{{reason="{reason}"\}} (\S+)', server.get("/metrics").text, re.MULTILINE
    )
    return int(float(found[1])) if found else 0


def test_nothing_is_computed_for_clients_that_have_left(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Of many who ask and go, all of whom may wait, only those are computed whose turn had come before they went."""
    server = at(zones, start(zone_settings, QUEUE_MS="60000"), SLOW)
    for _ in range(WAITING):
        with connected(server) as connection:
            connection.sendall(head() + PNG)
    wait_until(lambda: rejected(server, "gone") + predicted(server) == WAITING)
    assert rejected(server, "gone") > WAITING / 2


def asked(server: Serving, count: int) -> Sequence[tuple[httpx.Response, float]]:
    """Answers to so many clients that ask at once, several times each, and how long each waited, in seconds."""

    def one(_: int) -> list[tuple[httpx.Response, float]]:
        found = []
        with httpx.Client(base_url=server.client.base_url, trust_env=False, timeout=30) as client:
            for _ in range(3):
                begun = time.perf_counter()
                answer = client.post("/predict", content=PNG)
                found.append((answer, time.perf_counter() - begun))
        return found

    with ThreadPoolExecutor(count) as pool:
        return [each for found in pool.map(one, range(count)) for each in found]


def test_who_would_wait_too_long_is_refused_at_once(slow: Serving) -> None:
    """Under more load than it can bear it goes on answering, tells the others when to come again, and then is idle."""
    found = asked(slow, 40)
    refused = [(answer, waited) for answer, waited in found if answer.status_code == 429]
    accepted = [waited for answer, waited in found if answer.status_code == 200]
    assert len(refused) + len(accepted) == len(found)
    assert refused
    assert accepted
    for answer, _ in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert "try again later" in answer.json()["detail"]
    assert rejected(slow, "overload") == len(refused)
    assert slow.client.post("/predict", content=PNG).status_code == 200
    assert predicted(slow) == len(accepted) + 1


def test_a_slow_model_does_not_keep_the_server_from_answering(
    zones: Zones, zone_settings: Settings, start: Start
) -> None:
    """While many wait for predictions that take seconds, whoever asks for something else gets it before them."""
    server = at(zones, start(zone_settings), SLOW)
    with ThreadPoolExecutor(WAITING) as pool:
        busy = [pool.submit(httpx.post, f"{server.client.base_url}/predict", content=PNG) for _ in range(WAITING)]
        wait_until(lambda: predicted(server) > 0)
        assert server.client.get("/v2/health/ready").status_code == 200
        assert not all(each.done() for each in busy)
