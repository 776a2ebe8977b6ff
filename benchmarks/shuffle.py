"""How well windows mix shards that hold one class each: the second part of ``python -m benchmarks.streaming``."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from obstore.store import MemoryStore
from torch import Tensor

from benchmarks.in_memory import DATASET, held
from benchmarks.packed import packed
from pipeline import augment, evaluate, fashion_mnist, train, training_runs
from pipeline.artifacts import TrainConfig
from pipeline.datasets import LoadedSplit
from pipeline.progress import silent
from pipeline.shard_window import slots_for
from pipeline.store import Store
from pipeline.streamed import Streamed
from pipeline.training_loop import Desk
from pipeline.windowed_order import epoch_order, shards_in_turn

ROWS = 100
"""Images of a shard."""
WINDOWS = (2, 8, 32, 128)
BATCH = 128
CPU = torch.device("cpu")
EVERYTHING = "all images in any order"


@dataclass(frozen=True, slots=True)
class Mixing:
    """Of an epoch's batches: shards in each, and how unevenly classes fall (1: as if drawn at random), on average."""

    shards: float
    unevenness: float


def measure(epochs: int, seeds: int, images: int) -> None:
    """Print a line for each way to mix."""
    parts = fashion_mnist.load(Path(".safelight/cache"))
    pixels, labels = (part[:images] for part in parts["train"])
    order = np.argsort(labels, kind="stable")
    pixels, labels = pixels[order][..., None], labels[order].astype(np.int64)
    trial = Trial(pixels, labels, parts["test"], epochs)
    print(f"\n{len(labels):,} images in shards of {ROWS}, each of one class, in batches of {BATCH}; {epochs} epochs")
    print(f"{'':44}{'shards':>8}{'chi2/dof':>10}   test accuracy of {seeds} seeds")
    with tempfile.TemporaryDirectory() as folder:
        for name, drawn, window in ways(labels):
            mixing = mixing_of(drawn, labels)
            tried = range(seeds) if epochs and window is not None else ()
            reached = [trial.accuracy(window or 0, folder, seed) for seed in tried]
            shown = f"{mean(reached):.4f}  ({min(reached):.4f} to {max(reached):.4f})" if reached else ""
            print(f"{name:44}{mixing.shards:8.1f}{mixing.unevenness:10.2f}   {shown}", flush=True)


def ways(labels: NDArray[np.int64]) -> Iterator[tuple[str, Tensor, int | None]]:
    """Name, an epoch's order (N,), and the window to train with: 0 for all at hand, None for no training."""
    generator = augment.generator_at(0)
    yield EVERYTHING, torch.randperm(len(labels), generator=generator), 0
    classes = torch.from_numpy(labels[::ROWS])
    for window in WINDOWS:
        yield f"window of {window} shards, classes in turn", in_window(classes, len(labels), window, generator), window
    nothing = torch.zeros_like(classes)
    for window in WINDOWS:
        yield f"window of {window} shards, shards at random", in_window(nothing, len(labels), window, generator), None


def in_window(classes: Tensor, images: int, window: int, generator: torch.Generator) -> Tensor:
    """An epoch's order, from shards of these classes."""
    shards = shards_in_turn(classes, generator)
    sizes = (images - shards * ROWS).clamp(max=ROWS)
    place, row = epoch_order(shards, sizes, window // 2, generator).found(0, images)
    return shards[place] * ROWS + row


def mixing_of(drawn: Tensor, labels: NDArray[np.int64]) -> Mixing:
    """What the batches of an order are like."""
    shares = np.bincount(labels) / len(labels)
    batches = [part.numpy() for part in drawn.split(BATCH)][:-1]
    counts = np.array([np.bincount(labels[part], minlength=len(shares)) for part in batches])
    expected = BATCH * shares
    chi2 = ((counts - expected) ** 2 / expected).sum(1) / (len(shares) - 1)
    return Mixing(float(np.mean([len(np.unique(part // ROWS)) for part in batches])), float(chi2.mean()))


@dataclass(frozen=True, slots=True)
class Trial:
    """Images to train on, as they are packed, images to judge by, and for how many epochs."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test: fashion_mnist.Part
    epochs: int

    def accuracy(self, window: int, folder: str, seed: int) -> float:
        """Share of the test images that are answered right after training so, by the product's loop."""
        config = TrainConfig(epochs=self.epochs, seed=seed)
        if not window:
            return self._trained(held(self.pixels, self.labels), config)
        store = Store(MemoryStore(), "memory://datasets")
        layout = packed(store, self.pixels, self.labels, ROWS)
        room = slots_for(window // 2) * ROWS * self.pixels[0].size
        with Streamed(store, layout, Path(folder), disk_bytes=room) as streamed:
            return self._trained(streamed, config)

    def _trained(self, images: LoadedSplit | Streamed, config: TrainConfig) -> float:
        store = Store(MemoryStore(), "memory://checkpoints")
        splits = {"train": images, "validation": held(self.pixels[:0], self.labels[:0])}
        with training_runs.acquire(store, "run") as lease, torch.random.fork_rng([]):
            desk = Desk(store, lease, "run", silent, train.never)
            training = train.begin(desk, DATASET, config, splits, device=CPU)
            training.run()
        probabilities = evaluate.predict(training.learner.model, self.test[0][..., None].copy(), CPU)
        return float((probabilities.argmax(1) == self.test[1]).mean())
