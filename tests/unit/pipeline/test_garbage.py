"""Garbage: what is referred to is never removed, whatever lies around it, and what is not goes in time."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from pipeline import garbage, training_runs
from pipeline.artifacts import PrepareConfig
from pipeline.garbage import Limits
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.store import StoredObject

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NAMES = [f"{number:064x}" for number in range(6)]
RUN = "0123456789abcdef"
VERSION = "20261122T010203Z-0123abcd"
AGES = st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(days=2), timedelta(days=40)])
LIMITS = st.builds(
    Limits,
    older_than=st.sampled_from([timedelta(0), timedelta(hours=24)]),
    abandoned=st.sampled_from([None, timedelta(days=7)]),
)


def stored(key: str, age: timedelta) -> StoredObject:
    """A line of a listing."""
    return StoredObject(key, 10, "etag", NOW - age)


def listings(*patterns: str) -> st.SearchStrategy[list[StoredObject]]:
    """Listings of keys of these forms, of any ages."""
    keys = st.one_of(*(st.from_regex(re.compile(pattern), fullmatch=True) for pattern in patterns))
    return st.lists(st.builds(stored, keys, AGES), unique_by=lambda each: each.key, max_size=30)


def keys_of(found: Sequence[garbage.Garbage]) -> set[str]:
    """The keys that are garbage."""
    return {each.key for each in found}


PARTS = rf"cats/(shards/({'|'.join(NAMES)})\.safetensors|index/({'|'.join(NAMES)})\.parquet)"
OTHERS = r"cats/([0-9a-f]{16}/manifest\.json|latest\.json|lease\.json|[a-z]{1,5}(/[a-z]{1,5})?)"
WORK = r"cats/work/28x28-crop-1/[0-9a-f]{4}"
LISTS = r"cats/quarantine/[0-9a-f]{16}\.jsonl"


@given(listings(PARTS, OTHERS, WORK, LISTS), st.sets(st.sampled_from(NAMES)), LIMITS)
def test_a_dataset_loses_nothing_that_a_version_names(
    listing: list[StoredObject], named: set[str], limits: Limits
) -> None:
    """Only unnamed parts, unfinished work and old lists are garbage, each older than its limit; all such are."""
    keys = {f"cats/shards/{name}.safetensors" for name in named} | {f"cats/index/{name}.parquet" for name in named}
    found = keys_of(garbage.dataset_garbage(listing, keys, NOW, limits))
    ages = {each.key: NOW - each.modified for each in listing}
    preparing = any(re.fullmatch(WORK, key) and age <= limits.older_than for key, age in ages.items())
    for key, age in ages.items():
        part = re.fullmatch(PARTS, key) and key not in keys
        expected = (part or re.fullmatch(WORK, key)) and age > limits.older_than and not preparing
        expected = expected or (re.fullmatch(LISTS, key) and age > limits.quarantine)
        assert (key in found) is bool(expected), key


CHECKPOINTS = rf"{RUN}/checkpoints/00000[12]-00000000[123]/(checkpoint\.json|state\.safetensors)"
OF_A_RUN = rf"{RUN}/(lease\.json|result\.json|evaluation/report\.html|export/model\.onnx|[a-z]{{1,4}}/[a-z])"
BEST = f"{RUN}/checkpoints/000002-000000002/checkpoint.json"


@given(listings(CHECKPOINTS, OF_A_RUN), LIMITS)
def test_a_finished_run_keeps_its_best_checkpoint(listing: list[StoredObject], limits: Limits) -> None:
    """Old checkpoints but the best go, and the lease; result, evaluation, export and what is unknown stay."""
    found = keys_of(garbage.run_garbage(listing, BEST, NOW, limits))
    for each in listing:
        best = each.key.startswith(BEST.removesuffix("checkpoint.json"))
        goes = re.fullmatch(CHECKPOINTS, each.key) is not None and not best
        goes = goes or each.key == f"{RUN}/lease.json"
        assert (each.key in found) is (goes and NOW - each.modified > limits.older_than), each.key


@given(listings(CHECKPOINTS, OF_A_RUN), LIMITS)
def test_an_unfinished_run_goes_as_a_whole_or_not_at_all(listing: list[StoredObject], limits: Limits) -> None:
    """Without a limit for abandoned runs nothing goes; with one all checkpoints, once the newest is old enough."""
    found = keys_of(garbage.run_garbage(listing, None, NOW, limits))
    parts = {each for each in listing if re.fullmatch(rf"{RUN}/(checkpoints|evaluation|export)/.*", each.key)}
    if limits.abandoned is None or any(NOW - each.modified <= limits.abandoned for each in parts):
        assert not found
    else:
        assert found == {each.key for each in listing if each in parts or each.key == f"{RUN}/lease.json"}


@given(
    listings(
        rf"pets/({VERSION}|20261122T010203Z-ffffffff)/(manifest\.json|model\.onnx|report\.html|deployment\.json)",
        r"pets/(lease\.json|aliases/[a-z]{1,4}\.json|[a-z]{1,4}/model\.onnx)",
    ),
    st.sampled_from([set(), {VERSION}]),
    LIMITS,
)
def test_a_version_with_manifest_or_alias_keeps_all_files(
    listing: list[StoredObject], live: set[str], limits: Limits
) -> None:
    """Files of a version go only where it has no manifest, no alias names it, and none of them is young."""
    found = keys_of(garbage.model_garbage(listing, live, NOW, limits))
    for each in listing:
        version = each.key.split("/")[1]
        files = [other for other in listing if other.key.startswith(f"pets/{version}/")]
        complete = any(other.key.endswith("/manifest.json") for other in files)
        young = any(NOW - other.modified <= limits.older_than for other in files)
        half = version in {VERSION, "20261122T010203Z-ffffffff"} and not (complete or young or version in live)
        assert (each.key in found) is half, each.key


def test_ages_are_the_stores_own(tmp_path: Path) -> None:
    """What was stored a moment ago is younger than any limit, whatever this machine's clock says."""
    zones = synthetic.memory_zones()
    zones.datasets.put(f"cats/shards/{NAMES[0]}.safetensors", b"x")
    swept = garbage.sweep(zones, Settings(home=tmp_path), Limits(), remove=True)
    assert swept.garbage == ()
    assert [found.key for found in zones.datasets.listing()] == [f"cats/shards/{NAMES[0]}.safetensors"]
    assert abs(garbage.store_time(zones.datasets) - datetime.now(UTC)) < timedelta(minutes=1)
    assert not list(zones.datasets.listing("store-check"))


def test_a_dataset_that_cannot_be_judged_is_left_alone(tmp_path: Path) -> None:
    """Where a manifest is unreadable nothing of its dataset is removed, and the sentence says why; others are swept."""
    zones = synthetic.memory_zones()
    for dataset in ("cats", "dogs"):
        synthetic.put_classes(zones, dataset, 12)
        prepare(zones, dataset, PrepareConfig())
        zones.datasets.put(f"{dataset}/shards/{NAMES[0]}.safetensors", b"x")
    zones.datasets.put("cats/0123456789abcdef/manifest.json", b"{}")
    swept = garbage.sweep(zones, Settings(home=tmp_path), Limits(older_than=timedelta(0)), remove=True)
    assert keys_of(swept.garbage) == {f"dogs/shards/{NAMES[0]}.safetensors"}
    assert re.search("dataset cats is left alone: .*manifest", swept.left_alone[0])
    assert zones.datasets.head(f"cats/shards/{NAMES[0]}.safetensors")


def test_what_other_programs_store_is_left_alone(tmp_path: Path) -> None:
    """Folders and objects that are not of this program stay, whatever their age."""
    zones = synthetic.memory_zones()
    foreign = [
        "Foo Bar/20261122T010203Z-0123abcd/x",
        "notes.txt",
        "weights/start.safetensors",
        "cats/shards/readme.txt",
    ]
    for store in (zones.datasets, zones.checkpoints, zones.models):
        for key in foreign:
            store.put(key, b"x")
    limits = Limits(older_than=timedelta(0), abandoned=timedelta(0), quarantine=timedelta(0))
    assert garbage.sweep(zones, Settings(home=tmp_path), limits, remove=True).garbage == ()
    for store in (zones.datasets, zones.checkpoints, zones.models):
        assert sorted(foreign) == sorted(found.key for found in store.listing())


def test_a_run_somebody_works_on_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old unfinished run is given up, but not while its lease is renewed."""
    monkeypatch.setattr(garbage, "TTL_S", 0.2)
    zones = synthetic.memory_zones()
    zones.checkpoints.put(BEST, b"{}")
    limits = Limits(abandoned=timedelta(0))
    with training_runs.acquire(zones.checkpoints, RUN):
        swept = garbage.sweep(zones, Settings(home=tmp_path), limits, remove=True)
        assert "is being worked on" in swept.left_alone[0]
    assert zones.checkpoints.head(BEST)
    swept = garbage.sweep(zones, Settings(home=tmp_path), limits, remove=True)
    assert BEST in keys_of(swept.garbage)
    assert not list(zones.checkpoints.listing())


def test_looking_removes_nothing(tmp_path: Path) -> None:
    """Without ``remove`` the garbage is told and stays, and no lease is taken."""
    zones = synthetic.memory_zones()
    zones.models.put(f"pets/{VERSION}/model.onnx", b"x")
    limits = Limits(older_than=timedelta(0))
    told = garbage.sweep(zones, Settings(home=tmp_path), limits, remove=False)
    assert garbage.summary(told)[-1].startswith("Nothing was removed")
    assert [found.key for found in zones.models.listing()] == [f"pets/{VERSION}/model.onnx"]
    assert garbage.sweep(zones, Settings(home=tmp_path), limits, remove=True).garbage == told.garbage
    assert garbage.summary(garbage.sweep(zones, Settings(home=tmp_path), limits, remove=True)) == [
        "There is nothing that nothing refers to."
    ]
