"""The check that runs before anything is installed, as the Makefile runs it: a plain script in a bare interpreter."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "pipeline" / "preflight.py"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *arguments], capture_output=True, text=True, check=False, cwd=SCRIPT.parent
    )


def test_it_needs_nothing_but_python() -> None:
    """In an isolated interpreter it either names each lack in one line, or says what will be downloaded."""
    done = _run()
    assert done.returncode in (0, 1), done.stderr
    said = (done.stdout + done.stderr).strip().splitlines()
    assert said
    assert all(line.startswith("safelight: ") for line in said)
    assert (done.returncode == 0) == ("the download is about" in done.stdout)


def test_it_says_nothing_when_all_is_installed_and_there_is_room() -> None:
    """Once everything is installed, a machine with enough disk and memory hears nothing of it."""
    free = shutil.disk_usage(SCRIPT.parent).free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    done = _run("--installed")
    if free > 4 << 30 and memory > 8 << 30:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    else:
        assert done.returncode in (0, 1)


def test_an_old_interpreter_can_still_read_it() -> None:
    """Its syntax is that of Python 3.7, so that an older Python says that it is too old instead of failing to parse."""
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))
