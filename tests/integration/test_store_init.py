"""Buckets on a real store; and, since no store with MinIO's administration can be had here, what one would be sent."""

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from integration.test_buckets import known
from minio import Minio
from minio.crypto import decrypt
from urllib3 import HTTPResponse

from pipeline import buckets, store_init
from pipeline.errors import AccessDenied, InvalidSettings, StoreError, StoreUnavailable
from pipeline.settings import ZONES, Settings
from pipeline.store_users import BATCHES, bucket, policy

ROOT = ("root", "root-secret")
KEY = ("worker-1a2b3c4d", "a-secret-of-the-worker")


def test_buckets_keep_versions_and_a_second_time_changes_nothing(store_settings: Settings) -> None:
    """Each zone's bucket is versioned, its old versions go in the end, and objects outlive another start."""
    endpoint, key, secret, region = known(store_settings)
    client = Minio(urlsplit(endpoint).netloc, key, secret, secure=False, region=region)
    store_init.initialise(store_settings, {})
    client.put_object(bucket("images"), "kept", io.BytesIO(b"kept"), 4)
    store_init.initialise(store_settings, {})
    assert client.get_object(bucket("images"), "kept").read() == b"kept"
    for zone in ZONES:
        assert client.get_bucket_versioning(bucket(zone)).status == "Enabled"
        lifecycle = client.get_bucket_lifecycle(bucket(zone))
        assert lifecycle is not None
        kept = [rule.noncurrent_version_expiration for rule in lifecycle.rules]
        assert [each.noncurrent_days for each in kept if each] == [store_init.KEPT_DAYS]
        ends = {rule.rule_filter.prefix: rule.expiration.days for rule in lifecycle.rules if rule.expiration}
        assert set(ends.values()) == ({store_settings.predictions_retention_days} if zone == "predictions" else set())
        assert {key.startswith(tuple(ends)) for key in ("shapes/date=2026-11-22/log.parquet", "0/a")} == {bool(ends)}
        assert not f"{BATCHES}/shapes/a/part-00000.parquet".startswith(tuple(ends))
    store_init.initialise(store_settings.model_copy(update={"predictions_retention_days": 0}), {})
    lifecycle = client.get_bucket_lifecycle(bucket("predictions"))
    assert lifecycle is not None
    assert not any(rule.expiration for rule in lifecycle.rules)


def test_a_store_without_that_administration_is_named(store_settings: Settings) -> None:
    """SeaweedFS, told to create a user, is refused with what to do instead."""
    with pytest.raises(StoreError, match=r"users as docs/operations.md says|refuses its root"):
        buckets.set_user(*known(store_settings), "worker", key=KEY, policy=policy("worker"))


def test_without_a_store_it_says_what_is_missing() -> None:
    """No endpoint is one sentence."""
    with pytest.raises(InvalidSettings, match="SAFELIGHT_S3_ENDPOINT"):
        store_init.initialise(Settings(), {})


@dataclass
class _Administration:
    """Answers MinIO's administration with ``status``, and remembers what it was asked."""

    url: str
    status: int = 200
    asked: list[tuple[str, str, dict[str, list[str]], bytes]] = field(default_factory=list)


@pytest.fixture
def administration() -> Iterator[_Administration]:
    """A server on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            assert f"Credential={ROOT[0]}/" in self.headers["Authorization"]
            found.asked.append((self.command, url.path, parse_qs(url.query), body))
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing: the test says what was asked."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = _Administration(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_a_user_is_made_of_a_policy_a_key_and_the_two_together(administration: _Administration) -> None:
    """In that order, so that a user never has another right than its policy's; the secret travels encrypted."""
    buckets.set_user(administration.url, *ROOT, "us-east-1", "worker", key=KEY, policy=policy("worker"))
    added, made, bound = administration.asked
    assert added[:3] == ("PUT", "/minio/admin/v3/add-canned-policy", {"name": ["safelight-worker"]})
    assert json.loads(added[3]) == policy("worker")
    assert made[:3] == ("PUT", "/minio/admin/v3/add-user", {"accessKey": [KEY[0]]})
    assert KEY[1].encode() not in made[3]
    opened = decrypt(HTTPResponse(body=io.BytesIO(made[3]), preload_content=False), ROOT[1])
    assert json.loads(opened) == {"status": "enabled", "secretKey": KEY[1]}
    assert bound[:2] == ("PUT", "/minio/admin/v3/set-user-or-group-policy")
    assert bound[2]["policyName"] == ["safelight-worker"]
    assert bound[2]["userOrGroup"] == [KEY[0]]


@pytest.mark.parametrize(
    ("status", "error"), [(503, StoreUnavailable), (403, AccessDenied), (404, StoreError), (400, StoreError)]
)
def test_a_refusal_is_one_sentence(administration: _Administration, status: int, error: type[Exception]) -> None:
    """A store that is starting is waited for by who asks; any other refusal is final, and says why."""
    administration.status = status
    with pytest.raises(error) as raised:
        buckets.set_user(administration.url, *ROOT, "us-east-1", "worker", key=KEY, policy=policy("worker"))
    assert raised.type is error
    assert str(raised.value).count(". ") == 0
    assert len(administration.asked) == 1
