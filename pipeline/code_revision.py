"""Which code made a model version: the commit of the checkout that it runs from, or the release that is installed.

An image has neither git nor a checkout; its build leaves the commit in a file beside this one.
"""

import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

LEFT_BY_BUILD = "code_revision.txt"


def found_code_revision(source: Path = Path(__file__)) -> str:
    """``git:<commit>[-dirty]`` of the checkout that tracks the file ``source``, or that an image was built from.

    The installed version where there is neither.
    """
    git = shutil.which("git")
    if git and _output([git, "ls-files", "--error-unmatch", source.name], source.parent):
        commit = _output([git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"], source.parent)
        if commit:
            return f"git:{commit}"
    left = source.with_name(LEFT_BY_BUILD)
    if left.is_file():
        return f"git:{left.read_text(encoding='utf-8').strip()}"
    try:
        return f"safelight {importlib.metadata.version('safelight')}"
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _output(command: list[str], folder: Path) -> str:
    """What a command prints, or nothing if it fails."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
