"""Batch prediction on zones in memory: what a batch is, what it survives, and what is a person's mistake."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import synthetic
import tiny_models
from batch_predictions import FOLDER, MODEL, champion, keys, predicted, put, rows
from mortal_store import KilledError, MortalStore

from pipeline import aliases, batch_plans, batches, predict
from pipeline.batches import BatchPart, Part, Place
from pipeline.errors import Conflict, Corrupted, InvalidInput, NotFound
from pipeline.predict import AnswerPart
from pipeline.zones import Zones


@pytest.fixture
def zones(monkeypatch: pytest.MonkeyPatch) -> Zones:
    """Zones with 50 pictures and a champion; parts are of 20 objects."""
    monkeypatch.setattr(batch_plans, "PART_OBJECTS", 20)
    made = synthetic.memory_zones()
    champion(made)
    put(made, range(50))
    return made


def killed_after(count: int) -> Any:
    """Maps parts, and is killed when so many are answered."""

    def mapped(answer: AnswerPart, parts: Iterable[Part]) -> Iterator[BatchPart]:
        for number, part in enumerate(parts):
            if number == count:
                raise KilledError
            yield answer(part)

    return mapped


def counted(into: list[str]) -> Any:
    """Maps parts one by one, and keeps the keys of what had to be answered."""

    def mapped(answer: AnswerPart, parts: Iterable[Part]) -> Iterator[BatchPart]:
        for part in parts:
            into.append(part.key)
            yield answer(part)

    return mapped


def test_each_object_is_one_row_by_key(zones: Zones) -> None:
    """Every object below the prefix has one row, with an answer or a reason, and the manifest counts both."""
    zones.images.put(f"{FOLDER}/broken.png", b"no image")
    zones.images.put(f"{FOLDER}/labels.csv", b"key,label")
    zones.images.put(f"{FOLDER}/.hidden/a.png", b"x")
    zones.images.put(f"{FOLDER}x/neighbour.png", b"x")
    result = predicted(zones)
    found = rows(zones.predictions, result)
    assert [row["key"] for row in found] == sorted(each.key for each in zones.images.listing(FOLDER))
    assert {row["key"]: row["reason"] for row in found if row["label"] is None} == {
        f"{FOLDER}/.hidden/a.png": "hidden or system file",
        f"{FOLDER}/broken.png": "not an image of a supported format (PNG, JPEG, WebP, BMP, TIFF, GIF)",
        f"{FOLDER}/labels.csv": "not an image by its name",
    }
    manifest = result.manifest
    assert (manifest.objects, manifest.answered, sum(manifest.left_out.values())) == (53, 50, 3)
    assert [part.rows for part in manifest.parts] == [20, 20, 13]
    assert {row["model_version"] for row in found} == {manifest.version}


def test_only_answers_and_the_manifest_stay(zones: Zones) -> None:
    """A complete batch is Parquet files and a manifest; plan, listing and lease are gone."""
    result = predicted(zones, name="monday")
    folder = f"_batch/{MODEL}/monday"
    assert keys(zones) == [f"{folder}/manifest.json", *(f"{folder}/part-0000{number}.parquet" for number in range(3))]
    assert result.address == f"{zones.predictions.url}/{folder}"


def test_asked_again_it_is_found(zones: Zones) -> None:
    """Nothing is answered twice; another object, or other bytes, make another batch."""
    first = predicted(zones)
    again = predicted(zones, map_parts=killed_after(0))
    assert (again.new, again.manifest) == (False, first.manifest)
    put(zones, [50])
    more = predicted(zones)
    assert more.new
    assert more.address != first.address
    zones.images.put(f"{FOLDER}/00000.png", b"other bytes")
    assert predicted(zones).manifest.left_out


@pytest.mark.parametrize("answered", [0, 1, 2])
@pytest.mark.parametrize("name", [None, "monday"])
def test_killed_it_goes_on_by_the_same_plan(zones: Zones, name: str | None, answered: int) -> None:
    """Repeated, only missing parts are answered, by the version and the listing of the first time."""
    expected = rows(zones.predictions, predicted(zones, name="undisturbed"))
    with pytest.raises(KilledError):
        predicted(zones, name=name, map_parts=killed_after(answered))
    put(zones, range(50, 60))
    later = champion(zones, seed=2)
    done: list[str] = []
    result = predicted(zones, name=name, map_parts=counted(done))
    assert len(done) == 3 - answered
    assert (result.found, result.new) == (answered, True)
    assert rows(zones.predictions, result) == expected
    assert later.version != result.manifest.version
    if name is None:  # and the next time it is another batch, of what is there now
        assert predicted(zones).manifest.objects == 60


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write(zones: Zones, after: bool) -> None:
    """Whichever write is a process's last, the repeated one ends with the same rows, and leaves nothing over."""
    expected = rows(zones.predictions, predicted(zones))
    kills = 0
    for writes in range(30):
        fresh = dataclasses.replace(zones, predictions=synthetic.memory_store())
        try:
            mortal = MortalStore(fresh.predictions, writes, after=after)
            predicted(dataclasses.replace(fresh, predictions=mortal))
        except KilledError:
            kills += 1
        fresh.predictions.delete([key for key in keys(fresh) if key.endswith("lease.json")])  # its process lives
        was_complete = any(key.endswith("manifest.json") for key in keys(fresh))
        result = predicted(fresh)
        assert rows(fresh.predictions, result) == expected
        assert result.new != was_complete
        assert was_complete or len(keys(fresh)) == 4
    assert kills > 10


def test_an_image_that_goes_meanwhile_is_a_row_with_the_reason(zones: Zones) -> None:
    """What was listed and is gone is told, and does not shift the other rows."""

    def meanwhile(answer: AnswerPart, parts: Iterable[Part]) -> Iterator[BatchPart]:
        zones.images.delete([f"{FOLDER}/00007.png"])
        return map(answer, parts)

    found = rows(zones.predictions, predicted(zones, map_parts=meanwhile))
    assert [(row["key"], row["reason"]) for row in found if row["label"] is None] == [
        (f"{FOLDER}/00007.png", "deleted since it was listed")
    ]
    assert len(found) == 50


def test_parts_may_come_in_any_order(zones: Zones) -> None:
    """The manifest names the parts in the order of keys whoever was ready first."""
    result = predicted(zones, map_parts=lambda answer, parts: [answer(part) for part in reversed(list(parts))])
    assert [row["key"] for row in rows(zones.predictions, result)] == [f"{FOLDER}/{each:05d}.png" for each in range(50)]


def test_a_name_belongs_to_one_batch(zones: Zones) -> None:
    """Another prefix or version under the name of a batch, finished or not, is refused, and so is another listing."""
    first = predicted(zones, name="monday")
    assert not predicted(zones, name="monday").new
    with pytest.raises(KilledError):
        predicted(zones, name="tuesday", map_parts=killed_after(1))
    put(zones, [1], "elsewhere")
    other = tiny_models.register(zones.checkpoints, zones.models, MODEL, 2).version
    for name in ("monday", "tuesday"):
        with pytest.raises(InvalidInput, match=rf"'{name}' is taken: .* 50 objects .*{FOLDER}.*choose another name"):
            predicted(zones, "elsewhere", name=name)
        with pytest.raises(InvalidInput, match=first.manifest.version):
            predicted(zones, name=name, version=other)
    put(zones, [50])
    with pytest.raises(InvalidInput, match="is taken"):
        predicted(zones, name="monday")
    assert predicted(zones, name="tuesday").manifest.objects == 50


def test_a_version_or_alias_may_be_asked_for(zones: Zones) -> None:
    """Any complete version answers, by id or by alias; its answers are another batch."""
    other = tiny_models.register(zones.checkpoints, zones.models, MODEL, 2).version
    assert predicted(zones, version=other).manifest.version == other
    assert not predicted(zones, version=aliases.NEWEST).new
    assert predicted(zones).manifest.version != other


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"folder": "nothing/here"}, NotFound, r"Nothing is stored below memory://images/nothing/here/"),
        ({"folder": "s3://elsewhere/a"}, InvalidInput, "s3://elsewhere is not the images zone"),
        ({"version": "20261122T000000Z-00000000"}, NotFound, "no version '20261122T000000Z-00000000'; it has"),
        ({"version": "challenger"}, NotFound, "no alias 'challenger'"),
        ({"name": "Monday!"}, InvalidInput, "'Monday!' is not the name of a batch"),
        ({"name": "_work"}, InvalidInput, "is not the name of a batch"),
    ],
)
def test_a_mistake_is_one_sentence(zones: Zones, options: dict[str, Any], kind: type[Exception], said: str) -> None:
    """What cannot be done is named, and nothing is left behind."""
    with pytest.raises(kind, match=said) as raised:
        predicted(zones, **options)
    assert str(raised.value).count(". ") == 0
    assert keys(zones) == []


def test_without_a_champion_it_says_so() -> None:
    """A model that nobody promoted needs a version."""
    zones = synthetic.memory_zones()
    put(zones, range(2))
    with pytest.raises(NotFound, match="no model is registered yet"):
        predicted(zones)
    tiny_models.register(zones.checkpoints, zones.models, MODEL, 1)
    with pytest.raises(NotFound, match="no version and no alias 'champion'"):
        predicted(zones)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_foreign_part_is_refused(zones: Zones, foreign: bool) -> None:
    """What another program, or another part, left under the name of a part is never taken for its answers."""
    with pytest.raises(KilledError):
        predicted(zones, name="monday", map_parts=killed_after(1))
    first, second = (f"_batch/{MODEL}/monday/part-0000{number}.parquet" for number in range(2))
    zones.predictions.put(second, b"anything" if foreign else zones.predictions.get(first))
    with pytest.raises(Corrupted, match=rf"{second} is no part of this batch"):
        predicted(zones, name="monday")


def test_a_plan_that_is_removed_meanwhile_is_a_conflict(zones: Zones, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an unfinished batch goes between the look and the lease, nothing is made of half of it."""
    with pytest.raises(KilledError):
        predicted(zones, name="monday", map_parts=killed_after(1))
    held = batches.hold

    def removed_first(*args: Any, **kwargs: Any) -> Any:
        zones.predictions.delete([Place(MODEL, "monday").plan])
        return held(*args, **kwargs)

    monkeypatch.setattr(batches, "hold", removed_first)
    with pytest.raises(Conflict, match="predict again"):
        predicted(zones, name="monday")


def test_summary_tells_what_there_is_to_know(zones: Zones) -> None:
    """Counts, reasons and the address, in lines for a person."""
    zones.images.put(f"{FOLDER}/broken.png", b"no image")
    lines = predict.summary(predicted(zones, name="monday"))
    assert "answered 50 of 51 objects" in lines[0]
    assert lines[1].startswith("no answer, not an image")
    assert lines[-1].endswith(f"_batch/{MODEL}/monday/")
    assert "as answered before" in predict.summary(predicted(zones, name="monday"))[0]
