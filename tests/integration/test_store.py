"""The object store's promises, on a real S3 server."""

import hashlib
import re
import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from integration.test_buckets import known
from pydantic import SecretStr

from pipeline import buckets, store_check
from pipeline.errors import (
    AccessDenied,
    Conflict,
    Corrupted,
    InvalidSettings,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from pipeline.zones import Zones, open_zones


@pytest.fixture
def store(zones: Zones) -> Store:
    """An empty zone."""
    return zones.images


def test_what_is_put_is_got(store: Store) -> None:
    """Bytes come back as they were put, under names with spaces, accents and signs too."""
    for key in ("plain", "a b/é ü.png", "ünï/日本.png", "a#b?c%20d+e&f", "empty"):
        data = b"" if key == "empty" else key.encode()
        store.put(key, data)
        assert store.get(key) == data
        found = store.head(key)
        assert found is not None
        assert (found.key, found.size) == (key, len(data))


def test_what_is_missing_is_said_so(store: Store) -> None:
    """A missing object is ObjectMissing or None, and deleting it is no error."""
    with pytest.raises(ObjectMissing, match="nowhere"):
        store.get("nowhere")
    assert store.get_if_present("nowhere") is None
    assert store.head("nowhere") is None
    store.delete(["nowhere"])


def test_a_listing_has_every_page(store: Store) -> None:
    """More objects than one page holds are listed once each; a folder lists only what is below it."""
    keys = {f"many/{number // 100}/{number}" for number in range(2300)}
    assert list(store.write_many((key, b"x") for key in sorted(keys))) == sorted(keys)
    store.put("many-others", b"x")
    listed = [found.key for found in store.listing("many")]
    assert len(listed) == len(keys)
    assert set(listed) == keys
    assert store.folders("many") == sorted({key.split("/")[1] for key in keys})


def test_reading_many_keeps_the_order_and_marks_the_gone(store: Store) -> None:
    """Objects come in the order asked for; one that vanished meanwhile comes as None."""
    wanted = {f"read/{number}": bytes([number]) for number in range(100)}
    list(store.write_many(wanted.items()))
    objects = sorted(store.listing("read"), key=lambda found: found.key)
    store.delete([objects[50].key])
    read = list(store.read_many(objects))
    assert [found for found, _ in read] == objects
    assert [data for _, data in read] == [None if i == 50 else wanted[o.key] for i, o in enumerate(objects)]


def test_reading_many_can_be_left_early(store: Store) -> None:
    """Leaving the loop after the first object ends the threads that read ahead."""
    list(store.write_many((f"early/{number}", b"x" * 1000) for number in range(200)))
    before = threading.active_count()
    reading = store.read_many(store.listing("early"))
    next(reading)
    reading.close()
    assert threading.active_count() <= before


def test_writing_many_says_what_is_stored_before_it_fails(store: Store) -> None:
    """Keys before one that cannot be stored are yielded, then the error comes and names it."""
    keys = [f"partly/{number}" for number in range(50)]
    keys[40] = "partly/../40"
    written = store.write_many((key, b"x") for key in keys)
    assert [next(written) for _ in range(40)] == keys[:40]
    with pytest.raises(StoreError, match=re.escape(keys[40])):
        next(written)


def test_altered_bytes_are_noticed(store: Store) -> None:
    """Bytes that are not those of the manifest are never returned."""
    store.put("object", b"right")
    digest = hashlib.sha256(b"right").hexdigest()
    assert store.get_verified("object", digest) == b"right"
    store.put("object", b"wrong")
    with pytest.raises(Corrupted, match="object"):
        store.get_verified("object", digest)


def test_the_first_writer_wins(store: Store) -> None:
    """Of many that write one key once, all get the first one's bytes."""
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda number: store.write_once("once", b"%d" % number), range(64)))
    assert set(got) == {store.get("once")}


def test_no_update_is_lost(store: Store) -> None:
    """A counter that 8 threads raise by compare-and-swap counts every success exactly once."""

    def raise_once(_: int) -> None:
        while True:
            data, etag = store.get_with_etag("counter")
            value = int(data.split()[0])
            try:
                store.compare_and_swap("counter", b"%d %s" % (value + 1, secrets.token_hex(8).encode()), etag=etag)
            except Conflict:
                continue
            return

    store.compare_and_swap("counter", b"0 start", etag=None)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(raise_once, range(80)))
    assert store.get("counter").split()[0] == b"80"


def test_a_repeated_write_that_was_unanswered_counts_as_won(store: Store) -> None:
    """When our own bytes are there already, a refused swap is a success; another's bytes are a conflict."""
    store.compare_and_swap("settled", b"mine", etag=None)
    store.compare_and_swap("settled", b"mine", etag=None)
    with pytest.raises(Conflict):
        store.compare_and_swap("settled", b"other", etag=None)


def test_a_swap_needs_the_object(store: Store) -> None:
    """A swap of an object that is gone is a conflict, and creates nothing."""
    with pytest.raises(Conflict):
        store.compare_and_swap("ghost", b"x", etag='"0123456789abcdef0123456789abcdef"')
    assert store.head("ghost") is None


def test_the_store_keeps_its_promises(store: Store) -> None:
    """The proof of the conditional writes passes on the real store and leaves nothing behind."""
    assert all(store_check.prove(store).values())
    assert list(store.listing("store-check")) == []


def test_a_store_that_loses_its_place_in_a_listing_is_refused(store_settings: Settings) -> None:
    """SeaweedFS does so in a bucket that keeps versions; the sentence says what is wrong."""
    endpoint, key, secret, region = known(store_settings)
    name = f"safelight-tests-{secrets.token_hex(4)}"
    buckets.create_buckets(endpoint, key, secret, region, [name], versioning=True)
    with pytest.raises(InvalidSettings, match="a listing goes on where it stopped"):
        store_check.refuse_unless_proven(open_store(f"s3://{name}", store_settings))


def test_a_store_without_swaps_is_refused(tmp_path: Path) -> None:
    """A store that cannot swap (plain files cannot) is refused when it is first opened."""
    store = open_store(f"file://{tmp_path}", Settings())
    with pytest.raises(InvalidSettings, match="lacks conditional writes"):
        store_check.refuse_unless_proven(store)


def test_wrong_credentials_are_refused(zone_settings: Settings) -> None:
    """Wrong credentials are AccessDenied at once, in a sentence that says where."""
    wrong = zone_settings.model_copy(update={"s3_secret_access_key": SecretStr("wrong")})
    with pytest.raises(AccessDenied, match="refuses these credentials"):
        open_zones(wrong)
    with pytest.raises(AccessDenied, match="refuses these credentials"):
        next(open_store(wrong.zone_url("images"), wrong).listing())


def test_a_missing_bucket_is_named(store_settings: Settings) -> None:
    """A bucket that does not exist is a mistake in the settings, not a missing object."""
    store = open_store("s3://safelight-no-such-bucket/x", store_settings)
    with pytest.raises(InvalidSettings, match="safelight-no-such-bucket"):
        store.get("key")
    with pytest.raises(InvalidSettings, match="safelight-no-such-bucket"):
        list(store.listing())


def test_an_absent_store_is_waited_for_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No answer is retried as long as the settings say, with a line in the log, and then said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        s3_endpoint=f"http://127.0.0.1:{port}",
        s3_access_key_id=SecretStr("a"),
        s3_secret_access_key=SecretStr("b"),
        store_patience_s=0.5,
    )
    with pytest.raises(StoreUnavailable, match="does not answer"):
        open_store("s3://bucket", settings).get("key")
    assert "does not answer" in caplog.text


def test_a_key_that_cannot_be_is_missing(store: Store) -> None:
    """Asking for a key that no object can have finds nothing; writing one is refused by name."""
    assert store.get_if_present("a/../b") is None
    assert store.head("a//b") is None
    with pytest.raises(StoreError, match="cannot be stored"):
        store.put("a/../b", b"x")
