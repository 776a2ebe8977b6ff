import os
from pathlib import Path

import pytest

from pipeline import folder_scan
from pipeline.folder_scan import LeftAside, scan
from pipeline.raw import HIDDEN


class Scanned:
    """What a scan of a folder found, counted and noted."""

    def __init__(self, folder: Path) -> None:
        self.noted: list[tuple[str, str]] = []
        aside = LeftAside(lambda path, reason: self.noted.append((path, reason)))
        self.found = {file.path: file.size for file in scan(folder, aside)}
        self.counts = dict(aside.counts)


def test_every_file_is_found_with_its_size(tmp_path: Path) -> None:
    """Nested folders, spaces and accents included."""
    for path in ("a.png", "b c/é/d.PNG", "empty/.keep"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    scanned = Scanned(tmp_path)
    assert scanned.found == {"a.png": 5, "b c/é/d.PNG": len("b c/é/d.PNG".encode())}
    assert (scanned.counts, scanned.noted) == ({HIDDEN: 1}, [])


def test_links_are_followed_and_endless_ones_counted(tmp_path: Path) -> None:
    """Links to files and folders lead there; a link into a folder that it lies in does not loop."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(b"x")
    (tmp_path / "file.png").symlink_to(tmp_path / "a/x.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    scanned = Scanned(tmp_path)
    assert sorted(scanned.found) == ["a/x.png", "b/x.png", "file.png"]
    assert scanned.counts == {folder_scan.ENDLESS_LINK: 4, folder_scan.BROKEN_LINK: 1}
    assert ("gone.png", "broken link") in scanned.noted


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A named pipe, which would block whoever opens it, is counted."""
    os.mkfifo(tmp_path / "pipe.png")
    scanned = Scanned(tmp_path)
    assert (scanned.found, scanned.noted) == ({}, [("pipe.png", "not a regular file")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_counted(tmp_path: Path) -> None:
    """A folder without permission is left aside by name, and the others are read."""
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "a.png").write_bytes(b"x")
    scanned = Scanned(tmp_path)
    assert (list(scanned.found), scanned.noted) == (["a.png"], [("shut/", "unreadable")])


def test_a_folder_that_vanishes_meanwhile_is_counted(tmp_path: Path) -> None:
    """A folder deleted after it was seen does not stop the walk."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"x")
    aside = LeftAside(lambda _path, _reason: None)
    files = scan(tmp_path, aside)
    first = next(files).path
    other = tmp_path / ("b" if first.startswith("a") else "a")
    (other / "x.png").unlink()
    other.rmdir()
    assert list(files) == []
    assert aside.counts == {folder_scan.UNREADABLE: 1}


def test_names_of_any_bytes_are_found_and_can_be_shown(tmp_path: Path) -> None:
    """A name that is not UTF-8 is found, and noted as text that can be printed."""
    name = os.fsdecode(b"\xff.png")
    try:
        (tmp_path / name).symlink_to("nowhere")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert Scanned(tmp_path).noted == [("\ufffd.png", "broken link")]
