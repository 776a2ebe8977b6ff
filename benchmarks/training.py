"""The training loop against the one that tutorials show: ``python -m benchmarks.training``.

Both train the same network on the same Fashion-MNIST images with the same variations (mirroring, shifts of up to four
pixels), each in a process of its own, in turn, on the same cores:

- **ours** is the product's loop as ``safelight train`` runs it, checkpoint at the end of the epoch and history
  included: one epoch over 60,000 images, uint8 in memory, in the default batches.
- **naive** is what tutorials show: a torchvision ``ImageFolder`` over 10,000 PNG files in a folder per class, Pillow,
  ``RandomCrop(28, padding=4)``, ``RandomHorizontalFlip``, ``ToTensor`` and ``Normalize`` image by image, a
  ``DataLoader`` with batches of 64 and two workers, the network in torch's default memory format,
  ``CrossEntropyLoss``, ``SGD(momentum=0.9)`` as it comes, ``loss.item()`` at each step. Measured between its tenth and
  its last batch, so that starting the workers is not counted. Its threads sleep while they wait, as ours do; as they
  come they spin, which takes the cores from its own workers and makes it several times slower.

The networks are the default one, and two plain convolutions, as tutorials have them: the fewer operations a network
needs, the more reading and decoding weigh. Beside images per second stand the cores that a loop really got and where
its CPU time went, in microseconds per image: reading, varying and batching the images, and everything else.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from obstore.store import MemoryStore
from PIL import Image
from pydantic import TypeAdapter
from torch import nn
from torchvision import datasets, transforms

from benchmarks.in_memory import DATASET, held
from pipeline import augment, fashion_mnist, model, train, training_runs
from pipeline.artifacts import Split, TrainConfig
from pipeline.datasets import LoadedSplit
from pipeline.fashion_mnist import Part
from pipeline.learner import Learner
from pipeline.progress import silent
from pipeline.store import Store
from pipeline.training_loop import Desk

CPU = torch.device("cpu")
SHIFT = 4
FILES = 10_000
NAIVE_BATCH = 64
WARM_UP_IMAGES = 2_000
WARM_UP_BATCHES = 10
AUGMENTED_BATCHES = 100
LOOPS = ("ours", "naive")


@dataclass(frozen=True, slots=True)
class Speed:
    """Images per second, cores used on average, and CPU time per image in microseconds."""

    images_per_s: float
    cores: float
    images_us: float
    network_us: float


def main() -> None:
    """Print a line per loop and round, and the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each loop is measured")
    parser.add_argument("--cache", type=Path, default=Path(".safelight/cache"), help="where a download is kept")
    parser.add_argument("--one", nargs=3, metavar=("LOOP", "NETWORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        loop, network, folder = options.one
        speed = ours(network, options.cache) if loop == "ours" else naive(network, Path(folder))
        print(TypeAdapter(Speed).dump_json(speed).decode())
        return
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), fashion_mnist.load(options.cache)["train"])
        print(f"{'network':15}{'loop':7}{'images/s':>9}{'cores':>7}{'images us':>11}{'network us':>12}")
        for network in NETWORKS:
            _compare(network, options.rounds, options.cache, folder)


def _compare(network: str, rounds: int, cache: Path, folder: str) -> None:
    """All loops in turn, ``rounds`` times."""
    speeds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    for _, loop in product(range(rounds), LOOPS):
        command = [sys.executable, "-m", "benchmarks.training", "--cache", str(cache), "--one", loop, network, folder]
        said = subprocess.check_output(command, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
        speed = TypeAdapter(Speed).validate_json(said)
        speeds[loop].append(speed.images_per_s)
        values = "{images_per_s:9,.0f}{cores:7.2f}{images_us:11.0f}{network_us:12.0f}".format(**asdict(speed))
        print(f"{network:15}{loop:7}{values}", flush=True)
    ratios = [fast / slow for fast, slow in zip(*speeds.values(), strict=True)]
    print(
        f"{network}: {median(ratios):.2f} times the naive loop ({min(ratios):.2f} to {max(ratios):.2f})\n", flush=True
    )


def write_files(folder: Path, part: Part) -> None:
    """The first ``FILES`` images as PNG files, in a folder per class."""
    images, labels = part
    for number in range(FILES):
        path = folder / str(labels[number]) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images[number]).save(path)


def ours(network: str, cache: Path) -> Speed:
    """One epoch of the product's loop."""
    images, labels = fashion_mnist.load(cache)["train"]
    _trained(network, images[:WARM_UP_IMAGES], labels[:WARM_UP_IMAGES])
    began, used = time.perf_counter(), time.process_time()
    _trained(network, images, labels)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - used
    per_image = 1e6 * cpu_s / len(images)
    images_us = _augmentation_us(torch.from_numpy(images[..., None].copy()))
    return Speed(len(images) / seconds, cpu_s / seconds, images_us, per_image - images_us)


def _trained(network: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Train for one epoch as the product does, with nothing held out."""
    config = TrainConfig(epochs=1, shift=SHIFT)
    splits: dict[Split, LoadedSplit] = {"train": held(images, labels), "validation": held(images[:0], labels[:0])}
    store = Store(MemoryStore(), "memory://checkpoints")
    with training_runs.acquire(store, "run") as lease:
        desk = Desk(store, lease, "run", silent, train.never)
        training = train.begin(desk, DATASET, config, splits, device=CPU)
        training.learner = Learner(NETWORKS[network](), config, CPU)
        training.run()


def _augmentation_us(pixels: torch.Tensor) -> float:
    """CPU time per image of gathering and varying a batch."""
    size = TrainConfig().batch_size
    batches = augment.epoch_batches(len(pixels), len(pixels) // size, augment.generator_at(0))[:AUGMENTED_BATCHES]
    began = time.process_time()
    for index in batches:
        augment.augmented(pixels, index, mirror=index % 2 == 1, shift=SHIFT, generator=augment.generator_at(0))
    return 1e6 * (time.process_time() - began) / sum(map(len, batches))


def naive(network: str, folder: Path) -> Speed:
    """One epoch of the tutorials' loop."""
    variations = [transforms.RandomCrop(28, padding=4), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*variations, transforms.ToTensor(), transforms.Normalize((0.286,), (0.353,))])
    files = datasets.ImageFolder(str(folder), transform, loader=Image.open)  # its own loader would make RGB of grey
    loader = torch.utils.data.DataLoader(files, NAIVE_BATCH, shuffle=True, num_workers=2)
    net = NETWORKS[network]().network.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    marks, network_s = [], 0.0
    for batch, answers in loader:
        marks.append((time.perf_counter(), _cpu_seconds(), network_s))  # the workers' time can be read while they live
        began = time.process_time()
        optimizer.zero_grad()
        loss = criterion(net(batch), answers)
        loss.backward()
        optimizer.step()
        loss.item()
        network_s += time.process_time() - began
    return _between(marks[WARM_UP_BATCHES], marks[-2], (len(marks) - 2 - WARM_UP_BATCHES) * NAIVE_BATCH)


def _between(began: tuple[float, ...], ended: tuple[float, ...], images: int) -> Speed:
    """The speed between two marks: seconds, CPU seconds, and those of them that the network took."""
    seconds, cpu_s, network_s = (after - before for before, after in zip(began, ended, strict=True))
    return Speed(images / seconds, cpu_s / seconds, 1e6 * (cpu_s - network_s) / images, 1e6 * network_s / images)


def _cpu_seconds() -> float:
    """CPU time of this process and of its living children, in seconds."""
    children = psutil.Process().children()
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def default_network() -> model.Classifier:
    """What ``safelight train`` trains by default."""
    return model.build(TrainConfig().architecture, len(DATASET.classes), DATASET.pixels)


def two_convolutions() -> model.Classifier:
    """The network of many tutorials: two 3x3 convolutions, each halved by pooling, and two linear layers."""
    layers: tuple[nn.Module, ...] = (
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 5 * 5, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    return model.Classifier(nn.Sequential(*layers), 1, 1).to(memory_format=torch.channels_last)


NETWORKS: dict[str, Callable[[], model.Classifier]] = {
    "default": default_network,
    "2 convolutions": two_convolutions,
}

if __name__ == "__main__":
    main()
