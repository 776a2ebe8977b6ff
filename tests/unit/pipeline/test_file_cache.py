"""The folder of files that were read from the store before."""

import hashlib
import os
from pathlib import Path

import pytest

from pipeline import file_cache


def digest(data: bytes) -> str:
    """The name of a file in the cache."""
    return hashlib.sha256(data).hexdigest()


def refuse() -> bytes:
    """Fail when the store would be asked."""
    raise AssertionError("asked the store")


def test_what_was_read_is_not_asked_for_again(tmp_path: Path) -> None:
    """The first read asks, the second does not; without a folder each read asks."""
    folder = tmp_path / "new" / "cache"
    assert file_cache.read(folder, digest(b"x"), lambda: b"x") == b"x"
    assert file_cache.read(folder, digest(b"x"), refuse) == b"x"
    file_cache.write(folder, b"y")
    assert file_cache.read(folder, digest(b"y"), refuse) == b"y"
    assert file_cache.read(None, digest(b"x"), lambda: b"x") == b"x"
    file_cache.write(None, b"z")


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    """A file that is not what its name says counts as absent, and is put right."""
    file_cache.write(tmp_path, b"x")
    (tmp_path / digest(b"x")).write_bytes(b"damaged")
    assert file_cache.read(tmp_path, digest(b"x"), lambda: b"x") == b"x"
    assert (tmp_path / digest(b"x")).read_bytes() == b"x"


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    """A cache that cannot be written makes nothing fail."""
    occupied = tmp_path / "file"
    occupied.write_bytes(b"")
    assert file_cache.read(occupied, digest(b"x"), lambda: b"x") == b"x"


def test_the_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound the files that were not used for longest go."""
    monkeypatch.setattr(file_cache, "LIMIT_BYTES", 25)
    for age, data in ((3, b"a" * 10), (2, b"b" * 10)):
        file_cache.write(tmp_path, data)
        os.utime(tmp_path / digest(data), (0, 1_000_000 - age))
    file_cache.read(tmp_path, digest(b"a" * 10), refuse)
    file_cache.write(tmp_path, b"c" * 10)
    assert {path.name for path in tmp_path.iterdir()} == {digest(b"a" * 10), digest(b"c" * 10)}


def test_clearing_forgets_all(tmp_path: Path) -> None:
    """After ``clear`` nothing is kept, and it says how much that was; clearing nothing is fine."""
    file_cache.write(tmp_path / "cache", b"12345")
    assert file_cache.clear(tmp_path / "cache") == (1, 5)
    assert not list((tmp_path / "cache").iterdir())
    assert file_cache.clear(tmp_path / "never") == (0, 0)
