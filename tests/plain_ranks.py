"""A rank of a training without batch statistics, to be started by torchrun: ``torchrun … plain_ranks.py FOLDER``.

All that ranks do apart from one process is then rounding. The images lie with the ranks in random order, and each rank
computes them in parts of five. The first rank leaves its weights and its history in the folder.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import small_training as small
import synthetic
import torch
from torch import nn

from pipeline import model, ranks, train, training_runs
from pipeline.artifacts import Split, TrainConfig
from pipeline.datasets import LoadedSplit
from pipeline.learner import Learner
from pipeline.training_loop import Desk, Training

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.2, shift=2)
AT_ONCE = 5


def network() -> model.Classifier:
    """A convolution and a linear layer, from seed 0."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 3))
    return model.Classifier(nn.Sequential(*layers), 1, 1)


def held(split: LoadedSplit, group: ranks.Ranks) -> LoadedSplit:
    """What a rank holds of a split whose images lie anywhere."""
    if not group.several:
        return split
    places = np.random.default_rng(7).permutation(len(split.labels))
    order = np.argsort(places)[group.part(len(places))]
    return LoadedSplit(split.pixels[order], split.labels, split.digests, None, places)


def trained(group: ranks.Ranks = ranks.ALONE, images_at_once: int | None = None) -> Training:
    """That training, to its end."""
    store = synthetic.memory_store()
    splits: dict[Split, LoadedSplit] = {name: held(split, group) for name, split in small.splits(73, 29).items()}
    with training_runs.acquire(store, "run") as lease, torch.random.fork_rng([]):
        desk = Desk(store, lease if group.first else None, "run", lambda _: None, train.never)
        training = train.begin(desk, small.dataset(), CONFIG, splits, device=small.CPU, group=group)
        net = network()
        model.set_normalisation(net, training.learner.model.mean, training.learner.model.std)
        training.learner = Learner(net, CONFIG, small.CPU, ranks=group, images_at_once=images_at_once)
        training.run()
    return training


def main() -> None:
    """Train with the others."""
    folder = Path(sys.argv[1])
    with ranks.joined(os.environ) as group:
        training = trained(group, AT_ONCE)
    if group.first:
        safetensors.torch.save_file(small.weights_of(training), folder / "weights.safetensors")
        (folder / "history.json").write_text(json.dumps([line.model_dump() for line in training.position.history]))


if __name__ == "__main__":
    main()
