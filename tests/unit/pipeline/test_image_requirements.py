"""What the images install."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.image_requirements import distribution, main, without

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "pipeline" / "image_requirements.py"


def test_a_name_is_told_however_it_is_spelled() -> None:
    """Spelling, version, extras and markers make no difference to what is asked for."""
    spelled = ["ruamel.yaml==0.19.1", "Ruamel_YAML", "ruamel-yaml[jinja2]>=1", "ruamel.yaml ; python_version < '4'"]
    assert {distribution(each) for each in spelled} == {"ruamel-yaml"}


def test_a_test_tool_is_no_reason_to_install_anew() -> None:
    """Another version of a development tool leaves the constraints of an image as they were."""
    tools = ["pytest", "pytest-timeout", "types-psutil"]
    older = ["# Exact versions.", "psutil==7.2.2", "pytest==9.1.0", "pytest-timeout==2.3.0", "types_psutil==1"]
    newer = ["# Exact versions.", "psutil==7.2.2", "pytest==9.2.0", "pytest-timeout==2.4.0", "types_psutil==2"]
    assert without(older, tools) == without(newer, tools) == ["# Exact versions.", "psutil==7.2.2"]


@pytest.mark.parametrize("extra", ["pipeline", "serving"])
def test_an_image_installs_what_the_project_says(extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requirements are the project's own and the extra's, and each of them has its exact version."""
    monkeypatch.chdir(ROOT)
    main(extra, tmp_path / "requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"][extra]}
    assert set((tmp_path / "requirements" / "requirements.txt").read_text(encoding="utf-8").splitlines()) == wanted
    pinned = (tmp_path / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {distribution(each) for each in pinned if "==" in each}
    assert {distribution(each) for each in wanted} <= names


def test_it_needs_nothing_that_has_to_be_installed(tmp_path: Path) -> None:
    """It runs with the standard library alone, as in a base image that has nothing else."""
    folder = tmp_path / "requirements"
    isolated = [sys.executable, "-I", "-S", str(SCRIPT), "serving", str(folder)]
    subprocess.run(isolated, cwd=ROOT, env={"PATH": os.environ["PATH"]}, check=True)
    assert "onnxruntime\n" in (folder / "requirements.txt").read_text(encoding="utf-8")
