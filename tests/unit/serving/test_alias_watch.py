import time

import pytest
from live_server import MODEL, Registry, wait_until
from obstore.store import MemoryStore

from pipeline.errors import NotFound, StoreUnavailable
from pipeline.store import Store, StoredObject
from serving.alias_watch import AliasWatch, Reading
from serving.settings import ServingSettings


class Counting(Store):
    """A store that counts requests, and can be away or silent."""

    heads = gets = 0
    away = False

    def head(self, key: str) -> StoredObject | None:
        """What a listing says of ``key``."""
        self.heads += 1
        if self.away:
            raise StoreUnavailable("away.")
        return super().head(key)

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The bytes under ``key``, and their etag."""
        self.gets += 1
        if self.away:
            raise StoreUnavailable("away.")
        return super().get_with_etag(key)


@pytest.fixture
def store() -> Counting:
    """An empty models zone."""
    return Counting(MemoryStore(), "memory:")


@pytest.fixture
def registry(store: Counting) -> Registry:
    """A registry on it."""
    return Registry(Store(MemoryStore(), "memory:"), store)


def test_an_unchanged_alias_costs_one_head(store: Counting, registry: Registry) -> None:
    """After the first look, nothing is transferred until the alias moves."""
    version = registry.register(1)
    registry.point_at(version)
    watch = AliasWatch(store, ServingSettings(model=MODEL))
    watch.look()
    store.heads = store.gets = 0
    for _ in range(5):
        watch.look()
        assert watch.latest() == Reading(version.version)
    assert (store.heads, store.gets) == (5, 0)


def test_each_move_is_seen(store: Counting, registry: Registry) -> None:
    """There and back again, and to nothing."""
    watch = AliasWatch(store, ServingSettings(model=MODEL))
    versions = [registry.register(1), registry.register(2)]
    for each in (versions[0], versions[1], versions[0], None, versions[1]):
        registry.point_at(each)
        watch.look()
        assert watch.latest() == Reading(each.version if each else None)


def test_a_failure_is_a_reading_and_passes(store: Counting, registry: Registry) -> None:
    """Nothing there, then there, then away, then there again."""
    watch = AliasWatch(store, ServingSettings(model=MODEL))
    assert watch.latest() is None
    watch.look()
    assert isinstance((watch.latest() or Reading()).error, NotFound)
    version = registry.register(1)
    registry.point_at(version)
    watch.look()
    assert watch.latest() == Reading(version.version)
    store.away = True
    watch.look()
    assert isinstance((watch.latest() or Reading()).error, StoreUnavailable)
    store.away = False
    watch.look()
    assert watch.latest() == Reading(version.version)


def test_a_pinned_version_needs_no_store(store: Counting) -> None:
    """It is said without asking anybody."""
    pinned = "20261122T000100Z-00000000"
    watch = AliasWatch(store, ServingSettings(model=MODEL, version=pinned))
    watch.look()
    assert watch.latest() == Reading(pinned)
    assert (store.heads, store.gets) == (0, 0)


class Silent(Store):
    """A store that never answers in time while it is silent."""

    silent = True

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The bytes under ``key``, and their etag."""
        if self.silent:
            time.sleep(3)
        return super().get_with_etag(key)


def test_a_store_that_does_not_answer_counts_as_away_and_is_asked_again() -> None:
    """Long before its request is given up the watch says so, and long before that it sees that the store is back."""
    store = Silent(MemoryStore(), "memory:")
    watch = AliasWatch(store, ServingSettings(model=MODEL, poll_s=0.05), silent_s=0.2)
    watch.start()
    wait_until(lambda: isinstance((watch.latest() or Reading()).error, StoreUnavailable), 1)
    store.silent = False
    wait_until(lambda: isinstance((watch.latest() or Reading()).error, NotFound), 1)
    watch.stop()
