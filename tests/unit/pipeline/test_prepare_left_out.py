"""What preparation leaves out, or refuses altogether, and how a person hears of it."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import synthetic
from preparing import CONFIG, stored

from pipeline import datasets, images, quarantine
from pipeline.artifacts import PrepareConfig
from pipeline.errors import DatasetRejected, InvalidInput, NotFound
from pipeline.packing import Chunk, PackedChunk
from pipeline.prepare import Pack, prepare
from pipeline.zones import Zones

BAD = {
    "class-000/empty.png": b"",
    "class-000/truncated.png": synthetic.png(2000)[:200],
    "class-001/text.PNG": b"this is no image",
    "class-001/photo.heic": b"\0\0\0\x18ftypheic" + bytes(50),
    "class-002/conflict.png": synthetic.png(0),
}


def quarantined(zones: Zones, key: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a quarantine list, by key without the dataset."""
    assert key is not None
    lines = [json.loads(line) for line in zones.datasets.get(key).splitlines()]
    assert lines == sorted(lines, key=lambda line: line["key"])
    return {line["key"].removeprefix("cats/"): line for line in lines}


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
