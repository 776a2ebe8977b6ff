"""SeaweedFS, real: its ports, buckets that behave like S3's, and what a person's machine does to it."""

import hashlib
import os
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import S3Error
from minio.signer import sign_v4_s3
from own_store import BUCKET, CONTENT, bucket_in, objects, send, service_of, spare_port

from pipeline import buckets, embedded_store, seaweedfs
from pipeline.embedded_store import Connection
from pipeline.errors import LocalServiceFailed
from pipeline.seaweedfs import GRPC_OFFSET


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of this test's own, in which no store runs afterwards."""
    yield tmp_path / "home"
    embedded_store.down(tmp_path / "home")


# Its ports


@pytest.mark.parametrize("offset", [0, GRPC_OFFSET, 3])
def test_a_busy_port_is_replaced(home: Path, offset: int) -> None:
    """Where the preferred port, its pair or a neighbour is taken, the store takes a free one and works."""
    port = spare_port()
    with socket.create_server(("127.0.0.1", port + offset)):
        connection = embedded_store.up(home, port)
        ports = service_of(home).ports
        assert port + offset not in {p + o for p in ports.values() for o in (0, GRPC_OFFSET)}
        assert (ports["s3"] == port) == (offset == 3)
        obstore.put(bucket_in(connection), "key", CONTENT)


@pytest.mark.parametrize("port", [60_000, 65_535])
def test_a_port_too_high_for_its_pair_is_replaced(home: Path, port: int) -> None:
    """A preferred port whose pair would be no port is replaced too."""
    assert embedded_store.up(home, port).endpoint != f"http://127.0.0.1:{port}"


# Behaving like S3


def test_six_buckets_can_be_written(home: Path) -> None:
    """There is room for a volume in each of six buckets, with sixteen writers at once."""
    connection = embedded_store.up(home, spare_port())
    stores = [bucket_in(connection, f"bucket-{number}") for number in range(6)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: obstore.put(stores[number % 6], f"{number}", CONTENT), range(300)))
    assert [len(obstore.list(store).collect()) for store in stores] == [50] * 6


@pytest.mark.parametrize("header", ["x-amz-checksum-sha256", "Content-MD5"])
def test_a_body_altered_on_its_way_is_refused(home: Path, header: str) -> None:
    """A body that does not match the checksum sent with it is not stored; one that does, is."""
    connection = embedded_store.up(home, spare_port())
    store = bucket_in(connection)
    digest = hashlib.sha256 if "sha256" in header else hashlib.md5
    checksum = b64encode(digest(CONTENT).digest()).decode()
    assert signed_put(connection, "right", CONTENT, {header: checksum}) == 200
    assert signed_put(connection, "wrong", CONTENT.upper(), {header: checksum}) == 400
    assert [meta["path"] for page in obstore.list(store) for meta in page] == ["right"]


def signed_put(connection: Connection, key: str, data: bytes, headers: dict[str, str]) -> int:
    """Status of a signed put with further headers."""
    url, now = urlsplit(f"{connection.endpoint}/{BUCKET}/{key}"), datetime.now(UTC)
    sha256 = hashlib.sha256(data).hexdigest()
    signed = sign_v4_s3(
        method="PUT",
        url=url,
        region=connection.region,
        headers={"Host": url.netloc, "x-amz-content-sha256": sha256, "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}", **headers},
        credentials=StaticProvider(connection.access_key_id, connection.secret_access_key).retrieve(),
        content_sha256=sha256,
        date=now,
    )
    return send(url.port or 80, "PUT", url.path, data, {name: str(value) for name, value in signed.items()}).status


def test_an_upload_never_creates_a_bucket(home: Path) -> None:
    """Writing into a bucket that does not exist is an error, as on S3."""
    connection = embedded_store.up(home, spare_port())
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(objects(connection, bucket="typo"), "key", CONTENT)


def test_only_an_empty_bucket_can_be_deleted(home: Path) -> None:
    """Deleting a bucket that holds something is refused, as on S3, and what it holds stays."""
    connection = embedded_store.up(home, spare_port())
    store = bucket_in(connection)
    obstore.put(store, "key", CONTENT)
    host = connection.endpoint.removeprefix("http://")
    client = Minio(host, connection.access_key_id, connection.secret_access_key, secure=False, region="us-east-1")
    with pytest.raises(S3Error, match="BucketNotEmpty"):
        client.remove_bucket(BUCKET)
    obstore.delete(store, "key")
    client.remove_bucket(BUCKET)


# What a person's machine does to it


def test_the_persons_own_settings_do_not_leak_in(home: Path, tmp_path: Path) -> None:
    """AWS keys and SeaweedFS settings of the person's own shell and home have no effect on the store."""
    elsewhere = tmp_path / "elsewhere"
    for place in (tmp_path / ".seaweedfs", home / "store" / ".seaweedfs"):
        place.mkdir(parents=True)
        (place / "filer.toml").write_text(f'[leveldb3]\nenabled = true\ndir = "{elsewhere}"\n')
    hostile = {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "PERSONSOWNKEY",
        "AWS_SECRET_ACCESS_KEY": "PERSONSOWNSECRET",
        "WEED_JWT_SIGNING_KEY": "known to all",
        "WEED_GRPC_CA": "/no/such/file",
        "S3_BUCKET": "surprise",
    }
    code = f"import pathlib, pipeline.embedded_store as e; e.up(pathlib.Path({str(home)!r}), {spare_port()})"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **hostile}, check=True, timeout=60)
    connection = embedded_store.up(home)
    assert not elsewhere.exists()
    assert not buckets.answers(connection.endpoint, "PERSONSOWNKEY", "PERSONSOWNSECRET", connection.region)
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(objects(connection, bucket="surprise"), "key", CONTENT)


def test_a_missing_server_is_one_sentence(tmp_path: Path) -> None:
    """Without the package and without a binary on the PATH, the sentence names the package and the other way out."""
    with pytest.raises(LocalServiceFailed, match=r"needs the package no-such-package: .*SAFELIGHT_S3_ENDPOINT\.$"):
        seaweedfs.find_server("no-such-package", str(tmp_path))
