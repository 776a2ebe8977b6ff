"""What is missing on this machine, said before anything is downloaded.

Run by the Makefile as a plain script, with whatever Python there is: standard library only, and old syntax, so that an
old interpreter can still say that it is too old.
"""

import importlib.util
import os
import platform
import shutil
import sys
from typing import Iterator, Optional

MINIMUM_PYTHON = (3, 11)
MINIMUM_MEMORY_GIB = 3.0

# Measured on Linux x86-64 with Python 3.11: the default torch there carries CUDA. Elsewhere wheels are smaller.
DOWNLOAD_GIB = {"Linux": 3.2}
DISK_GIB = {"Linux": 12.0}
ELSEWHERE_DOWNLOAD_GIB = 0.6
ELSEWHERE_DISK_GIB = 4.0
# The demo's own data, when everything is installed.
DATA_DISK_GIB = 1.5


def main() -> int:
    """Print what is missing, one line each, and return the exit status."""
    installed = "--installed" in sys.argv[1:]
    found = list(problems(installed))
    for problem in found:
        sys.stderr.write("safelight: " + problem + "\n")
    if not found and not installed:
        sys.stdout.write("safelight: installing into .venv; the download is about %.1f GB, once.\n" % download_gib())
        sys.stdout.flush()
    return 1 if found else 0


def problems(installed: bool) -> Iterator[str]:
    """Each missing thing as one sentence that says what to do."""
    if sys.version_info < MINIMUM_PYTHON:
        yield (
            "Python %d.%d is too old: install Python 3.11 or newer, then run 'make PYTHON=python3.11 demo'."
            % sys.version_info[:2]
        )
        return
    if not installed and not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        yield (
            "this Python cannot make virtual environments: install its venv package "
            "(Debian and Ubuntu: apt-get install python3-venv)."
        )
    needed = DATA_DISK_GIB if installed else DISK_GIB.get(platform.system(), ELSEWHERE_DISK_GIB)
    free = shutil.disk_usage(".").free / 2**30
    if free < needed:
        yield "%.0f GiB of free disk are needed here (of it, a download of %.1f GB), and there are %.1f." % (
            needed,
            0 if installed else download_gib(),
            free,
        )
    memory = memory_gib()
    if memory is not None and memory < MINIMUM_MEMORY_GIB:
        yield "%.0f GiB of memory are needed, and this machine has %.1f." % (MINIMUM_MEMORY_GIB, memory)


def download_gib() -> float:
    """Size of all wheels, in GB."""
    return DOWNLOAD_GIB.get(platform.system(), ELSEWHERE_DOWNLOAD_GIB)


def memory_gib() -> Optional[float]:
    """Memory that this process may use, in GiB, or None where the system does not tell."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return min(machine, container_limit() or machine) / 2**30


def container_limit() -> Optional[int]:
    """Bytes that the control group allows, or None where it sets no limit."""
    try:
        with open("/sys/fs/cgroup/memory.max") as limit:
            return int(limit.read())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main())
