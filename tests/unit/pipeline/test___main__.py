"""The door of the command line."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("library", ["pipeline.cli", "typer", "numpy", "obstore"])
def test_an_interrupt_during_imports_is_one_sentence(library: str) -> None:
    """A Ctrl-C that comes while a library is imported ends the command with status 130 and no traceback."""
    code = (
        "import os, signal, sys\n"
        "class Interrupter:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {library!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupter())\n"
        "from pipeline.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "safelight: interrupted before anything was done.\n")


def test_the_module_runs_commands() -> None:
    """`python -m pipeline` is `safelight`."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "models", "--help"], capture_output=True, text=True, check=True
    )
    assert "rollback" in done.stdout
