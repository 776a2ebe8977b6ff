"""What holds for the repository as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import PREFIX, SECRETS, SERVING_PREFIX, Settings
from serving.settings import ServingSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted(path.stem for path in (ROOT / "pipeline").glob("*.py") if path.stem not in {"__init__", "preflight"})


def test_importing_the_server_brings_neither_torch_nor_prefect() -> None:
    """The inference server's process holds no training or orchestration library."""
    code = (
        "import sys, serving.app; "
        "sys.exit(', '.join({'torch', 'prefect', 'pyarrow', 'minio', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_command_line_answers_without_the_heavy_libraries() -> None:
    """`safelight --help` imports neither torch nor Prefect."""
    code = "import sys, pipeline.cli; sys.exit(', '.join({'torch', 'prefect'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_any_module_does_nothing(tmp_path: Path) -> None:
    """Importing all modules writes no file, starts no thread of ours and opens no socket."""
    code = (
        "import sys, threading, psutil, importlib\n"
        f"for name in {MODULES!r}:\n"
        "    importlib.import_module('pipeline.' + name)\n"
        "assert not psutil.Process().net_connections(), psutil.Process().net_connections()\n"
        "ours = [t.name for t in threading.enumerate() if t.name.startswith(('store', 'lease', 'Thread'))]\n"
        "assert not ours, ours\n"
    )
    environ = {"PATH": "/usr/bin", "HOME": str(tmp_path), "DO_NOT_TRACK": "1", "MPLCONFIGDIR": str(tmp_path / "mpl")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environ
    )
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name not in {".prefect", "mpl", ".cache", ".config"}]


def test_readme_names_every_setting_and_no_other() -> None:
    """README's table of settings is complete and holds nothing that does not exist."""
    documented = set(re.findall(rf"{PREFIX}[A-Z0-9_]+", README))
    fields = {PREFIX + name.upper() for name in Settings.model_fields}
    files = {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    assert {name for name in documented if not name.startswith(f"{PREFIX}SERVING_")} <= fields | files
    assert fields <= documented


def test_operations_names_settings_that_exist() -> None:
    """No variable in the instructions for operators is one that the pipeline or the server would refuse."""
    named = set(re.findall(rf"{PREFIX}[A-Z0-9_]+", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")))
    fields = {PREFIX + name.upper() for name in Settings.model_fields}
    files = {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    servings = {SERVING_PREFIX + name.upper() for name in ServingSettings.model_fields}
    assert named <= fields | files | servings


def test_readme_maps_every_module() -> None:
    """Each file of the packages stands in README's map, and each file of the map exists."""
    tree = README.split("## Map of the files")[1].split("```")[1]
    mapped = set(re.findall(r"([a-z_]+\.py)\b", tree))
    existing = {path.name for package in ("pipeline", "serving") for path in (ROOT / package).glob("*.py")}
    assert existing - {"__init__.py"} <= mapped
    assert mapped <= existing


def test_readme_names_commands_that_exist() -> None:
    """Each `safelight …` and `make …` in README is a command."""
    helped = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for command in set(re.findall(r"`safelight ([a-z]+)", README)):
        assert re.search(rf"\b{command}\b", helped), command
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z0-9-]+)", README)) <= targets


@pytest.mark.parametrize(
    "pattern", [r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian", r"/work/[a-z.]+/|/root/|/farm/[a-z]"]
)
def test_nothing_names_a_registry_or_a_machine(pattern: str) -> None:
    """No tracked file names a package registry's host or a path of one machine."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    for name in listed:
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".yml", ".jinja", ".html", ""}
            and name != "tests/unit/test_house.py"
        ):
            text = path.read_text(encoding="utf-8", errors="ignore") if path.is_file() else ""
            assert not re.search(pattern, text), f"{name} names {re.search(pattern, text)}"
