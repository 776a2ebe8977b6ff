"""What a node of the tests starts in place of Safelight's images: this interpreter, with the pods' own settings."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from kube_containers import Image, Launch, Program

from pipeline.settings import SERVING_PREFIX


def python(surroundings: Mapping[str, str] | None = None) -> Image:
    """An image whose commands are this environment's: ``python``, ``safelight``, ``prefect``; with more variables."""

    def start(launch: Launch) -> Program:
        command = [*launch.command, *launch.args]
        if command[0] == "python":
            command[0] = sys.executable
        path = f"{Path(sys.executable).parent}{os.pathsep}{launch.env['PATH']}"
        return Program(command, {**launch.env, "PATH": path, **(surroundings or {})})

    return start


def serving(launch: Launch) -> Program:
    """The inference server's image: it listens at its pod's address, where in a pod it would at all of them."""
    own = {f"{SERVING_PREFIX}HOST": launch.address, "OMP_NUM_THREADS": "1"}
    return python(own)(launch)
