import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import private_files
from pipeline.errors import LocalServiceFailed


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of this test's own, which does not exist yet."""
    return tmp_path / "home"


def mode(path: Path) -> int:
    """The permission bits of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=200))
def test_private_files_hold_what_was_written(tmp_path: Path, text: str) -> None:
    """A private file is replaced as a whole, is the owner's alone, and nothing is left beside it."""
    folder = private_files.private_folder(tmp_path / "a" / "b")
    private_files.write_private(folder / "file", text)
    assert (folder / "file").read_text(encoding="utf-8") == text
    assert mode(folder / "file") == 0o600
    assert mode(folder) == mode(folder.parent) == 0o700
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file, a folder or a lock below a file is one sentence that names the path and the setting that moves it."""
    (tmp_path / "home").write_text("a file")
    with pytest.raises(LocalServiceFailed, match=r"home/x cannot be written"):
        private_files.write_private(tmp_path / "home" / "x", "text")
    with pytest.raises(LocalServiceFailed, match=r"/home cannot be written \(it is no folder\).*SAFELIGHT_HOME\.$"):
        private_files.private_folder(tmp_path / "home" / "x")
    with (
        pytest.raises(LocalServiceFailed, match=r"/home cannot be written .*SAFELIGHT_HOME\.$"),
        private_files.locked(tmp_path / "home", "a"),
    ):
        pass


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """Where a folder lies in the file's place, the sentence names it and no half-written file stays."""
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(LocalServiceFailed, match=r"/taken cannot be written"):
        private_files.write_private(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_lock_is_held_by_one_at_a_time(home: Path) -> None:
    """Threads and processes alike wait for the holder of a lock; another name is another lock."""
    order: list[str] = []
    with private_files.locked(home, "a"):
        waiter = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from pathlib import Path\nfrom pipeline import private_files\n"
                f"with private_files.locked(Path({str(home)!r}), 'a'): print('in', flush=True)",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        with private_files.locked(home, "b"):
            order.append("b")
        time.sleep(0.5)
        assert waiter.poll() is None
        order.append("out")
    assert waiter.communicate(timeout=10)[0] == "in\n"
    assert order == ["b", "out"]


def test_a_lock_is_free_when_its_holder_is_killed(home: Path) -> None:
    """Whoever waits for a process that is killed gets the lock at once."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline import private_files\n"
        "with private_files.locked(Path(sys.argv[1]), 'a'):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
        began = time.monotonic()
        with private_files.locked(home, "a"):
            assert time.monotonic() - began < 5
