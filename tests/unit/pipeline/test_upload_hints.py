"""What a store's webhook is understood to say, and who may say it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import httpx
import pytest

from pipeline import upload_hints
from pipeline.upload_hints import Endpoint

ZONE = "s3://pictures/all/images"
TOKEN = "a token"  # noqa: S105 - of this test


def notification(*keys: str, bucket: str = "pictures") -> bytes:
    """An S3 event notification, as stores send it."""
    records = [
        {"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}
        for key in keys
    ]
    return json.dumps({"Records": records}).encode()


@contextmanager
def listening(token: str | None = TOKEN, *, well: bool = True) -> Iterator[tuple[httpx.Client, list[bool]]]:
    """A client of an endpoint, and what the endpoint was hinted."""
    hints: list[bool] = []
    server = Endpoint(("127.0.0.1", 0), zone=ZONE, token=token, hint=lambda: hints.append(True), is_well=lambda: well)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", trust_env=False) as client:
            yield client, hints
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_datasets_of_a_notification() -> None:
    """Keys are unescaped, looked for below the zone, and belong to the dataset that they begin with."""
    body = notification("all/images/cats/a%20b/1.png", "all/images/dogs/x/2.png", "all/models/m/1", "all/images/loose")
    assert upload_hints.datasets_in(body, ZONE) == {"cats", "dogs"}
    assert upload_hints.datasets_in(notification("all/images/cats/a/1.png", bucket="other"), ZONE) == set()
    assert upload_hints.datasets_in(notification("cats/a/1.png"), "s3://pictures") == {"cats"}


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"Records": [{}]}', b'{"Records": 1}', b"\xff\xfe", b"null"])
def test_what_is_no_notification_is_refused(body: bytes) -> None:
    """Whatever is sent, the answer is a refusal, and the endpoint lives on."""
    with listening() as (client, hints):
        refused = client.post("/", content=body, headers={"Authorization": f"Bearer {TOKEN}"})
        assert refused.status_code == 400
        assert client.get("/health").status_code == 200
    assert not hints


def test_only_the_token_is_listened_to() -> None:
    """With it a notification is a hint; with another, without one, and where none is set, it is not."""
    body = notification("all/images/cats/a/1.png")
    with listening() as (client, hints):
        assert client.post("/", content=body, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 204
        assert hints == [True]
        assert client.post("/", content=body, headers={"Authorization": "Bearer another"}).status_code == 401
        assert client.post("/", content=body).status_code == 401
        assert hints == [True]
    with listening(None) as (client, hints):
        assert client.post("/", content=body, headers={"Authorization": "Bearer None"}).status_code == 401
        assert not hints


def test_what_concerns_other_buckets_is_no_hint() -> None:
    """It is accepted, since the store did nothing wrong, and has no effect."""
    with listening() as (client, hints):
        sent = client.post("/", content=notification("x/y", bucket="z"), headers={"Authorization": f"Bearer {TOKEN}"})
        assert sent.status_code == 204
    assert not hints


def test_a_body_that_is_too_large_is_not_read() -> None:
    """It is refused by its length."""
    with listening() as (client, _):
        sent = HTTPConnection(client.base_url.host, client.base_url.port or 80)
        sent.putrequest("POST", "/")
        sent.putheader("Authorization", f"Bearer {TOKEN}")
        sent.putheader("Content-Length", str(upload_hints.LARGEST_BODY + 1))
        sent.endheaders()
        assert sent.getresponse().status == 413
        sent.close()


def test_health_tells_whether_the_watching_goes_on() -> None:
    """A watch that hangs is seen from outside."""
    with listening(well=False) as (client, _):
        assert client.get("/health").status_code == 503
