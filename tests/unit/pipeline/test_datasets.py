"""Finding dataset versions, loading them, and getting their images back."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import synthetic

from pipeline import dataset_versions, datasets, images, index_segments
from pipeline.artifacts import DatasetVersion, PrepareConfig
from pipeline.dataset_index import Index, values
from pipeline.errors import Corrupted, NotFound
from pipeline.large_index import on_disk
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.zones import Zones


@pytest.fixture
def zones() -> Zones:
    """Zones in memory with a dataset of 60 grey and 3 colour images."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 20)
    for number in range(3):
        zones.images.put(f"cats/class-{number:03d}/rgb.png", synthetic.png(900 + number, channels=3))
    return zones


@pytest.fixture
def version(zones: Zones) -> DatasetVersion:
    """A version of it."""
    return prepare(zones, "cats", PrepareConfig(test_share=0.3)).version


def test_what_was_prepared_is_found(zones: Zones, version: DatasetVersion) -> None:
    """The newest version is found without its name, any by its name, and what is not there is said so."""
    assert datasets.latest(zones.datasets, "cats") == version
    assert datasets.find(zones.datasets, "cats", version.version) == version
    assert datasets.read_manifest(zones.datasets, "cats", version.version).config.test_share == 0.3
    with pytest.raises(NotFound, match=r"'dogs' has no version yet: prepare it"):
        datasets.latest(zones.datasets, "dogs")
    with pytest.raises(NotFound, match="'0123456789abcdef'"):
        datasets.find(zones.datasets, "cats", "0123456789abcdef")


def test_splits_are_loaded_as_decoded(zones: Zones, version: DatasetVersion) -> None:
    """Every image is in one split, by digest, with its label and the pixels that decoding it gives."""
    raw = {hashlib.sha256(data).digest(): (key, data) for key, data in _stored(zones)}
    seen: list[bytes] = []
    for split in ("train", "validation", "test"):
        loaded = datasets.load_split(zones.datasets, version, split)
        digests = [row.tobytes() for row in loaded.digests]
        assert digests == sorted(digests)
        assert set(digests) == datasets.split_digests(zones.datasets, version, split)
        assert len(digests) == version.counts[split]
        assert loaded.pixels.dtype == np.uint8
        assert loaded.labels.dtype == np.int64
        for digest, pixels, label in zip(digests, loaded.pixels, loaded.labels, strict=True):
            key, data = raw[digest]
            assert version.classes[label] == key.split("/")[1]
            assert np.array_equal(pixels, images.decode(data, version.pixels))
        names = {digest: version.classes[label] for digest, label in zip(digests, loaded.labels, strict=True)}
        assert datasets.labels_of(zones.datasets, version, split) == names
        seen += digests
    assert sorted(seen) == sorted(raw)
    assert version.pixels.channels == 3


def _stored(zones: Zones) -> list[tuple[str, bytes]]:
    return [(found.key, zones.images.get(found.key)) for found in zones.images.listing("cats")]


def test_an_empty_split_is_loaded(zones: Zones) -> None:
    """A split without images is empty arrays of the right shapes."""
    version = prepare(zones, "cats", PrepareConfig(validation_share=0)).version
    loaded = datasets.load_split(zones.datasets, version, "validation")
    assert loaded.pixels.shape == (0, 28, 28, 3)
    assert loaded.labels.shape == (0,)
    assert loaded.digests.shape == (0, 32)


def test_progress_is_told(zones: Zones, version: DatasetVersion) -> None:
    """Loading tells how many images are done, up to all."""
    told: list[Progress] = []
    datasets.load_split(zones.datasets, version, "train", on_progress=told.append)
    assert [each.total for each in told] == [version.counts["train"]] * len(told)
    assert told[-1].done == version.counts["train"]


def test_a_split_that_exceeds_memory_is_read_from_a_file(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Wherever the pixels lie, they are the same in the same order; the file is gone with the split."""
    resident = datasets.load_split(zones.datasets, version, "train", memory_mb=1)
    mapped = datasets.load_split(zones.datasets, version, "train", memory_mb=0, scratch=tmp_path)
    assert resident.file is None
    assert mapped.file is not None
    for name in ("pixels", "labels", "digests"):
        assert np.array_equal(getattr(resident, name), getattr(mapped, name))
    mapped.release()
    assert np.array_equal(resident.pixels, mapped.pixels)
    assert not list(tmp_path.iterdir())


def test_an_altered_shard_is_noticed(zones: Zones, version: DatasetVersion) -> None:
    """One changed byte in a shard is Corrupted, not an image."""
    for stored in zones.datasets.listing("cats/shards"):
        data = bytearray(zones.datasets.get(stored.key))
        data[-5] ^= 1
        zones.datasets.put(stored.key, bytes(data))
    with pytest.raises(Corrupted, match="was altered"):
        datasets.load_split(zones.datasets, version, "train")


def test_an_altered_index_is_noticed(zones: Zones, version: DatasetVersion) -> None:
    """An index segment that is not what the manifest names is Corrupted."""
    for stored in zones.datasets.listing("cats/index"):
        zones.datasets.put(stored.key, zones.datasets.get(stored.key) + b"x")
    with pytest.raises(Corrupted):
        datasets.read_index(zones.datasets, version)


def test_an_index_that_points_elsewhere_is_noticed(zones: Zones, version: DatasetVersion) -> None:
    """Where an index names another row than the image's, or one that is not there, the loader says so."""
    rows = datasets.read_index(zones.datasets, version)
    manifest = datasets.read_manifest(zones.datasets, "cats", version.version)
    shards = index_segments.read_large(zones.datasets, "cats", manifest.segments, None).shards
    right = values(rows["row"])
    swapped = [{0: 1, 1: 0}.get(row, row) for row in right]
    for name, wrong in (("1" * 16, swapped), ("2" * 16, [row + 1000 for row in right])):
        column = pa.array(wrong, pa.int32())
        index = Index(rows.set_column(rows.schema.get_field_index("row"), rows.schema.field("row"), column), shards)
        other = version.model_copy(update={"version": name})
        dataset_versions.publish(zones.datasets, other, PrepareConfig(), on_disk(index))
        with pytest.raises(Corrupted, match="holds other images"):
            datasets.load_split(zones.datasets, other, "train")


def test_images_come_back_encoded(zones: Zones, version: DatasetVersion) -> None:
    """Encoded images are the raw ones, in the order asked for, and repeatedly if asked so."""
    raw = {hashlib.sha256(data).digest(): data for _, data in _stored(zones)}
    asked = [*sorted(raw, reverse=True), next(iter(raw))]
    found = list(datasets.encoded_images(zones.images, zones.datasets, version, asked))
    assert [digest for digest, _ in found] == asked
    assert all(raw[digest] == data for digest, data in found)
    assert not list(datasets.encoded_images(zones.images, zones.datasets, version, []))


def test_images_that_are_gone_come_back_from_their_pixels(
    zones: Zones, version: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw image that was deleted or replaced comes back as a PNG of its stored pixels, in blocks of any size."""
    monkeypatch.setattr(datasets, "BLOCK_BYTES", 3000)
    before = {hashlib.sha256(data).digest(): (key, data) for key, data in _stored(zones)}
    for key in [key for key, _ in before.values()][::3]:
        zones.images.delete([key])
    for key in [key for key, _ in before.values()][1::3]:
        zones.images.put(key, synthetic.png(5000))
    for digest, data in datasets.encoded_images(zones.images, zones.datasets, version, list(before)):
        expected = images.decode(before[digest][1], version.pixels)
        assert np.array_equal(images.decode(data, version.pixels), expected)


def test_an_unknown_image_is_said_so(zones: Zones, version: DatasetVersion) -> None:
    """Asking for an image that is not in the version is NotFound."""
    with pytest.raises(NotFound, match="1 of the images"):
        list(datasets.encoded_images(zones.images, zones.datasets, version, [bytes(32)]))


@pytest.mark.parametrize("memory_mb", [0, 1])
@pytest.mark.parametrize("parts", [2, 3, 50])
def test_parts_of_a_split_are_the_split(
    zones: Zones, version: DatasetVersion, tmp_path: Path, parts: int, memory_mb: int
) -> None:
    """Each image is in exactly one part, at the place that all parts name, in memory or in a file."""
    whole = datasets.load_split(zones.datasets, version, "train")
    loaded = [
        datasets.load_split(
            zones.datasets, version, "train", memory_mb=memory_mb, scratch=tmp_path, part=part, parts=parts
        )
        for part in range(parts)
    ]
    sizes = [len(each.pixels) for each in loaded]
    assert max(sizes) - min(sizes) <= 1
    together = np.concatenate([each.pixels for each in loaded])
    for each in loaded:
        assert each.places is not None
        assert (together[each.places] == whole.pixels).all()
        assert (each.labels == whole.labels).all()
