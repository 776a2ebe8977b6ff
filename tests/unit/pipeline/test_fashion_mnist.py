import gzip
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline import fashion_mnist
from pipeline.artifacts import Split
from pipeline.errors import InvalidInput

NOWHERE = Path("/nonexistent")


def _write(folder: Path, prefix: str, count: int) -> None:
    """Files in the published format: ``count`` images of each class, all pixels the image's index."""
    labels = np.arange(10, dtype=np.uint8).repeat(count)
    images = np.arange(10 * count, dtype=np.uint8)[:, None, None].repeat(28, axis=1).repeat(28, axis=2)
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">HBB", 0, 8, 3) + struct.pack(">3I", *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
    head = struct.pack(">HBB", 0, 8, 1) + struct.pack(">I", len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))


def _downloading(folder: Path) -> None:
    _write(folder / "FashionMNIST/raw", "train", 3)
    _write(folder / "FashionMNIST/raw", "t10k", 1)


def _no_network(folder: Path) -> None:
    raise RuntimeError(f"Error downloading into {folder}")


def test_files_are_downloaded_once(tmp_path: Path) -> None:
    """The first load downloads into the cache; the second finds the files there and needs no network."""
    first = fashion_mnist.load(tmp_path, installed=NOWHERE, fetch=_downloading)
    again = fashion_mnist.load(tmp_path, installed=NOWHERE, fetch=_no_network)
    for parts in (first, again):
        images, labels = parts["train"]
        assert images.shape == (30, 28, 28)
        assert (images[7] == 7).all()
        assert list(labels[:4]) == [0, 0, 0, 1]
        assert parts["test"][0].shape == (10, 28, 28)


def test_an_installed_copy_is_preferred(tmp_path: Path) -> None:
    """Where an operating system's package is installed, nothing is downloaded."""
    _write(tmp_path / "installed", "train", 1)
    _write(tmp_path / "installed", "t10k", 1)
    parts = fashion_mnist.load(tmp_path / "cache", installed=tmp_path / "installed", fetch=_no_network)
    assert len(parts["train"][0]) == 10


def test_without_files_and_network_both_ways_out_are_named(tmp_path: Path) -> None:
    """One sentence says: connect to a network, or install the package."""
    with pytest.raises(InvalidInput, match=r"connect to a network, or .* apt-get install dataset-fashion-mnist\.$"):
        fashion_mnist.load(tmp_path, installed=NOWHERE, fetch=_no_network)


@pytest.mark.parametrize(
    "damage", [b"", b"no gzip", gzip.compress(b"\0\0\x08\x03\0\0\0\x05"), gzip.compress(b"\0\0\x0b\x01")]
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    """A file that was cut or replaced is named, with what to do."""
    _downloading(tmp_path)
    path = tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(damage)
    with pytest.raises(InvalidInput, match=f"{path} is damaged: delete it and import again"):
        fashion_mnist.load(tmp_path, installed=NOWHERE, fetch=_no_network)


def test_images_and_labels_of_different_numbers_are_refused(tmp_path: Path) -> None:
    """Files that do not belong together are not imported."""
    _downloading(tmp_path)
    folder = tmp_path / "FashionMNIST/raw"
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(InvalidInput, match="holds other files than Fashion-MNIST's"):
        fashion_mnist.load(tmp_path, installed=NOWHERE, fetch=_no_network)


def _published_labels() -> dict[Split, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes: dict[Split, int] = {"train": 6000, "test": 1000}
    return {split: rng.permutation(np.arange(10).repeat(size)).astype(np.uint8) for split, size in sizes.items()}


def test_a_subset_keeps_the_shares_of_splits_and_classes() -> None:
    """Every class of every split has its share, to one image; the whole is everything once."""
    labels = _published_labels()
    chosen = fashion_mnist.subset(labels, 1400)
    counts = Counter((split, int(labels[split][index])) for split, index in chosen)
    assert len(chosen) == 1400
    assert {count for (split, _), count in counts.items() if split == "train"} <= {119, 120, 121}
    assert {count for (split, _), count in counts.items() if split == "test"} <= {20, 21}
    assert len(set(fashion_mnist.subset(labels, None))) == 70_000


def test_a_larger_subset_holds_the_smaller_one() -> None:
    """Raising the limit only adds images."""
    labels = _published_labels()
    small, large = fashion_mnist.subset(labels, 100), fashion_mnist.subset(labels, 5000)
    assert large[:100] == small


def test_the_smallest_subset_has_each_class_in_both_splits() -> None:
    """Twenty images are the least; below, the sentence says why."""
    labels = _published_labels()
    chosen = fashion_mnist.subset(labels, 20)
    assert len({(split, int(labels[split][index])) for split, index in chosen}) == 20
    with pytest.raises(InvalidInput, match="each class needs a training and a test image"):
        fashion_mnist.subset(labels, 19)
