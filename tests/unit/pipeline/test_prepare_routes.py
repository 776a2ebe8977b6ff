"""Whatever way leads to some raw images, killed, resumed or in bits, one preparation makes one version of them."""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import synthetic
from mortal_store import KilledError, MortalStore
from obstore.store import MemoryStore
from preparing import CONFIG, from_scratch, loaded, stored

from pipeline import compaction, dataset_versions, datasets, index_segments, packing
from pipeline.errors import DatasetRejected
from pipeline.packing import Chunk, PackedChunk
from pipeline.prepare import Pack, PrepareResult, prepare
from pipeline.store import Store
from pipeline.zones import Zones


def test_a_run_that_was_interrupted_goes_on(zones: Zones, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that were finished before a crash are not read again, and nothing of them is left in the end."""
    monkeypatch.setattr(packing, "CHUNK_IMAGES", 10)

    def crash(pack: Pack, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
        for number, chunk in enumerate(chunks):
            if number == 4:
                raise KeyboardInterrupt
            yield pack(chunk)

    with pytest.raises(KeyboardInterrupt):
        prepare(zones, "cats", CONFIG, map_chunks=crash)
    assert not [key for key in stored(zones) if key.endswith(".json")]
    result = prepare(zones, "cats", CONFIG)
    assert (result.images, result.read, result.decoded) == (60, 20, 20)
    assert not [key for key in stored(zones) if "/work/" in key]
    assert loaded(zones, result.version) == loaded(*from_scratch(zones))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write(zones: Zones, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Whatever write is the last one, all versions that are there load, and the next preparation puts all right."""
    monkeypatch.setattr(packing, "CHUNK_IMAGES", 10)
    monkeypatch.setattr(compaction, "COPIED_SHARE", 10.0)
    monkeypatch.setattr(index_segments, "MERGED_SHARE", 10.0)
    monkeypatch.setattr(dataset_versions, "LEASE_TTL_S", 0.5)  # this process lives on after it was "killed"
    first = prepare(zones, "cats", CONFIG).version
    objects = {found.key: zones.datasets.get(found.key) for found in zones.datasets.listing()}
    zones.images.delete([found.key for found in list(zones.images.listing("cats"))[::3]])
    synthetic.put_classes(zones, "cats", 10, start=100)
    expected = loaded(*from_scratch(zones))
    finished, writes = False, -1
    while not finished:
        writes += 1
        backend = MemoryStore()
        datasets_zone = Store(backend, "memory://datasets")
        for key, data in objects.items():
            datasets_zone.put(key, data)
        try:
            prepare(replace(zones, datasets=MortalStore(datasets_zone, writes, after=after)), "cats", CONFIG)
            finished = True
        except KilledError:
            pass
        again = replace(zones, datasets=datasets_zone)
        assert loaded(again, first)
        for found in datasets_zone.listing("cats"):
            if found.key.endswith("manifest.json"):
                loaded(again, datasets.find(datasets_zone, "cats", found.key.split("/")[1]))
        assert loaded(again, datasets.latest(datasets_zone, "cats"))
        result = prepare(again, "cats", CONFIG)
        assert loaded(again, result.version) == expected
        assert datasets.latest(datasets_zone, "cats") == result.version
        assert not [key for key in stored(again) if "/work/" in key]
    assert writes > 10


def test_chunks_may_come_back_in_any_order(zones: Zones, monkeypatch: pytest.MonkeyPatch) -> None:
    """However chunks are mapped, the version and what is loaded of it are the same."""
    expected = loaded(*from_scratch(zones))
    monkeypatch.setattr(packing, "CHUNK_IMAGES", 7)

    def backwards(pack: Pack, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
        return map(pack, reversed(list(chunks)))

    result = prepare(zones, "cats", CONFIG, map_chunks=backwards)
    assert result.version == from_scratch(zones)[1]
    assert loaded(zones, result.version) == expected


@pytest.mark.parametrize("seed", range(8))
def test_any_route_to_the_same_content_gives_the_same_version(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of many random changes, the version and all that is loaded are what a first preparation gives.

    And each preparation reads just the keys that are new to it, and decodes no bytes that it has decoded before,
    whether shards and segments are merged as often as they can be, or never.
    """
    monkeypatch.setattr(compaction, "COPIED_SHARE", 10.0 * (seed % 2))
    monkeypatch.setattr(index_segments, "MERGED_SHARE", 10.0 * (seed % 2))
    rng = random.Random(seed)
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 12)
    keys, digests = raw_state(zones)
    prepare(zones, "cats", CONFIG)
    for step in range(12):
        for _ in range(rng.randint(1, 5)):
            change(rng, zones, 10_000 * (seed + 1) + 100 * step + rng.randint(0, 99))
        result = prepared_or_none(zones)
        if result is None:
            continue
        keys_before, digests_before = keys, digests
        keys, digests = raw_state(zones)
        new = {key for key, etag in keys.items() if keys_before.get(key) != etag}
        assert result.read == len(new)
        assert result.decoded <= sum(digests[key] not in digests_before.values() for key in new)
        fresh, version = from_scratch(zones)
        assert result.version == version
        assert loaded(zones, result.version) == loaded(fresh, version)


def raw_state(zones: Zones) -> tuple[dict[str, str], dict[str, str]]:
    """Etag and digest of every raw image, by key."""
    etags = {found.key: found.etag for found in zones.images.listing()}
    return etags, {key: hashlib.sha256(zones.images.get(key)).hexdigest() for key in etags}


def change(rng: random.Random, zones: Zones, number: int) -> None:
    """Add, replace, copy, move, delete or damage an image."""
    keys = [found.key for found in zones.images.listing("cats")]
    some, label = rng.choice(keys), f"class-{rng.randint(0, 2):03d}"
    kind = rng.choice(["add", "add", "colour", "replace", "copy", "move", "delete", "damage"])
    if kind in {"add", "colour"}:
        zones.images.put(f"cats/{label}/{number}.png", synthetic.png(number, channels=3 if kind == "colour" else 1))
    elif kind == "replace":
        zones.images.put(some, synthetic.png(number))
    elif kind in {"copy", "move"}:
        zones.images.put(f"cats/{label}/{number}.png", zones.images.get(some))
    elif kind == "damage":
        zones.images.put(some, zones.images.get(some)[:100])
    if kind in {"move", "delete"}:
        zones.images.delete([some])


def prepared_or_none(zones: Zones) -> PrepareResult | None:
    """What a preparation gives, or None if the changes went too far."""
    try:
        return prepare(zones, "cats", CONFIG)
    except DatasetRejected:
        return None
