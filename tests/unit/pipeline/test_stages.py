"""Steps with this machine's settings."""

import threading
from pathlib import Path

import pytest
import synthetic

from pipeline import leases, stages
from pipeline.artifacts import PrepareConfig
from pipeline.errors import InvalidInput
from pipeline.prepare import PrepareResult
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.zones import Zones


def prepared(zones: Zones, home: Path, said: list[str], dataset: str = "cats") -> PrepareResult:
    """Prepare a dataset; ``said`` gets what is told of the progress."""

    def hear(progress: Progress) -> None:
        said.append(progress.stage)

    settings = Settings(home=home)
    return stages.prepare_dataset(settings, zones, dataset, PrepareConfig(), map_chunks=map, on_progress=hear)


def test_a_second_preparation_waits_for_the_first_and_says_for_whom(tmp_path: Path) -> None:
    """It begins once the other one is over, and finds the work done."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 20)
    said: list[str] = []
    results: list[PrepareResult] = []
    second = threading.Thread(target=lambda: results.append(prepared(zones, tmp_path, said)))
    with leases.acquire(zones.datasets, "cats/preparing.json", "the preparation of dataset cats") as lease:
        lease.end()
        second.start()
        second.join(1)
        assert second.is_alive()
        first = stages.prepare.prepare(zones, "cats", PrepareConfig())
    second.join(30)
    assert any("which works on the preparation of dataset cats" in line for line in said)
    assert results[0].version == first.version
    assert results[0].read == 0


def test_nothing_stays_behind_after_a_preparation(tmp_path: Path) -> None:
    """The mark that one is under way goes with it, also where it failed."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 20)
    prepared(zones, tmp_path, [])
    with pytest.raises(InvalidInput, match="no-cats"):
        prepared(zones, tmp_path, [], "no-cats")
    assert not [found.key for found in zones.datasets.listing() if found.key.endswith("preparing.json")]


def test_a_name_that_cannot_be_a_datasets_is_refused_first(tmp_path: Path) -> None:
    """No mark is left under it."""
    zones = synthetic.memory_zones()
    with pytest.raises(InvalidInput, match="cannot name a dataset"):
        prepared(zones, tmp_path, [], "../x")
    assert not list(zones.datasets.listing())
