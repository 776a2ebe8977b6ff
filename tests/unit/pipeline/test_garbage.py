"""Garbage in a store in memory: looked for and removed; what garbage is has its tests in test_unreferenced.py."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import synthetic

from pipeline import garbage, training_runs
from pipeline.artifacts import PrepareConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.unreferenced import Limits

NAME = "0" * 64
RUN = "0123456789abcdef"
BEST = f"{RUN}/checkpoints/000002-000000002/checkpoint.json"
VERSION = "20261122T010203Z-0123abcd"


def test_ages_are_the_stores_own(tmp_path: Path) -> None:
    """What was stored a moment ago is younger than any limit, whatever this machine's clock says."""
    zones = synthetic.memory_zones()
    zones.datasets.put(f"cats/shards/{NAME}.safetensors", b"x")
    swept = garbage.sweep(zones, Settings(home=tmp_path), Limits(), remove=True)
    assert swept.garbage == ()
    assert [found.key for found in zones.datasets.listing()] == [f"cats/shards/{NAME}.safetensors"]
    assert abs(garbage.store_time(zones.datasets) - datetime.now(UTC)) < timedelta(minutes=1)
    assert not list(zones.datasets.listing("store-check"))


def test_a_dataset_that_cannot_be_judged_is_left_alone(tmp_path: Path) -> None:
    """Where a manifest is unreadable nothing of its dataset is removed, and the sentence says why; others are swept."""
    zones = synthetic.memory_zones()
    for dataset in ("cats", "dogs"):
        synthetic.put_classes(zones, dataset, 12)
        prepare(zones, dataset, PrepareConfig())
        zones.datasets.put(f"{dataset}/shards/{NAME}.safetensors", b"x")
    zones.datasets.put("cats/0123456789abcdef/manifest.json", b"{}")
    swept = garbage.sweep(zones, Settings(home=tmp_path), Limits(older_than=timedelta(0)), remove=True)
    assert {each.key for each in swept.garbage} == {f"dogs/shards/{NAME}.safetensors"}
    assert re.search("dataset cats is left alone: .*manifest", swept.left_alone[0])
    assert zones.datasets.head(f"cats/shards/{NAME}.safetensors")


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
    assert BEST in {each.key for each in swept.garbage}
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
