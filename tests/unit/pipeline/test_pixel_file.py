"""Pixels in a local file, read as an array."""

import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.errors import InvalidInput
from pipeline.pixel_file import PixelFile


def test_what_was_written_is_read_as_an_array(tmp_path: Path) -> None:
    """Rows written in any order are an array, before and after its pages are released, when the file is closed."""
    expected = np.random.default_rng(0).integers(0, 256, (300, 9, 7, 3), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(300)
    with PixelFile(tmp_path / "new", expected.shape) as file:
        for part in np.array_split(order, 7):
            file.write(part, expected[part])
        pixels = file.mapped()
    assert np.array_equal(pixels, expected)
    file.release()
    assert np.array_equal(pixels[order], expected[order])


def test_the_array_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    """The array is writable, as torch wants it."""
    with PixelFile(tmp_path, (2, 1, 1, 1)) as file:
        file.write(np.arange(2), np.ones((2, 1, 1, 1), np.uint8))
        pixels = file.mapped()
    pixels[0] = 7
    assert pixels.ravel().tolist() == [7, 1]


def test_the_file_leaves_no_trace(tmp_path: Path) -> None:
    """It has no name while it is used, so that a killed process leaves nothing behind."""
    with PixelFile(tmp_path, (4, 2, 2, 1)):
        assert list(tmp_path.iterdir()) == []


def test_released_pages_are_not_resident(tmp_path: Path) -> None:
    """Reading makes the process larger, and releasing makes it small again."""
    rows = 64
    with PixelFile(tmp_path, (rows, 1024, 1024, 1)) as file:
        for row in range(rows):
            file.write(np.array([row]), np.full((1, 1024, 1024, 1), row, np.uint8))
        pixels = file.mapped()
    before = psutil.Process().memory_info().rss
    assert pixels.max() == rows - 1
    read = psutil.Process().memory_info().rss
    file.release()
    released = psutil.Process().memory_info().rss
    assert read - before > 50 << 20
    assert released - before < 10 << 20


def test_too_little_space_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written, a person learns how much space is needed, where, and which setting helps."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 << 20, 8 << 20, 2 << 20))
    with pytest.raises(InvalidInput, match=r"cannot hold 3 MiB .* SAFELIGHT_TRAINING_MEMORY_MB \(2 MiB are free\)"):
        PixelFile(tmp_path, (3, 1024, 1024, 1))


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    """A file where the folder should be is named with the reason."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match=rf"{tmp_path}/file cannot hold .* \({os.strerror(17)}\)"):
        PixelFile(tmp_path / "file", (3, 2, 2, 1))


def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the disk refuses is the same sentence, not a traceback."""

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    with PixelFile(tmp_path, (3, 2, 2, 1)) as file:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(InvalidInput, match=rf"cannot hold .* \({os.strerror(28)}\)"):
            file.write(np.arange(3), np.zeros((3, 2, 2, 1), np.uint8))


def test_half_a_row_is_a_full_disk(tmp_path: Path) -> None:
    """A write that the system cuts short ends with the sentence of a full disk, never with an image of zeros."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PixelFile(tmp_path, (2, 4, 4, 1)) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (24, before[1]))  # one row of 16 bytes and half of the next
        try:
            with pytest.raises(InvalidInput, match="the disk is full"):
                file.write(np.array([0, 1]), np.ones((2, 4, 4, 1), np.uint8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
