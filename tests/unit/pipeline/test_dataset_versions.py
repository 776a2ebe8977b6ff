"""Manifests, the pointer to the newest version, and what happens when several preparations meet."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import synthetic

from pipeline import dataset_index, dataset_versions, index_segments
from pipeline.artifacts import DatasetVersion, PixelSpec, PrepareConfig
from pipeline.dataset_index import SCHEMA, Index
from pipeline.errors import Corrupted, NotFound
from pipeline.large_index import LargeIndex, on_disk
from pipeline.shards import ShardWriter
from pipeline.store import Store

CONFIG = PrepareConfig()


@pytest.fixture
def datasets() -> Store:
    """An empty zone in memory."""
    return synthetic.memory_zones().datasets


def version(name: int) -> DatasetVersion:
    """A version; what it is of does not matter here."""
    return DatasetVersion(
        dataset="cats",
        version=f"{name:016x}",
        classes=("a", "b"),
        pixels=PixelSpec(height=28, width=28, channels=1),
        counts={"train": 1, "validation": 0, "test": 1},
    )


def index(datasets: Store, *numbers: int, prefix: str = "cats/a") -> LargeIndex:
    """An index of images that are packed in one shard, in the order of ``numbers``."""
    digests = [hashlib.sha256(str(number).encode()).digest() for number in numbers]
    writer = ShardWriter(datasets, "cats")
    for number, digest in zip(numbers, digests, strict=True):
        writer.add(digest, np.full((28, 28, 1), number % 256, np.uint8))
    writer.finish()
    nothing = dict.fromkeys(SCHEMA.names)
    rows = [
        nothing | {"key": f"{prefix}/{number}", "etag": b"e", "size": 1, "digest": digest} | _place(writer, digest)
        for number, digest in zip(numbers, digests, strict=True)
    ]
    return on_disk(Index(pa.Table.from_pylist(rows, schema=SCHEMA), writer.shards))


def rows_of(index: LargeIndex) -> pa.Table:
    """All rows, in memory."""
    return pa.concat_tables(index.rows).combine_chunks()


def _place(writer: ShardWriter, digest: bytes) -> dict[str, object]:
    place = writer.locations[digest]
    return {"shard": place.shard, "row": place.row, "label": "a", "split": "train"}


def publish(datasets: Store, name: int, of: LargeIndex, cache: Path | None = None) -> bool:
    """Publish as a preparation does."""
    before = dataset_versions.read_prepared(datasets, "cats", cache)
    return dataset_versions.publish(datasets, version(name), CONFIG, of, before=before, cache=cache)


def keys(datasets: Store) -> set[str]:
    """All that is stored."""
    return {found.key for found in datasets.listing("cats")}


def test_a_version_is_new_once(datasets: Store) -> None:
    """Publishing the same again writes nothing; an older version becomes the latest without being written."""
    one, two = index(datasets, 1, 2), index(datasets, 1, 2, 3)
    assert publish(datasets, 1, one)
    stored = keys(datasets)
    assert not publish(datasets, 1, one)
    assert keys(datasets) == stored
    assert publish(datasets, 2, two)
    latest = dataset_versions.read_latest(datasets, "cats")
    assert latest is not None
    assert latest.version == version(2).version
    assert not publish(datasets, 1, one)
    latest = dataset_versions.read_latest(datasets, "cats")
    assert latest is not None
    assert latest.version == version(1).version
    prepared = dataset_versions.read_prepared(datasets, "cats")
    assert prepared is not None
    assert rows_of(prepared.index).equals(rows_of(one))


def test_what_changes_without_changing_the_content_is_kept(datasets: Store) -> None:
    """Renamed keys of an unchanged version are told by an extra segment, which replaces the one before it."""
    publish(datasets, 1, index(datasets, 1, 2))
    manifest = dataset_versions.read_manifest(datasets, "cats", version(1).version)
    for prefix in ("cats/b", "cats/c"):
        renamed = index(datasets, 1, 2, prefix=prefix)
        assert not publish(datasets, 1, renamed)
        prepared = dataset_versions.read_prepared(datasets, "cats")
        assert prepared is not None
        assert rows_of(prepared.index).equals(rows_of(renamed))
        assert len(prepared.segments) == 2
    assert dataset_versions.read_manifest(datasets, "cats", version(1).version) == manifest
    assert not publish(datasets, 1, index(datasets, 1, 2))
    latest = dataset_versions.read_latest(datasets, "cats")
    assert latest is not None
    assert latest.extra is None


def test_the_first_manifest_stays(datasets: Store) -> None:
    """A preparation that comes second with other shards keeps the first manifest, and its own index as a change."""
    theirs, ours = index(datasets, 1, 2), index(datasets, 2, 1)
    assert dataset_versions.publish(datasets, version(1), CONFIG, theirs)
    manifest = datasets.get(f"cats/{version(1).version}/manifest.json")
    assert not dataset_versions.publish(datasets, version(1), CONFIG, ours)
    assert datasets.get(f"cats/{version(1).version}/manifest.json") == manifest
    prepared = dataset_versions.read_prepared(datasets, "cats")
    assert prepared is not None
    assert rows_of(prepared.index).equals(rows_of(ours))


@pytest.mark.parametrize(("share", "fewest", "most"), [(0.0, 41, 41), (0.5, 2, 20)], ids=["unmerged", "merged"])
def test_many_additions_and_removals(
    datasets: Store, monkeypatch: pytest.MonkeyPatch, share: float, fewest: int, most: int
) -> None:
    """After 40 changes the index is right, however many of its segments were merged on the way."""
    monkeypatch.setattr(index_segments, "MERGED_SHARE", share)
    numbers = list(range(200))
    publish(datasets, 0, index(datasets, *numbers).changed(dataset_index.without_locations))
    for step in range(1, 41):
        numbers = [*numbers[1:], 200 + step]
        state = index(datasets, *numbers).changed(dataset_index.without_locations)
        assert publish(datasets, step, state)
        prepared = dataset_versions.read_prepared(datasets, "cats")
        assert prepared is not None
        assert rows_of(prepared.index).equals(rows_of(state))
    assert prepared is not None
    assert fewest <= len(prepared.segments) <= most


def test_the_cache_saves_reading_segments(datasets: Store, tmp_path: Path) -> None:
    """What this machine wrote or read it finds again when the store has lost it; the manifest is always asked for."""
    publish(datasets, 1, index(datasets, 1, 2), tmp_path)
    datasets.delete([found.key for found in datasets.listing("cats/index")])
    assert dataset_versions.read_prepared(datasets, "cats", tmp_path) is not None
    datasets.delete([f"cats/{version(1).version}/manifest.json"])
    assert dataset_versions.read_prepared(datasets, "cats", tmp_path) is None


@pytest.mark.parametrize("damage", ["gone", "altered"])
def test_a_broken_index_costs_time_only(datasets: Store, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """What the last preparation left is passed over when it cannot be read; a broken version is named."""
    publish(datasets, 1, index(datasets, 1, 2))
    for found in list(datasets.listing("cats/index")):
        if damage == "altered":
            datasets.put(found.key, b"x")
        else:
            datasets.delete([found.key])
    with caplog.at_level(logging.WARNING):
        assert dataset_versions.read_prepared(datasets, "cats") is None
    assert "from the beginning" in caplog.text
    assert publish(datasets, 2, index(datasets, 1, 2, 3)) is True
    with pytest.raises(Corrupted, match=r"delete memory://datasets/cats/ and prepare again"):
        publish(datasets, 1, index(datasets, 1, 2))


def test_what_another_release_wrote(datasets: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest or pointer of another format is named to readers, and no obstacle to a new preparation."""
    publish(datasets, 1, index(datasets, 1, 2))
    key = f"cats/{version(1).version}/manifest.json"
    datasets.put(key, datasets.get(key).replace(b'"format":1', b'"format":2'))
    with pytest.raises(Corrupted, match="another release"):
        dataset_versions.read_manifest(datasets, "cats", version(1).version)
    assert dataset_versions.read_prepared(datasets, "cats") is None
    datasets.put("cats/latest.json", b'{"format": 2}')
    assert dataset_versions.read_latest(datasets, "cats") is None
    assert publish(datasets, 2, index(datasets, 1, 2))
    assert "another release" in caplog.text


def test_a_version_that_is_not_there(datasets: Store) -> None:
    """Reading a manifest that nobody wrote is NotFound."""
    with pytest.raises(NotFound, match="'cats' has no version 'nope'"):
        dataset_versions.read_manifest(datasets, "cats", "nope")
