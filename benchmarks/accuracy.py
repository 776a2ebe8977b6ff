"""Test accuracy and speed of training on Fashion-MNIST: ``python -m benchmarks.accuracy [--seeds N] [--naive]``.

The loop, the configuration and the choice of the best epoch are the product's; the object store is in memory, so that
training alone is measured. As in a dataset version, images are ordered by a digest and a twentieth of the training
images is held out. Times are wall-clock; the cores that the process really got are printed beside them, because
another process on the machine makes the time longer and the accuracy no better.

``--naive`` also measures the loop that most tutorials show, for 15 s: the same network, PNG files decoded by Pillow
one by one, transforms per image, a DataLoader with two workers.
"""

import argparse
import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from obstore.store import MemoryStore
from PIL import Image
from torchvision import transforms

from pipeline import checkpoints, fashion_mnist, model, train, training_runs
from pipeline.artifacts import DatasetVersion, PixelSpec, Split, TrainConfig
from pipeline.datasets import LoadedSplit
from pipeline.fashion_mnist import Part
from pipeline.progress import plain_lines
from pipeline.store import Store
from pipeline.training_loop import Desk

PIXELS = PixelSpec(height=28, width=28, channels=1)
CPU = torch.device("cpu")
NAIVE_S = 15.0
WARM_UP_BATCHES = 10


def main() -> None:
    """Train once per seed and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many runs, with seeds from 0")
    parser.add_argument("--epochs", type=int, help="instead of the default configuration's")
    parser.add_argument("--naive", action="store_true", help="also measure the naive loop")
    parser.add_argument("--cache", type=Path, default=Path(".safelight/cache"), help="where a download is kept")
    options = parser.parse_args()
    parts = fashion_mnist.load(options.cache)
    for seed in range(options.seeds):
        ours = measure(parts, TrainConfig(seed=seed, epochs=options.epochs))
    if options.naive:
        naive = measure_naive(*parts["train"])
        print(f"ours against the naive loop: {ours / naive:.2f} times the images per core and second")


def measure(parts: dict[Split, Part], config: TrainConfig) -> float:
    """Train, print what came out, and return the images per core and second."""
    store = Store(MemoryStore(), "memory://checkpoints")
    splits = held_out(*parts["train"])
    dataset = DatasetVersion(
        dataset=fashion_mnist.NAME, version="0" * 16, classes=fashion_mnist.CLASSES, pixels=PIXELS, counts={}
    )
    began, used = time.perf_counter(), time.process_time()
    with training_runs.acquire(store, "run") as lease, torch.random.fork_rng([]):
        desk = Desk(store, lease, "run", plain_lines(print, interval_s=10.0), train.never)
        training = train.begin(desk, dataset, config, splits, device=CPU)
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
        f"{os.cpu_count()} cores, {seen / seconds:,.0f} images/s"
    )
    return seen / seconds / cores


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
    parts = torch.from_numpy(images.copy())[..., None].split(1000)
    predicted = torch.cat([net(part).argmax(1) for part in parts])
    return float((predicted.numpy() == labels).mean())


class PngFiles(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Encoded images, decoded and transformed one by one."""

    def __init__(self, files: list[bytes], labels: NDArray[np.uint8]) -> None:
        self._files = files
        self._labels = labels
        self._transform = transforms.Compose(
            [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.286,), (0.353,))]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.open(io.BytesIO(self._files[index]))), int(self._labels[index])


def measure_naive(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Run the naive loop, print how fast it was after ten batches, and return its images per core and second."""
    files = PngFiles([_png(image) for image in images], labels)
    loader = torch.utils.data.DataLoader(files, TrainConfig().batch_size, shuffle=True, num_workers=2)
    network = model.build("small_resnet", len(fashion_mnist.CLASSES), PIXELS).network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    marks = []
    for batch, answers in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch), answers).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        marks.append((time.perf_counter(), _cpu_seconds()))  # the workers' time can be read while they live
        if marks[-1][0] - marks[0][0] > NAIVE_S:
            break
    (began, used), (ended, used_at_end) = marks[WARM_UP_BATCHES], marks[-2]
    seen, seconds = (len(marks) - 2 - WARM_UP_BATCHES) * TrainConfig().batch_size, ended - began
    cores = (used_at_end - used) / seconds
    print(f"naive loop: {seconds:.1f} s on {cores:.2f} of {os.cpu_count()} cores, {seen / seconds:,.0f} images/s")
    return seen / seconds / cores


def _cpu_seconds() -> float:
    """CPU time of this process and of its living children, in seconds."""
    children = psutil.Process().children()
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
