"""Imports into a real object store."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import fashion_mnist
from pipeline.artifacts import PixelSpec
from pipeline.images import decode, encode_png
from pipeline.labels_table import LABELS
from pipeline.raw import list_raw
from pipeline.sources import import_fashion_mnist, import_folder
from pipeline.zones import Zones

needs_fashion_mnist = pytest.mark.skipif(
    not fashion_mnist.INSTALLED.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


def _images(folder: Path, *paths: str) -> Path:
    """One PNG per path, each of its own pixels."""
    rng = np.random.default_rng(len(paths))
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode_png(rng.integers(0, 256, (9, 9, 3), np.uint8)))
    return folder


def test_a_second_import_writes_only_what_changed(zones: Zones, tmp_path: Path) -> None:
    """Digests tell what is there: unchanged files are not written again, a changed and a new one are."""
    paths = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(600)]
    first = import_folder(zones, _images(tmp_path, *paths), "pets")
    second = import_folder(zones, tmp_path, "pets")
    assert (first.uploaded, first.already_there) == (1200, 0)
    assert (second.uploaded, second.already_there, second.bytes) == (0, 1200, 0)
    changed = tmp_path / "cat/5.png"
    same_size = bytearray(changed.read_bytes())
    same_size[-1] ^= 1
    changed.write_bytes(same_size)
    _images(tmp_path, "cat/new.png")
    third = import_folder(zones, tmp_path, "pets")
    assert (third.uploaded, third.already_there) == (2, 1199)
    assert zones.images.get("pets/cat/5.png") == bytes(same_size)
    assert len(list_raw(zones.images, "pets").images) == 1201


def test_any_name_goes_in_and_comes_out(zones: Zones, tmp_path: Path) -> None:
    """Names that people have, put into a real store, are listed under their keys with their very bytes."""
    names = [
        "a b.png",
        "é.png",
        "100%.png",
        "x%41.png",
        "a\\b.png",
        "c\nd.png",
        "~#[]{}'\"<>&|*?.png",
        " é .JPG",
        "图😀.png",
    ]
    names += [os.fsdecode(b"\xfe.png"), "a\uffff.png", "b\x7f.png", "+&=:;,@.png"]
    _images(tmp_path, *(f"{label}/{name}" for label in ("cat", "labels.csv") for name in names))
    report = import_folder(zones, tmp_path, "pets")
    assert (report.uploaded, report.skipped) == (2 * len(names), {})
    assert import_folder(zones, tmp_path, "pets").already_there == 2 * len(names)
    listing = list_raw(zones.images, "pets")
    assert {image.label for image in listing.images} == {"cat", "labels.csv"}
    stored = {zones.images.get(image.key) for image in listing.images}
    assert stored == {path.read_bytes() for path in tmp_path.glob("*/*")}


def test_a_table_is_replaced_by_the_next_import(zones: Zones, tmp_path: Path) -> None:
    """A corrected labels.csv corrects the labels; no image is written again."""
    _images(tmp_path, "1.png", "2.png")
    (tmp_path / LABELS).write_text("key,label\n1.png,cat\n2.png,dog\n", encoding="utf-8")
    import_folder(zones, tmp_path, "pets")
    (tmp_path / LABELS).write_text("key,label,split\n1.png,dog,test\n2.png,cat,\n", encoding="utf-8")
    again = import_folder(zones, tmp_path, "pets")
    labels = {image.key: (image.label, image.split) for image in list_raw(zones.images, "pets").images}
    assert labels == {"pets/1.png": ("dog", "test"), "pets/2.png": ("cat", None)}
    assert (again.uploaded, again.already_there) == (0, 2)


@needs_fashion_mnist
def test_fashion_mnist_arrives_with_labels_and_splits(zones: Zones, tmp_path: Path) -> None:
    """Pixels, labels and splits are the published ones; a second import writes nothing, a larger one the rest."""
    first = import_fashion_mnist(zones, cache_dir=tmp_path, limit=210)
    listing = list_raw(zones.images, "fashion-mnist")
    assert first.uploaded == len(listing.images) == 210
    assert {image.label for image in listing.images} == set(fashion_mnist.CLASSES)
    assert {image.split for image in listing.images} == {"train", "test"}
    assert (listing.skipped, listing.problems) == ({}, [])
    parts = fashion_mnist.load(tmp_path)
    for image in listing.images[::40]:
        split, _, index = image.key.rpartition("/")[2].removesuffix(".png").partition("-")
        pixels, labels = parts[split]
        stored = decode(zones.images.get(image.key), PixelSpec(height=28, width=28, channels=1))
        np.testing.assert_array_equal(stored[:, :, 0], pixels[int(index)])
        assert fashion_mnist.CLASSES[labels[int(index)]] == image.label
    again = import_fashion_mnist(zones, cache_dir=tmp_path, limit=210)
    assert (again.uploaded, again.already_there) == (0, 210)
    more = import_fashion_mnist(zones, cache_dir=tmp_path, limit=300)
    assert (more.uploaded, more.already_there) == (90, 210)
    assert len(list_raw(zones.images, "fashion-mnist").images) == 300
