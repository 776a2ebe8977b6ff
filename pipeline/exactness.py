"""What the last bit of a training's result depends on, and whether it is still the same.

On a CPU the same steps give the same bits as long as libraries, machine type and number of threads are the same:
each decides in which order numbers are added. A GPU promises nothing of the kind.
"""

import platform
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision

UNRECORDED = {"processes": "1", "images at once": "all"}
"""What held before these were recorded."""


def environment(
    device: torch.device, precision: str, *, processes: int = 1, images_at_once: int | None = None
) -> dict[str, str]:
    """What the last bit depends on, by name, for a training on ``device`` that computes in ``precision``.

    A batch's normalisation sees what one process computes at once, and gradients are added process by process.
    """
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "threads": str(torch.get_num_threads()),
        "processes": str(processes),
        "images at once": str(images_at_once or "all"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def doubts_of(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Why a run that was interrupted ``then`` and is resumed ``now`` may end otherwise than without interruption."""
    then, now = UNRECORDED | dict(then), UNRECORDED | dict(now)
    changed = [
        f"{name} was {then.get(name, 'unknown')} and is {now.get(name, 'unknown')}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    return changed if now["device"] == "cpu" else [*changed, f"{now['device']} does not repeat itself bit for bit"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
