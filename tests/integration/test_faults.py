"""What goes wrong on the way to a real object store, and what comes of it: the right bytes, or an error; never less."""

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import faulty_proxy
import pytest
from environs import credentials
from faulty_proxy import Fault, Faulty, FaultyProxy, refusing

from pipeline import buckets
from pipeline import store as store_module
from pipeline.errors import Conflict, StoreError, StoreUnavailable
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from pipeline.zones import Zones

SLOW_DOWN, INTERNAL, TIMED_OUT = (
    refusing(503, "SlowDown"),
    refusing(500, "InternalError"),
    refusing(400, "RequestTimeout"),
)
BREAKS: list[Fault] = [Faulty.unheard, Faulty.unanswered, SLOW_DOWN, INTERNAL, refusing(429, "TooManyRequests")]
CUTS: list[Fault] = [Faulty.broken_off, Faulty.too_long]
BODY = secrets.token_bytes(300_000)


@pytest.fixture
def proxy(zone_settings: Settings) -> Iterator[FaultyProxy]:
    """A way to the store on which things go wrong."""
    with faulty_proxy.faulty(zone_settings.s3_endpoint or "") as proxy:
        yield proxy


@pytest.fixture
def store(zone_settings: Settings, proxy: FaultyProxy) -> Store:
    """An empty zone behind it."""
    return behind(zone_settings, proxy)


def behind(settings: Settings, proxy: FaultyProxy, **own: float) -> Store:
    """A test's own zone, as it is seen through a proxy."""
    settings = settings.model_copy(update={"s3_endpoint": proxy.url, "store_patience_s": 20, **own})
    return open_store(settings.zone_url("images"), settings)


def named(fault: Fault) -> str:
    """What a fault is called in a test's name."""
    return getattr(fault, "__name__", "fault")


def every(operation: str, faults: list[Fault]) -> Iterator[object]:
    """Each fault on an operation, as test parameters."""
    for number, fault in enumerate(faults):
        yield pytest.param(operation, fault, id=f"{operation}-{number}-{named(fault)}")


WORK: dict[str, Callable[[Store], object]] = {
    "GET": lambda store: store.get("there"),
    "HEAD": lambda store: (found := store.head("there")) and found.size,
    "LIST": lambda store: sorted(each.key for each in store.listing("listed")),
    "PUT": lambda store: (store.put("new", BODY), store.get("new"))[1],
    "POST": lambda store: (store.delete(["listed/2"]), store.head("listed/2"))[1],
}
RIGHT: dict[str, object] = {
    "GET": BODY,
    "HEAD": len(BODY),
    "LIST": ["listed/0", "listed/1", "listed/2"],
    "PUT": BODY,
    "POST": None,
}


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        # The answer to a HEAD has no body, and so no code that would tell one 400 from another.
        *itertools.chain.from_iterable(
            every(each, BREAKS if each == "HEAD" else [*BREAKS, TIMED_OUT]) for each in WORK
        ),
        *itertools.chain.from_iterable(every(operation, CUTS) for operation in ("GET", "LIST", "POST")),
        *every("LIST", [Faulty.too_short]),
    ],
)
def test_what_breaks_is_repeated(
    store: Store, proxy: FaultyProxy, operation: str, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks on the way, reads give all of the bytes, writes are there, and the log has a warning."""
    store.put("there", BODY)
    for number in range(3):
        store.put(f"listed/{number}", b"x")
    caplog.clear()
    proxy.expect(operation, fault)
    assert WORK[operation](store) == RIGHT[operation]
    assert proxy.happened == [operation]
    assert "does not answer" in caplog.text


def test_a_listing_that_breaks_between_its_pages_goes_on(zones: Zones, store: Store, proxy: FaultyProxy) -> None:
    """With the second page breaking once and the third one twice, 2,300 objects are listed once each."""
    keys = [f"many/{number}" for number in range(2300)]
    list(zones.images.write_many((key, b"x") for key in keys))
    proxy.expect("LIST", None, Faulty.broken_off, None, SLOW_DOWN, Faulty.too_long)
    assert sorted(found.key for found in store.listing("many")) == sorted(keys)
    assert proxy.happened.count("LIST") == 3


def test_a_listing_that_never_ends_is_given_up(zones: Zones, store: Store, proxy: FaultyProxy) -> None:
    """A store that answers every page with the first one is refused, after that page came twice."""
    list(zones.images.write_many((f"many/{number}", b"x") for number in range(1000)))
    proxy.expect("LIST", *[faulty_proxy.repeating()] * 5)
    listing = store.listing("many")
    assert len(list(itertools.islice(listing, 1000))) == 1000
    with pytest.raises(StoreError, match="comes back to"):
        list(listing)
    assert proxy.happened == ["LIST"] * 2


def test_many_requests_with_faults_among_them_are_whole_and_in_order(store: Store, proxy: FaultyProxy) -> None:
    """With the window full and every third answer broken, cut or short, each object goes and comes once, whole."""
    wanted = {f"read/{number:03}": secrets.token_bytes(5_000) for number in range(200)}
    proxy.expect("PUT", *[None, SLOW_DOWN, None, Faulty.unanswered] * 15)
    assert list(store.write_many(wanted.items())) == list(wanted)
    objects = sorted(store.listing("read"), key=lambda found: found.key)
    bad = [Faulty.broken_off, Faulty.too_short, Faulty.unheard, INTERNAL, Faulty.too_long]
    proxy.expect("GET", *itertools.chain.from_iterable((None, None, fault) for fault in bad * 12))
    # Who remembers an object from an earlier listing may not know its etag.
    objects = [replace(each, etag="") if number % 2 else each for number, each in enumerate(objects)]
    assert [(found.key, data) for found, data in store.read_many(objects)] == list(wanted.items())
    assert proxy.happened.count("GET") == 60
    store.put("read/000", b"another size")
    assert next(iter(store.read_many(objects)))[1] == b"another size"


@pytest.mark.parametrize("fault", [Faulty.unanswered, INTERNAL], ids=named)
def test_a_conditional_write_whose_answer_was_lost_counts_as_ours(
    store: Store, proxy: FaultyProxy, fault: Fault
) -> None:
    """Creating and swapping succeed although the first answers were lost, and another's stale swap still loses."""
    proxy.expect("PUT", fault, fault)
    assert store.write_once("once", b"mine") == b"mine"
    assert store.write_once("once", b"another's") == b"mine"
    proxy.expect("PUT", fault)
    store.compare_and_swap("swapped", b"first", etag=None)
    etag = store.get_with_etag("swapped")[1]
    proxy.expect("PUT", fault, fault)
    proxy.expect("GET", SLOW_DOWN, Faulty.broken_off)
    store.compare_and_swap("swapped", b"second", etag=etag)
    with pytest.raises(Conflict):
        store.compare_and_swap("swapped", b"third", etag=etag)
    assert store.get("swapped") == b"second"


def test_a_conditional_write_that_met_another_one_comes_again(store: Store, proxy: FaultyProxy) -> None:
    """A 409 is neither a win nor a loss: the write is sent again, and wins where nobody else wrote."""
    proxy.expect("PUT", refusing(409, "ConditionalRequestConflict"))
    store.compare_and_swap("met", b"mine", etag=None)
    assert store.get("met") == b"mine"
    assert proxy.happened == ["PUT"]


def test_a_request_without_an_answer_ends_and_is_repeated(
    zone_settings: Settings, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose answer never comes ends after its timeout and is sent again; so does a large upload's."""
    monkeypatch.setattr(store_module, "REQUEST_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(store_module, "UPLOAD_TIMEOUT", timedelta(seconds=3))
    store = behind(zone_settings, proxy)
    proxy.expect("PUT", Faulty.silent)
    proxy.expect("GET", Faulty.silent)
    began = time.monotonic()
    store.put("key", BODY)
    assert store.get("key") == BODY
    assert 2 <= time.monotonic() - began < 4.5
    large = bytes(store_module.LARGE_BYTES + 1)
    proxy.expect("PUT", Faulty.silent)
    began = time.monotonic()
    assert store.write_once("large", large) == large
    assert 3 <= time.monotonic() - began < 6


def test_an_endless_outage_ends_each_operation_in_time(
    zone_settings: Settings, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixteen writers of a store that only refuses give up together, after the patience and no later, in a sentence."""
    store = behind(zone_settings, proxy, store_patience_s=2)
    proxy.expect("PUT", *[SLOW_DOWN] * 5000)
    proxy.expect("POST", *[SLOW_DOWN] * 5000)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"SlowDown.* has not answered for \d s; see that it is running.*\.$"):
        list(store.write_many((f"{number}", BODY) for number in range(100)))
    assert 2 <= time.monotonic() - began < 4
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="has not answered for"):
        store.delete(["0"])
    assert time.monotonic() - began < 0.5
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) <= 3


def test_a_refusal_is_not_repeated(store: Store, proxy: FaultyProxy) -> None:
    """What a store refuses for good is an error at once."""
    proxy.expect("PUT", refusing(400, "EntityTooLarge"))
    with pytest.raises(StoreError, match="EntityTooLarge") as refused:
        store.put("key", BODY)
    assert not isinstance(refused.value, StoreUnavailable)


def test_buckets_of_a_busy_store_are_waited_for(zone_settings: Settings, proxy: FaultyProxy) -> None:
    """Looking for a bucket at a store that answers 503 says that the store is away, not that it refuses."""
    proxy.expect("HEAD", SLOW_DOWN)
    proxy.expect("GET", SLOW_DOWN)
    proxy.expect("PUT", SLOW_DOWN)
    key, secret = credentials(zone_settings)
    with pytest.raises(StoreUnavailable, match="No S3 object store answers at"):
        buckets.create_buckets(proxy.url, key, secret, "us-east-1", ["safelight-tests"])
    buckets.create_buckets(proxy.url, key, secret, "us-east-1", ["safelight-tests"])
