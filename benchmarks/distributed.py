"""Training by several processes against one: ``python -m benchmarks.distributed``.

One epoch over 60,000 Fashion-MNIST images, the default network in the default batches, as ``safelight train`` runs it,
images in memory and checkpoints too:

- **1 x 1**: one process with one thread,
- **1 x 2**: one process with two threads,
- **2 x 1**: two processes with one thread each, started by torchrun, which exchange images and gradients by gloo.

They take turns, round after round, and what is compared is the rounds' ratios: a machine with other work to do is
slower for all. Speeds are those of the steps, without start and loading; beside them stand the seconds from start to
end, and the processor time of all processes for an image, in which waiting for cores that others have does not count.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from obstore.store import MemoryStore

from benchmarks.in_memory import DATASET, held
from pipeline import fashion_mnist, ranks, train, training_runs
from pipeline.artifacts import Split, TrainConfig
from pipeline.datasets import LoadedSplit
from pipeline.progress import silent
from pipeline.store import Store
from pipeline.training_loop import Desk

KINDS = {"1 x 1": (1, 1), "1 x 2": (1, 2), "2 x 1": (2, 1)}
"""Processes and threads of each."""
REFERENCE = "1 x 2"


@dataclass(frozen=True, slots=True)
class Speed:
    """Images per second of an epoch, microseconds of processor time for each, seconds in all, the epoch's loss."""

    images_per_s: float
    cpu_us: float
    wall_s: float
    loss: float


def main() -> None:
    """Print a line per kind and round, and the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--batch-size", type=int, default=TrainConfig().batch_size, help="images per step")
    parser.add_argument("--images", type=int, default=60_000, help="images of the epoch")
    parser.add_argument("--cache", type=Path, default=Path(".safelight/cache"), help="where a download is kept")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        epoch(options.cache, options.images, options.batch_size)
        return
    fashion_mnist.load(options.cache)
    print(f"{'kind':8}{'images/s':>9}{'cpu us':>8}{'wall s':>8}{'loss':>8}")
    speeds: dict[str, list[Speed]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            speed = measured(kind, options.cache, options.images, options.batch_size)
            speeds[kind].append(speed)
            values = f"{speed.images_per_s:9,.0f}{speed.cpu_us:8.0f}{speed.wall_s:8.1f}{speed.loss:8.4f}"
            print(f"{kind:8}{values}", flush=True)
    others = speeds.pop(REFERENCE)
    for kind, found in speeds.items():
        fast = [mine.images_per_s / other.images_per_s for mine, other in zip(found, others, strict=True)]
        cheap = [other.cpu_us / mine.cpu_us for mine, other in zip(found, others, strict=True)]
        print(f"{kind} against {REFERENCE}: images/s {_spread(fast)}, per second of processor time {_spread(cheap)}")


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"


def measured(kind: str, cache: Path, images: int, batch_size: int) -> Speed:
    """One epoch by so many processes."""
    processes, threads = KINDS[kind]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    own = {"--cache": str(cache), "--images": str(images), "--batch-size": str(batch_size)}
    program = ["-m", "benchmarks.distributed", "--rank", *(word for option in own.items() for word in option)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *program]
    environ = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    began = time.perf_counter()
    said = subprocess.check_output(command, env=environ, text=True)
    line = json.loads(said.strip().splitlines()[-1])
    return Speed(line["images_per_s"], line["cpu_us"], time.perf_counter() - began, line["loss"])


def epoch(cache: Path, count: int, batch_size: int) -> None:
    """One rank's epoch; the first one prints it."""
    images, labels = (part[:count] for part in fashion_mnist.load(cache)["train"])
    config = TrainConfig(epochs=1, batch_size=batch_size)
    store = Store(MemoryStore(), "memory://checkpoints")
    with ranks.joined(os.environ) as group, training_runs.acquire(store, "run") as lease:
        splits: dict[Split, LoadedSplit] = {
            "train": part_held(images, labels, group),
            "validation": part_held(images[:0], labels[:0], group),
        }
        desk = Desk(store, lease if group.first else None, "run", silent, train.never)
        training = train.begin(desk, DATASET, config, splits, device=torch.device("cpu"), group=group)
        began = time.process_time()
        training.run()
        cpu_s = group.summed(torch.tensor([time.process_time() - began])).item()
    if group.first:
        line = training.position.history[-1]
        print(json.dumps({"images_per_s": line.images_per_s, "cpu_us": 1e6 * cpu_s / count, "loss": line.train_loss}))


def part_held(images: NDArray[np.uint8], labels: NDArray[np.uint8], group: ranks.Ranks) -> LoadedSplit:
    """The part of the images that a rank holds: shards lie in no order of the images, so these are any."""
    whole = held(images, labels)
    if not group.several:
        return whole
    places = np.random.default_rng(0).permutation(len(labels))
    order = np.argsort(places)[group.part(len(labels))]
    return replace(whole, pixels=whole.pixels[order], places=places)


if __name__ == "__main__":
    main()
