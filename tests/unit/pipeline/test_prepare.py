"""Preparation, from raw images in memory to versions that load."""

import hashlib
from typing import Any

import numpy as np
import pytest
import synthetic
from preparing import CONFIG, from_scratch, loaded, stored

from pipeline import datasets
from pipeline.artifacts import PrepareConfig
from pipeline.prepare import prepare, summary
from pipeline.progress import Progress
from pipeline.zones import Zones


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


def test_the_digest_is_of_the_encoded_bytes(zones: Zones) -> None:
    """An image is known by the SHA-256 of its encoded bytes."""
    version = prepare(zones, "cats", CONFIG).version
    index = datasets.read_index(zones.datasets, version)
    for row in index.to_pylist()[::10]:
        assert row["digest"] == hashlib.sha256(zones.images.get(row["key"])).digest()
        assert (row["width"], row["height"]) == (28, 28)
    assert np.unique(index["label"].to_numpy(zero_copy_only=False)).tolist() == list(version.classes)
