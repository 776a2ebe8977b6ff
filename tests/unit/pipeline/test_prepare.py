"""Preparation, from raw images in memory to versions that load."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import synthetic
from mortal_store import KilledError, MortalStore
from obstore.store import MemoryStore

from pipeline import compaction, dataset_versions, datasets, images, index_segments, packing, quarantine
from pipeline.artifacts import DatasetVersion, PrepareConfig
from pipeline.errors import DatasetRejected, InvalidInput, NotFound
from pipeline.packing import Chunk, PackedChunk
from pipeline.prepare import Pack, PrepareResult, prepare, summary
from pipeline.progress import Progress
from pipeline.store import Store
from pipeline.zones import Zones

CONFIG = PrepareConfig()


@pytest.fixture
def zones() -> Zones:
    """Zones in memory with 60 grey images of 3 classes."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 20)
    return zones


def stored(zones: Zones) -> dict[str, str]:
    """Keys and etags in the datasets zone."""
    return {found.key: found.etag for found in zones.datasets.listing()}


def quarantined(zones: Zones, key: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a quarantine list, by key without the dataset."""
    assert key is not None
    lines = [json.loads(line) for line in zones.datasets.get(key).splitlines()]
    assert lines == sorted(lines, key=lambda line: line["key"])
    return {line["key"].removeprefix("cats/"): line for line in lines}


def loaded(zones: Zones, version: DatasetVersion) -> list[bytes]:
    """Everything that training sees of a version."""
    splits = [datasets.load_split(zones.datasets, version, split) for split in ("train", "validation", "test")]
    return [array.tobytes() for each in splits for array in (each.digests, each.labels, each.pixels)]


def test_a_folder_becomes_a_version(zones: Zones) -> None:
    """Every image is read and decoded once, and the version says what it holds."""
    told: list[Progress] = []
    result = prepare(zones, "cats", CONFIG, on_progress=told.append)
    assert result.new
    assert (result.images, result.read, result.decoded, result.reused) == (60, 60, 60, 0)
    assert (result.quarantined, result.quarantine, result.reasons, result.skipped) == (0, None, {}, {})
    version = result.version
    assert version.classes == ("class-000", "class-001", "class-002")
    assert (version.pixels.height, version.pixels.channels) == (28, 1)
    assert sum(version.counts.values()) == 60
    assert datasets.latest(zones.datasets, "cats") == version
    assert told[-1].done == told[-1].total == 60


def test_the_same_content_is_no_work(zones: Zones) -> None:
    """Prepared again, nothing is read and no object is written or changed, also where images were left out."""
    zones.images.put("cats/class-000/broken.png", b"x")
    first = prepare(zones, "cats", CONFIG)
    before = stored(zones)
    again = prepare(zones, "cats", CONFIG)
    assert again.version == first.version
    assert not again.new
    assert (again.read, again.decoded, again.reused, again.quarantine) == (0, 0, 60, first.quarantine)
    assert stored(zones) == before


def test_only_what_is_new_is_read(zones: Zones) -> None:
    """After an addition, a change, a copy, a move and a deletion, only new keys are read and only new bytes decoded."""
    first = prepare(zones, "cats", CONFIG)
    before = stored(zones)
    keys = [found.key for found in zones.images.listing("cats/class-000")]
    zones.images.put("cats/class-000/new.png", synthetic.png(1000))
    zones.images.put(keys[0], synthetic.png(1001))
    zones.images.put("cats/class-000/copy.png", zones.images.get(keys[1]))
    zones.images.put("cats/class-000/moved.png", zones.images.get(keys[2]))
    zones.images.delete([keys[2], keys[3]])
    result = prepare(zones, "cats", CONFIG)
    assert result.new
    assert (result.read, result.decoded, result.images, result.duplicates) == (4, 2, 60, 1)
    assert result.reused == 58
    changing = {"cats/latest.json", "cats/lease.json"}
    kept = {key: etag for key, etag in before.items() if key not in changing}
    assert kept.items() <= stored(zones).items()
    assert loaded(zones, first.version)


def test_what_leaves_the_content_alone_is_read_once(zones: Zones) -> None:
    """Renamed and unreadable keys of an unchanged version are read in one preparation, and in no other."""
    first = prepare(zones, "cats", CONFIG)
    for found in list(zones.images.listing("cats/class-001")):
        zones.images.put(found.key.replace(".png", " renamed.png"), zones.images.get(found.key))
        zones.images.delete([found.key])
    zones.images.put("cats/class-002/broken.png", b"x")
    second = prepare(zones, "cats", CONFIG)
    assert (second.version, second.new, second.read, second.decoded) == (first.version, False, 21, 0)
    third = prepare(zones, "cats", CONFIG)
    assert (third.version, third.read, third.quarantine) == (first.version, 0, second.quarantine)


def test_an_older_content_is_found(zones: Zones) -> None:
    """Back to what was prepared before, the old version is the latest again, and nothing new is made."""
    first = prepare(zones, "cats", CONFIG)
    zones.images.put("cats/class-000/new.png", synthetic.png(1000))
    second = prepare(zones, "cats", CONFIG)
    zones.images.delete(["cats/class-000/new.png"])
    third = prepare(zones, "cats", CONFIG)
    assert second.version != first.version == third.version
    assert (third.new, third.read, third.decoded) == (False, 0, 0)
    assert datasets.latest(zones.datasets, "cats") == first.version


def test_deleting_and_relabelling_decode_nothing(zones: Zones) -> None:
    """Labels and splits from a table, changed, and images removed, need no image."""
    keys = [found.key.removeprefix("cats/") for found in zones.images.listing("cats")]
    rows = [f"{key},{('a', 'b')[number % 2]}" for number, key in enumerate(keys)]
    prepare(zones, "cats", CONFIG)
    zones.images.put("cats/labels.csv", "\n".join(["key,label", *rows]).encode())
    relabelled = prepare(zones, "cats", CONFIG)
    assert relabelled.version.classes == ("a", "b")
    zones.images.put("cats/labels.csv", "\n".join(["key,label", *rows[1:], f"{keys[0]},b"]).encode())
    one = prepare(zones, "cats", CONFIG)
    zones.images.delete([f"cats/{keys[5]}"])
    deleted = prepare(zones, "cats", CONFIG)
    for result in (relabelled, one, deleted):
        assert result.new
        assert (result.read, result.decoded) == (0, 0)
    assert deleted.quarantined == 1
    assert "not stored" in next(iter(deleted.reasons))


def test_the_first_colour_image_decodes_no_other(zones: Zones) -> None:
    """A grey dataset turns RGB by decoding one image; grey images keep their one channel, repeated when loaded."""
    grey = prepare(zones, "cats", CONFIG)
    zones.images.put("cats/class-000/rgb.png", synthetic.png(1000, channels=3))
    rgb = prepare(zones, "cats", CONFIG)
    assert (grey.version.pixels.channels, rgb.version.pixels.channels) == (1, 3)
    assert (rgb.read, rgb.decoded) == (1, 1)
    assert loaded(zones, rgb.version) == loaded(*from_scratch(zones))
    all_grey = prepare(zones, "cats", PrepareConfig(colour="grey"))
    assert (all_grey.read, all_grey.decoded) == (1, 1)
    assert all_grey.version.pixels.channels == 1


def from_scratch(zones: Zones, config: PrepareConfig = CONFIG) -> tuple[Zones, DatasetVersion]:
    """The same raw images prepared where nothing was prepared before."""
    fresh = synthetic.memory_zones()
    for found in zones.images.listing():
        fresh.images.put(found.key, zones.images.get(found.key))
    return fresh, prepare(fresh, "cats", config).version


@pytest.mark.parametrize(("side", "size"), [(31, 32), (40, 64)])
def test_a_larger_image_changes_the_size_of_all(zones: Zones, side: int, size: int) -> None:
    """Where auto makes of the size another one, all images are packed again, and back again without it."""
    small = prepare(zones, "cats", CONFIG)
    zones.images.put("cats/class-000/large.png", synthetic.png(1000, side, 20))
    large = prepare(zones, "cats", CONFIG)
    assert (small.version.pixels.height, large.version.pixels.height) == (28, size)
    assert (large.images, large.reused) == (61, 0)
    assert loaded(zones, large.version) == loaded(*from_scratch(zones))
    zones.images.delete(["cats/class-000/large.png"])
    assert prepare(zones, "cats", CONFIG).version == small.version


@pytest.mark.parametrize("change", [{"size": 20}, {"fit": "stretch"}, {"colour": "rgb"}], ids=str)
def test_other_pixels_are_packed_anew(zones: Zones, change: dict[str, Any]) -> None:
    """Another size or fit decodes everything again, into what a first preparation makes; RGB of grey images nothing."""
    zones.images.put("cats/class-000/wide.png", synthetic.png(1000, 15, 25))
    prepare(zones, "cats", CONFIG)
    config = PrepareConfig.model_validate(change)
    result = prepare(zones, "cats", config)
    assert result.decoded == (0 if "colour" in change else 61)
    assert loaded(zones, result.version) == loaded(*from_scratch(zones, config))


def test_a_wrong_first_guess_is_put_right() -> None:
    """A large image among many small ones, which no probe meets, decides the size all the same."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 100)
    zones.images.put("cats/class-000/000001.png", synthetic.png(1000, 33, 33))
    result = prepare(zones, "cats", CONFIG)
    assert result.version.pixels.height == 64
    assert len(loaded(zones, result.version)) == 9


BAD = {
    "class-000/empty.png": b"",
    "class-000/truncated.png": synthetic.png(2000)[:200],
    "class-001/text.PNG": b"this is no image",
    "class-001/photo.heic": b"\\0\\0\\0\\x18ftypheic" + bytes(50),
    "class-002/conflict.png": synthetic.png(0),
}


def test_bad_images_are_listed_with_reasons(zones: Zones) -> None:
    """The run goes on without them; each has a line with key, reason, etag and size; other files are counted."""
    for key, data in BAD.items():
        zones.images.put(f"cats/{key}", data)
    for key in (".DS_Store", "class-000/Thumbs.db", "class-000/notes.txt"):
        zones.images.put(f"cats/{key}", b"x")
    zones.images.put("cats/nowhere.png", synthetic.png(3000))
    result = prepare(zones, "cats", CONFIG)
    lines = quarantined(zones, result.quarantine)
    assert set(lines) == {*BAD, "class-000/000000.png", "nowhere.png"}
    assert lines["class-000/empty.png"]["reason"] == "empty file"
    assert "truncated" in lines["class-000/truncated.png"]["reason"]
    assert "'class-000' too" in lines["class-002/conflict.png"]["reason"]
    assert "'class-002' too" in lines["class-000/000000.png"]["reason"]
    assert "class" in lines["nowhere.png"]["reason"]
    for found in zones.images.listing("cats/class-001"):
        if (line := lines.get(found.key.removeprefix("cats/"))) is not None:
            assert (line["etag"], line["size"]) == (found.etag, found.size)
    assert (result.images, result.quarantined, sum(result.skipped.values())) == (59, 7, 3)
    assert result.reasons["conflicting labels"] == 2
    assert sum(result.reasons.values()) == 7


def test_a_person_settles_a_conflict(zones: Zones) -> None:
    """A key named in full or relative to the dataset wins, nothing is read again, and one named in vain is listed."""
    zones.images.put("cats/class-002/conflict.png", synthetic.png(0))
    assert prepare(zones, "cats", CONFIG).images == 59
    for name in ("cats/class-002/conflict.png", "class-002/conflict.png"):
        result = prepare(zones, "cats", PrepareConfig(keep=(name, "class-000/nothing.png")))
        assert (result.images, result.read, result.decoded) == (60, 0, 0)
        lines = quarantined(zones, result.quarantine)
        assert set(lines) == {"class-000/000000.png", "class-000/nothing.png"}
        assert "named in keep" in lines["class-000/nothing.png"]["reason"]


def test_a_run_that_fails_leaves_a_list_and_no_version(zones: Zones) -> None:
    """The message says how many images are unreadable and where the list is, and the version from before stays."""
    first = prepare(zones, "cats", CONFIG)
    for number in range(21):
        zones.images.put(f"cats/class-{number % 3:03d}/bad{number}.png", b"x")
    with pytest.raises(DatasetRejected, match="21 of 81 images cannot be read") as raised:
        prepare(zones, "cats", CONFIG)
    (listed,) = (key for key in stored(zones) if "quarantine" in key)
    assert f"{zones.datasets.url}/{listed}" in str(raised.value)
    assert len(quarantined(zones, listed)) == 21
    assert datasets.latest(zones.datasets, "cats") == first.version
    assert len([key for key in stored(zones) if key.endswith("manifest.json")]) == 1


def test_what_cannot_be_prepared_is_said(zones: Zones) -> None:
    """One image in a class, one class, nothing but other files, nothing at all, a bad name: one sentence each."""
    zones.images.put("cats/lonely/one.png", synthetic.png(4000))
    with pytest.raises(DatasetRejected, match="no second image in class 'lonely'"):
        prepare(zones, "cats", CONFIG)
    zones.images.put("dogs/only/one.png", synthetic.png(4000))
    with pytest.raises(DatasetRejected, match=r"'dogs'.*only one class, 'only'"):
        prepare(zones, "dogs", CONFIG)
    zones.images.put("birds/readme.txt", b"x")
    with pytest.raises(DatasetRejected, match=r"'birds'.*no class"):
        prepare(zones, "birds", CONFIG)
    with pytest.raises(NotFound, match="'cows'"):
        prepare(zones, "cows", CONFIG)
    with pytest.raises(InvalidInput, match="cannot name a dataset"):
        prepare(zones, "No Name/", CONFIG)


def test_too_large_files_are_not_read(zones: Zones, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object over the limit is left out by what the listing says of it."""
    monkeypatch.setattr(images, "MAX_BYTES", 20_000)
    zones.images.put("cats/class-000/large.tif", bytes(20_001))
    result = prepare(zones, "cats", CONFIG)
    assert (result.read, result.reasons) == (60, {"too large": 1})


def test_images_that_vanish_meanwhile_are_no_error(zones: Zones) -> None:
    """Objects that are deleted between listing and reading are listed, and the next preparation does not miss them."""

    def while_deleting(pack: Pack, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
        for chunk in chunks:
            zones.images.delete(chunk.keys[:2])
            yield pack(chunk)

    result = prepare(zones, "cats", CONFIG, map_chunks=while_deleting)
    assert result.images == 58
    assert result.reasons == {"deleted while the dataset was prepared": 2}
    assert prepare(zones, "cats", CONFIG).version == result.version


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


def test_what_a_person_is_told(zones: Zones) -> None:
    """The summary names the version, its images and classes, and everything that was left out, with numbers."""
    zones.images.put("cats/class-000/broken.png", b"")
    zones.images.put("cats/class-000/copy.png", synthetic.png(0))
    zones.images.put("cats/notes.txt", b"x")
    result = prepare(zones, "cats", CONFIG)
    text = "\n".join(summary(result))
    for part in (
        result.version.version,
        "60 images of 28x28 grey in 3 classes",
        "counted once: 1",
        "left out, empty file: 1",
    ):
        assert part in text
    assert "skipped, not an image by its name: 1" in text
    assert str(result.quarantine) in text


def test_the_list_of_what_was_left_out_is_read_by_its_address(zones: Zones) -> None:
    """Its key, its URL and the end of the sentence that names it lead to it; anything else is one sentence."""
    zones.images.put("cats/class-000/broken.png", b"")
    key = prepare(zones, "cats", CONFIG).quarantine
    for address in (f"{key}", f"{zones.datasets.url}/{key}", f"{zones.datasets.url}/{key}."):
        (line,) = quarantine.read(zones.datasets, address)
        assert (line["key"], line["reason"]) == ("cats/class-000/broken.png", "empty file")
    for address in ("cats", "cats/quarantine/0.jsonl", "cats/latest.json", "../x/quarantine/../y.jsonl", f"{key}/.."):
        with pytest.raises(NotFound, match="is no list of what was left out"):
            quarantine.read(zones.datasets, address)


def test_the_digest_is_of_the_encoded_bytes(zones: Zones) -> None:
    """An image is known by the SHA-256 of its encoded bytes."""
    version = prepare(zones, "cats", CONFIG).version
    index = datasets.read_index(zones.datasets, version)
    for row in index.to_pylist()[::10]:
        assert row["digest"] == hashlib.sha256(zones.images.get(row["key"])).digest()
        assert (row["width"], row["height"]) == (28, 28)
    assert np.unique(index["label"].to_numpy(zero_copy_only=False)).tolist() == list(version.classes)
