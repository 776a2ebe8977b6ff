"""What all tests share: a real object store, and zones of their own in it; no property is judged by its time."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import settings as property_settings
from pydantic import SecretStr

from pipeline import buckets, embedded_store
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

BUCKET = "safelight-tests"

property_settings.register_profile("untimed", deadline=None)
property_settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let the processes that tests start see Ctrl-C, also where a shell started the tests in its background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def store_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a real S3 endpoint: the embedded store, or SAFELIGHT_TEST_S3=http://KEY:SECRET@HOST:PORT."""
    home = tmp_path_factory.mktemp("home")
    outside = os.environ.get("SAFELIGHT_TEST_S3")
    if outside:
        url = urlsplit(outside)
        yield _settings(home, f"{url.scheme}://{url.hostname}:{url.port}", url.username or "", url.password or "")
        return
    connection = embedded_store.up(home)
    try:
        yield _settings(home, connection.endpoint, connection.access_key_id, connection.secret_access_key)
    finally:
        embedded_store.down(home)


@pytest.fixture(scope="session")
def new_zone_settings(store_settings: Settings) -> Callable[[], Settings]:
    """Makes settings whose zones are empty folders of one bucket; for who shares them among tests."""
    return lambda: store_settings.model_copy(update={"store_url": f"s3://{BUCKET}/{secrets.token_hex(6)}"})


@pytest.fixture
def zone_settings(new_zone_settings: Callable[[], Settings]) -> Settings:
    """Settings whose zones are empty folders of one bucket, this test's own."""
    return new_zone_settings()


@pytest.fixture(scope="module")
def shared_zone_settings(new_zone_settings: Callable[[], Settings]) -> Settings:
    """The same, shared by the tests of a file."""
    return new_zone_settings()


@pytest.fixture
def zones(zone_settings: Settings) -> Zones:
    """Empty zones, this test's own."""
    return open_zones(zone_settings)


def _settings(home: Path, endpoint: str, key: str, secret: str) -> Settings:
    buckets.create_buckets(endpoint, key, secret, "us-east-1", [BUCKET])
    return Settings(
        home=home, s3_endpoint=endpoint, s3_access_key_id=SecretStr(key), s3_secret_access_key=SecretStr(secret)
    )
