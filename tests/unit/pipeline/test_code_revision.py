"""How the code that registered a version is told."""

import subprocess
from pathlib import Path

from pipeline.code_revision import found_code_revision


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_is_told_by_its_commit(tmp_path: Path) -> None:
    """A tracked file gives the commit, with ``-dirty`` once a tracked file was changed."""
    source = tmp_path / "code.py"
    source.write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert found_code_revision(source) == f"git:{commit}"
    source.write_text("two")
    assert found_code_revision(source) == f"git:{commit}-dirty"


def test_a_package_inside_somebody_elses_checkout_is_told_by_its_version(tmp_path: Path) -> None:
    """An installed copy below another project's checkout does not borrow that project's commit."""
    (tmp_path / "theirs.py").write_text("one")
    git(tmp_path, "init")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "-m", "one")
    (tmp_path / "installed.py").write_text("ours")
    assert found_code_revision(tmp_path / "installed.py").startswith("safelight ")


def test_an_image_is_told_by_the_commit_that_it_was_built_from(tmp_path: Path) -> None:
    """Where no checkout tracks the code, the file that the build left beside it counts."""
    (tmp_path / "code_revision.txt").write_text("61778fb-dirty\n")
    assert found_code_revision(tmp_path / "code.py") == "git:61778fb-dirty"
