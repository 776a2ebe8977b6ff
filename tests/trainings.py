"""Trainings in processes of their own (``train_process.py``): started, listened to, killed."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from environs import environ

from pipeline.artifacts import TrainConfig, TrainingRun
from pipeline.settings import Settings

SCRIPT = Path(__file__).with_name("train_process.py")

Process = subprocess.Popen[str]


@contextmanager
def training(
    settings: Settings, config: TrainConfig, options: Mapping[str, object], **environment: str
) -> Iterator[Process]:
    """A process that trains on the dataset ``pictures``; killed at the end, should it still run."""
    threads = str(torch.get_num_threads())
    told = environ(settings, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="PASSIVE", **environment)
    wish = json.dumps({"dataset": "pictures", "config": config.model_dump(mode="json"), **options})
    with subprocess.Popen([sys.executable, str(SCRIPT), wish], env=told, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: Process, beginning: str) -> str:
    """The first line of a process that begins so."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return line
    raise AssertionError(f"the process ended without {beginning!r}; it said: {''.join(lines)}")


def result_of(process: Process) -> TrainingRun:
    """The finished run that a process reports at its end."""
    line = read_until(process, "finished: ")
    assert process.wait(timeout=60) == 0
    return TrainingRun.model_validate_json(line.removeprefix("finished: "))
