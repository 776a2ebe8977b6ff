"""Fashion-MNIST: test accuracy after one minute and three of training: ``python -m benchmarks.accuracy --seeds 5``.

The loop, the configurations and the choice of the best epoch are the product's; the object store is in memory, so that
training alone is measured. As in a dataset version, images are ordered by a digest and a twentieth of the training
images is held out. Times are wall-clock; the cores that the process really got are printed beside them, because
another process on the machine makes the time longer and the accuracy no better. The budgets are for two cores.
"""

import argparse
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from obstore.store import MemoryStore

from benchmarks.in_memory import DATASET
from pipeline import checkpoints, fashion_mnist, model, train, training_runs
from pipeline.artifacts import Split, TrainConfig
from pipeline.datasets import LoadedSplit
from pipeline.fashion_mnist import Part
from pipeline.progress import plain_lines
from pipeline.store import Store
from pipeline.training_loop import Desk

CPU = torch.device("cpu")
BUDGETS: dict[str, dict[str, int]] = {"60 s": {}, "180 s": {"width": 32, "epochs": 16, "shift": 1}}
"""What is trained within each time, where it is not the default configuration."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Share of the test images that were answered right, and how long training took."""

    accuracy: float
    seconds: float


def main() -> None:
    """Train once per budget and seed, print a line for each, and the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many runs per budget, with seeds from 0")
    parser.add_argument("--budget", choices=BUDGETS, action="append", help="one of them alone")
    parser.add_argument("--cache", type=Path, default=Path(".safelight/cache"), help="where a download is kept")
    options = parser.parse_args()
    parts = fashion_mnist.load(options.cache)
    for budget in options.budget or BUDGETS:
        chosen = BUDGETS[budget]
        outcomes = [measure(parts, TrainConfig(seed=seed, **chosen)) for seed in range(options.seeds)]
        accuracy = median(outcome.accuracy for outcome in outcomes)
        slowest = max(outcome.seconds for outcome in outcomes)
        print(f"within {budget}: median test accuracy {accuracy:.4f} of {len(outcomes)} seeds, at most {slowest:.1f} s")


def measure(parts: dict[Split, Part], config: TrainConfig) -> Outcome:
    """Train, print what came out, and return it."""
    store = Store(MemoryStore(), "memory://checkpoints")
    splits = held_out(*parts["train"])
    began, used = time.perf_counter(), time.process_time()
    with training_runs.acquire(store, "run") as lease, torch.random.fork_rng([]):
        desk = Desk(store, lease, "run", plain_lines(print, interval_s=10.0), train.never)
        training = train.begin(desk, DATASET, config, splits, device=CPU)
        training.run()
    seconds = time.perf_counter() - began
    cores = (time.process_time() - used) / seconds
    _, tensors = checkpoints.load(store, training.position.best)
    training.learner.model.load_state_dict(tensors["weights"])
    accuracy = accuracy_of(training.learner.model, *parts["test"])
    seen = len(splits["train"].labels) * len(training.position.history)
    best = training.position.history[training.position.best_epoch - 1]
    print(
        f"seed {config.seed}: test accuracy {accuracy:.4f} (validation {best.validation_accuracy:.4f}, epoch "
        f"{best.epoch} of {len(training.position.history)}), {seconds:.1f} s of training on {cores:.2f} of "
        f"{os.cpu_count()} cores, {seen / seconds:,.0f} images/s",
        flush=True,
    )
    return Outcome(accuracy, seconds)


def held_out(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> dict[Split, LoadedSplit]:
    """Training and validation splits, ordered by the digests of the images, 19 to 1."""
    digests = np.array([np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8) for image in images])
    order = np.lexsort(digests.T[::-1])
    cut = len(order) - len(order) // 20

    def chosen(rows: NDArray[np.intp]) -> LoadedSplit:
        return LoadedSplit(images[rows][..., None], labels[rows].astype(np.int64), digests[rows])

    return {"train": chosen(order[:cut]), "validation": chosen(order[cut:])}


@torch.no_grad()
def accuracy_of(net: model.Classifier, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Share of right answers."""
    net.eval()
    parts = torch.from_numpy(images.copy())[..., None].split(1000)  # type: ignore[no-untyped-call]
    predicted = torch.cat([net(part).argmax(1) for part in parts])
    return float((predicted.numpy() == labels).mean())


if __name__ == "__main__":
    main()
