"""A virtual environment for each peer of ``benchmarks.serving``, made at first use in a folder that is kept.

It sees the packages of the Python that runs the benchmark (torch and ONNX Runtime are there once) and puts in front of
them what the peer's file in ``peers/requirements`` names.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.serving_peers import Peer
from pipeline import processes

HERE = Path(__file__).parent / "peers"
ROOT = Path(__file__).parents[1]
QUIET = {"DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}
"""Servers that report to their makers are asked not to."""
NOT_OURS = ("SAFELIGHT_", "OMP_", "PYTHON", "VIRTUAL_ENV")


class Unavailable(Exception):
    """A peer that cannot be installed or started; its text says why."""


def installed(peer: Peer, environments: Path) -> Path:
    """The Python of a peer's environment, which is made if it is not there, or not as required.

    Raises:
        Unavailable: pip did not manage.
    """
    folder = environments / Path(peer.requirements).stem
    wanted, marker = (HERE / "requirements" / peer.requirements).read_text(encoding="utf-8"), folder / "installed.txt"
    python = folder / "bin" / "python"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {peer.requirements.removesuffix('.txt')} in {folder}", file=sys.stderr)
    run(peer, sys.executable, "-m", "venv", "--clear", str(folder))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = folder / "lib" / version / "site-packages" / "shared.pth"
    shared.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(peer, str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / "requirements" / peer.requirements))
    marker.write_text(wanted, encoding="utf-8")
    return python


def run(peer: Peer, *command: str) -> str:
    """What a command of an installation prints.

    Raises:
        Unavailable: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{peer.name} cannot be installed: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return done.stdout


def versions(peer: Peer, python: Path) -> str:
    """Of its packages, as ``name version, …``."""
    code = "import importlib.metadata, sys; print(*map(importlib.metadata.version, sys.argv[1:]))"
    found = run(peer, str(python), "-c", code, *peer.packages).split()
    return ", ".join(f"{name} {version}" for name, version in zip(peer.packages, found, strict=True))


def filled(text: str, port: int, python: Path) -> str:
    """With a port that is the peer's, two more that are free, its programs' folder and that of this comparison."""
    ports = {"port": port, "second": processes.free_port(0), "third": processes.free_port(0)}
    return text.format(**ports, bin=python.parent, here=HERE)


def environ_of(peer: Peer, port: int, python: Path, model: Path, home: Path) -> dict[str, str]:
    """The whole environment of a peer's process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    return kept | {
        **QUIET,
        "HOME": str(home),
        "MODEL_FOLDER": str(model),
        "PORT": str(port),
        "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT))),
        **{name: filled(value, port, python) for name, value in peer.environ.items()},
    }
