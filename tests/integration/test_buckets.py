"""Buckets of a real store: created once by whoever comes first, and what is said when they cannot be."""

import secrets
import socket
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
from environs import credentials
from minio import Minio
from obstore.store import S3Store

from pipeline import buckets
from pipeline.errors import AccessDenied, InvalidSettings, StoreUnavailable
from pipeline.settings import Settings


def known(settings: Settings) -> tuple[str, str, str, str]:
    """Endpoint, credentials and region, as the functions of ``buckets`` take them."""
    assert settings.s3_endpoint is not None
    return settings.s3_endpoint, *credentials(settings), settings.s3_region


def opened(settings: Settings, name: str) -> S3Store:
    """One bucket, for reading and writing."""
    endpoint, key, secret, region = known(settings)
    return S3Store(
        name,
        endpoint=endpoint,
        access_key_id=key,
        secret_access_key=secret,
        region=region,
        client_options={"allow_http": True},
    )


def fresh_name() -> str:
    """A name that no bucket has."""
    return f"test-{secrets.token_hex(8)}"


def test_buckets_can_be_used_at_once_and_creating_again_keeps_them(store_settings: Settings) -> None:
    """Created buckets take objects right away; creating them again, with one more, loses nothing."""
    first, second = fresh_name(), fresh_name()
    buckets.create_buckets(*known(store_settings), [first])
    obstore.put(opened(store_settings, first), "key", b"kept")
    buckets.create_buckets(*known(store_settings), [first, second])
    assert obstore.get(opened(store_settings, first), "key").bytes() == b"kept"
    assert opened(store_settings, second).list().collect() == []


def test_creating_the_same_bucket_at_once_is_fine(store_settings: Settings) -> None:
    """Eight callers that create the same bucket at the same moment all succeed."""
    for _ in range(5):
        name = fresh_name()
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: buckets.create_buckets(*known(store_settings), [name]), range(8)))  # noqa: B023 - used at once
        assert results == [None] * 8


@pytest.mark.parametrize("versioning", [False, True])
def test_versions_are_kept_if_asked_for(store_settings: Settings, versioning: bool) -> None:
    """With versioning a replaced object stays readable as a version; without, it is gone."""
    endpoint, key, secret, region = known(store_settings)
    name = fresh_name()
    buckets.create_buckets(endpoint, key, secret, region, [name], versioning=versioning)
    for text in (b"old", b"new"):
        obstore.put(opened(store_settings, name), "key", text)
    client = Minio(endpoint.removeprefix("http://"), key, secret, secure=False, region=region)
    versions = list(client.list_objects(name, include_version=True))
    assert len(versions) == (2 if versioning else 1)


@pytest.mark.parametrize("name", ["A", "ab", "with space", "under_score", "x" * 64, ""])
def test_an_impossible_name_is_named(store_settings: Settings, name: str) -> None:
    """What cannot be a bucket's name is refused in a sentence that quotes it."""
    with pytest.raises(InvalidSettings, match=rf"^The bucket {name!r} at http\S+ cannot be addressed: .*\.$"):
        buckets.create_buckets(*known(store_settings), [name])


@pytest.mark.parametrize("unknown_key", [False, True])
def test_refused_credentials_are_one_sentence(store_settings: Settings, unknown_key: bool) -> None:
    """A wrong secret or an unknown key says who refuses what, and both ways out."""
    endpoint, key, _, region = known(store_settings)
    name = fresh_name()
    with pytest.raises(AccessDenied, match=rf"^{endpoint} refuses .* bucket {name} \(.*SAFELIGHT_STORE_URL=s3://"):
        buckets.create_buckets(endpoint, "UNKNOWN" if unknown_key else key, "wrong" * 8, region, [name])
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.get(opened(store_settings, name), "key")


def test_no_answer_is_one_sentence() -> None:
    """Where nothing listens, or something that is no HTTP server, the sentence names the endpoint and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as quiet:
        endpoint = f"http://127.0.0.1:{quiet.getsockname()[1]}"
    with pytest.raises(StoreUnavailable, match=rf"^No S3 object store answers at {endpoint}: .*SAFELIGHT_S3_ENDPOINT"):
        buckets.create_buckets(endpoint, "key", "secret", "us-east-1", ["bucket"])
    assert not buckets.answers(endpoint, "key", "secret", "us-east-1")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://", "s3://bucket", "http://host:9000/path", ""])
def test_an_endpoint_that_cannot_be_one_is_named(endpoint: str) -> None:
    """What is not of the form http://host:port is refused before anything is sent."""
    with pytest.raises(InvalidSettings, match=r"^SAFELIGHT_S3_ENDPOINT: '.*' is not of the form http://host:port\.$"):
        buckets.create_buckets(endpoint, "key", "secret", "us-east-1", ["bucket"])


def test_a_store_answers_who_has_its_credentials(store_settings: Settings) -> None:
    """A store answers to its own credentials, not to others."""
    endpoint, key, secret, region = known(store_settings)
    assert buckets.answers(endpoint, key, secret, region)
    assert not buckets.answers(endpoint, key, "wrong" * 8, region)
