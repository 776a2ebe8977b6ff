"""Raw images to a dataset version, and the version to shuffled batches: ``python -m benchmarks.loader [images]``.

Small grey PNGs lie in an embedded store of the benchmark's own. They are prepared, prepared again without and with 1 %
more, and loaded; the loaders take turns. Pixels come out as uint8, unvaried, in batches of 256:

- **prepared shards**: what training does. Counted is everything from the name of the dataset to the last batch: which
  version is the latest, its manifest and index, the shards, their digests, the shuffled batches. Nothing is kept
  locally between rounds. Measured for one epoch, and for the epochs of the default training, which loads once; the
  other loaders read anew in each epoch, so that their figures are those of any number of epochs.
- **one object per image**: a DataLoader of 2 workers that get each image by the minio SDK and decode it as the product
  does. Counted from the first batch on, so that the start of the workers does not count; 4,096 images per round.
- **litdata**: its own loader of 2 workers, on its optimised chunks in a local folder, without any store. Counted from
  the first batch on, too. It is measured by a Python that has it: the one that runs this, or ``--litdata PYTHON``
  (``python -m venv lit && lit/bin/pip install litdata``).
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import urllib3
from minio import Minio

from benchmarks.own_store import answer_of, credentials, endpoint, own_store, rounds, small_png, table
from pipeline import augment, datasets, images
from pipeline.artifacts import PixelSpec, PrepareConfig
from pipeline.learner import EPOCHS
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

IMAGES = 10_000
ROUNDS = 5
BATCH = 256
WORKERS = 2
SINGLY = 4_096
"""Images per round of the loader that requests each one."""
DATASET = "benchmark"
PIXELS = PixelSpec(height=28, width=28, channels=1)
OURS = {1: "prepared shards, one epoch", EPOCHS["small_resnet"]: f"prepared shards, {EPOCHS['small_resnet']} epochs"}
PER_OBJECT = f"one object per image, minio SDK, {WORKERS} workers"
LITDATA = f"litdata, local chunks, {WORKERS} workers"


def main() -> None:
    """Print seconds and images per second, and how often the product is faster."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="?", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often the loaders take turns")
    parser.add_argument("--litdata", metavar="PYTHON", default=own_litdata(), help="a Python that has litdata")
    options = parser.parse_args()
    with own_store() as settings:
        zones = open_zones(settings)
        measure_preparation(zones, options.images)
        measure_loaders(settings, zones, options.rounds, options.litdata)


def own_litdata() -> str | None:
    """This Python, if it has litdata."""
    return sys.executable if importlib.util.find_spec("litdata") else None


def measure_preparation(zones: Zones, count: int) -> None:
    """Put the images and prepare them; print a line for each."""
    more = count // 100
    with tempfile.TemporaryDirectory() as cache:
        ready = partial(prepare, zones, DATASET, PrepareConfig(size=28), cache=Path(cache))
        print(f"{'28x28 grey PNGs':54}{'seconds':>10}{'images/s':>12}")
        row("put", lambda: put(zones, range(count)), count)
        row("prepare", ready, count)
        row("prepare again, no change", ready, count)
        put(zones, range(count, count + more))
        row("prepare again, 1 % more", ready, count + more)


def row(what: str, work: Callable[[], object], count: int) -> None:
    """Do the work and print how long it took."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    print(f"{what:54}{seconds:10.2f}{count / seconds:12,.0f}")


def put(zones: Zones, numbers: range) -> None:
    """Put the images with these numbers."""
    for _ in zones.images.write_many((f"{DATASET}/class-{n % 10}/{n:06d}.png", small_png(n)) for n in numbers):
        pass


def measure_loaders(settings: Settings, zones: Zones, turns: int, litdata: str | None) -> None:
    """Let the loaders take turns and print the table."""
    keys = [found.key for found in zones.images.listing(DATASET)][:SINGLY]
    singly = torch.utils.data.DataLoader(
        SingleObjects(settings, keys),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    contenders = {name: partial(epochs_of_ours, zones, epochs) for epochs, name in OURS.items()}
    contenders[PER_OBJECT] = lambda: epoch_of(singly)
    with ExitStack() as stack:
        if litdata:
            contenders[LITDATA] = stack.enter_context(litdata_epochs(zones, litdata))
        else:
            print("litdata is not installed: see --litdata in the first lines of this file.")
        reached = rounds(contenders, turns)
    for reference in list(contenders)[len(OURS) :]:
        table("images", reached, reference)


def epochs_of_ours(zones: Zones, epochs: int) -> float:
    """Images per second, from the name of the dataset to the last batch."""
    began = time.perf_counter()
    version = datasets.latest(zones.datasets, DATASET)
    split = datasets.load_split(zones.datasets, version, "train")
    pixels, labels = torch.from_numpy(split.pixels), torch.from_numpy(split.labels)
    seen = 0
    for epoch in range(epochs):
        order = augment.generator_at(0, "order", epoch)
        for index in augment.epoch_batches(len(labels), -(-len(labels) // BATCH), order):
            augment.augmented(pixels, index, mirror=None, shift=0, generator=order)
            seen += len(labels[index])
    return seen / (time.perf_counter() - began)


class SingleObjects(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Images that are requested and decoded one by one, each worker with a client of its own."""

    def __init__(self, settings: Settings, keys: list[str]) -> None:
        self._where = endpoint(settings).netloc, *credentials(settings)
        self._keys = keys
        self._client: Minio | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._client is None:
            self._client = Minio(*self._where, secure=False, region="us-east-1", http_client=urllib3.PoolManager())
        key = self._keys[index]
        response = self._client.get_object("safelight-images", key)
        pixels = images.decode(response.read(), PIXELS)
        response.release_conn()
        return torch.from_numpy(pixels), int(key.split("/")[1][-1])


def epoch_of(loader: "torch.utils.data.DataLoader[tuple[torch.Tensor, int]]") -> float:
    """Images per second after the first batch."""
    seen, began = 0, 0.0
    for _, labels in loader:
        if began:
            seen += len(labels)
        else:
            began = time.perf_counter()
    return seen / (time.perf_counter() - began)


@contextmanager
def litdata_epochs(zones: Zones, python: str) -> Iterator[Callable[[], float]]:
    """An epoch by litdata in a process of its own, whenever the result is called; returns images per second."""
    split = datasets.load_split(zones.datasets, datasets.latest(zones.datasets, DATASET), "train")
    start = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "pixels.npy", split.pixels)
        np.save(Path(folder) / "labels.npy", split.labels)
        script = Path(__file__).with_name("litdata_reader.py")
        command = [python, str(script), folder, str(BATCH), str(WORKERS)]
        with start(command, env=os.environ | {"HOME": folder}, text=True) as process:

            def measure() -> float:
                print(file=process.stdin, flush=True)
                return answer_of(process)

            answer_of(process)
            yield measure


if __name__ == "__main__":
    main()
