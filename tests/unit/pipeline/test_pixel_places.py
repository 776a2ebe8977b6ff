"""Where the pixels of what is trained on lie."""

import shutil
from collections import namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prepare, shards
from pipeline.artifacts import DatasetVersion, PrepareConfig, Split
from pipeline.datasets import LoadedSplit
from pipeline.pixel_places import placed_splits, rooms_for, streamed
from pipeline.ranks import Ranks
from pipeline.streamed import Streamed
from pipeline.zones import Zones

BYTES = st.integers(0, 1 << 40)


@given(train=BYTES, validation=BYTES, disk=st.integers(1 << 20, 1 << 40))
def test_the_disk_is_never_given_twice(train: int, validation: int, disk: int) -> None:
    """What lies in files and what streamed splits may take is within the bound, and nothing is streamed that fits."""
    rooms = rooms_for(train, validation, disk)
    streams = streamed(train, validation, disk)
    assert sum(rooms) <= disk
    assert any(streams) == (train + validation > disk)
    for size, room, streams_it in zip((train, validation), rooms, streams, strict=True):
        assert (size > room) == streams_it
        assert room >= min(size, disk // 4)


@pytest.fixture
def zones() -> Zones:
    """Empty zones in memory."""
    return synthetic.memory_zones()


@pytest.fixture
def version(zones: Zones, monkeypatch: pytest.MonkeyPatch) -> DatasetVersion:
    """About 6 MiB of training images in shards of 64 KiB."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 64 << 10)
    for number in range(100):
        zones.images.put(f"pictures/{number % 2}/{number}.png", synthetic.png(number, 256, 256))
    return prepare.prepare(zones, "pictures", PrepareConfig(size=256)).version


def places(zones: Zones, version: DatasetVersion, folder: Path, **room: int | None) -> Mapping[Split, str]:
    """Where each split lies, given so much room in MiB."""
    wanted = {"memory_mb": 0, "disk_mb": None} | room
    with placed_splits(zones.datasets, version, scratch=folder, **wanted) as splits:  # type: ignore[arg-type]
        assert all(len(splits[split].labels) == version.counts[split] for split in splits)
        return {split: _place(splits[split]) for split in splits}


def _place(split: LoadedSplit | Streamed) -> str:
    if isinstance(split, Streamed):
        return "store"
    return "file" if split.file else "memory"


def test_what_fits_is_not_streamed(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Memory comes first, then files, then the store; by default files may take all that is free."""
    assert places(zones, version, tmp_path, memory_mb=64) == {"train": "memory", "validation": "memory"}
    assert places(zones, version, tmp_path, memory_mb=1) == {"train": "file", "validation": "memory"}
    assert places(zones, version, tmp_path) == {"train": "file", "validation": "file"}
    assert places(zones, version, tmp_path, disk_mb=64) == {"train": "file", "validation": "file"}
    assert places(zones, version, tmp_path, disk_mb=2) == {"train": "store", "validation": "file"}


def test_half_of_what_is_free_where_that_is_too_little(
    zones: Zones, version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that has too little room for files, training streams through half of what is free."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(8 << 20, 4 << 20, 4 << 20))
    with placed_splits(zones.datasets, version, memory_mb=1, disk_mb=None, scratch=tmp_path) as splits:
        assert isinstance(splits["train"], Streamed)
        assert 2 * splits["train"].half * 256 * 256 <= 2 << 20


class LikeMinded(Ranks):
    """A rank whose fellows find what it finds."""

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """What it says itself."""
        return list(flags)


def test_ranks_of_one_machine_share_what_is_free(
    zones: Zones, version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks on one disk do not both count on all of it: files that fit one by one, but not together, are none."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(8 << 20, 4 << 20, 4 << 20))
    for local_world, place in ((1, "file"), (2, "store")):
        group = LikeMinded(0, 2, 0, local_world)
        room = {"memory_mb": 1, "disk_mb": None, "scratch": tmp_path, "group": group}
        with placed_splits(zones.datasets, version, **room) as splits:  # type: ignore[arg-type]
            assert _place(splits["train"]) == place
