"""Small things to train on, shared by the tests of training."""

import secrets
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import train, training_runs
from pipeline.artifacts import DatasetVersion, PixelSpec, Split, TrainConfig
from pipeline.datasets import LoadedSplit
from pipeline.leases import Lease
from pipeline.store import Store
from pipeline.streamed import Streamed
from pipeline.training_loop import Desk, Training

CPU = torch.device("cpu")
SIDE = 12
PIXELS = PixelSpec(height=SIDE, width=SIDE, channels=1)


def pictures(labels: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint8]:
    """Noisy images (N, SIDE, SIDE, 1), as bright as their label is high."""
    noise = np.random.default_rng(seed).integers(0, 100, (len(labels), SIDE, SIDE, 1))
    return (noise + 155 * labels[:, None, None, None] / max(1, labels.max(initial=0))).astype(np.uint8)


def split_of(labels: NDArray[np.int64], seed: int = 0) -> LoadedSplit:
    """A split of such images."""
    return LoadedSplit(pictures(labels, seed), labels, np.zeros((len(labels), 32), np.uint8))


def splits(images: int = 60, held_out: int = 12, classes: int = 3) -> dict[Split, LoadedSplit]:
    """Training and validation splits whose classes take turns."""
    return {"train": split_of(np.arange(images) % classes, 1), "validation": split_of(np.arange(held_out) % classes, 2)}


def dataset(classes: int = 3) -> DatasetVersion:
    """The version that these splits could be of."""
    names = tuple(f"class {index}" for index in range(classes))
    return DatasetVersion(dataset="pictures", version="a" * 16, classes=names, pixels=PIXELS, counts={})


def desk(lease: Lease, store: Store, run: str, **options: object) -> Desk:
    """A desk that nobody listens at, unless told otherwise."""
    quiet = {"on_progress": lambda _: None, "should_stop": train.never}
    return Desk(store, lease, run, **(quiet | options))  # type: ignore[arg-type]


def run_once(
    store: Store,
    config: TrainConfig,
    data: Mapping[Split, LoadedSplit | Streamed] | None = None,
    run: str | None = None,
    version: DatasetVersion | None = None,
    **options: object,
) -> Training:
    """Start or resume a run under a lease of its own, and train to the end."""
    data = data or splits()
    run = run or secrets.token_hex(8)
    version = version or dataset(1 + max(int(data["train"].labels.max()), 1))
    with training_runs.acquire(store, run) as lease, torch.random.fork_rng([]):
        training = train.begin(desk(lease, store, run, **options), version, config, data, device=CPU)
        training.run()
    return training


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    """Copies of the final weights, whatever the best ones are."""
    return {name: tensor.clone() for name, tensor in training.learner.model.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
