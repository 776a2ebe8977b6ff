"""Training data larger than memory and disk: ``python -m benchmarks.streaming [--peers PYTHON]``.

**Speed.** The same images, as uint8 and without variations, lie in an embedded store of the benchmark's own: in shards,
in litdata's chunks and in WebDataset's tar files. Each contender reads one shuffled epoch in batches of 128; they take
turns, and nothing is kept between rounds:

- **streamed from the store**: what training does, with disk for half of the images; counted is everything from the
  opened window to the last batch, verification by SHA-256 included.
- **streamed from local disk**: the same code on the same shards in a local folder.
- **WebDataset** from the store as well, **litdata** from local chunks (from this store its workers never came back), 2
  workers each, by a Python that has them: the one that runs this, or ``--peers PYTHON``. Counted from their first batch
  on, so that the start of their workers does not count.
- the first two once more **while the default network learns** from each batch, which is what they are for.

**Shuffle.** How well windows of several widths mix Fashion-MNIST packed in shards of 100 images of one class, the worst
case: shards per batch; the spread of classes within batches, as chi-square per degree of freedom (1: as if drawn at
random); and test accuracy after training, beside all images in any order.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import obstore
import torch
from obstore.store import LocalStore, S3Store

from benchmarks import shuffle
from benchmarks.own_store import credentials, own_store, rounds, table
from benchmarks.packed import packed
from pipeline import model
from pipeline.artifacts import TrainConfig
from pipeline.datasets import shape_of
from pipeline.learner import Learner
from pipeline.settings import Settings
from pipeline.split_layout import SplitLayout
from pipeline.store import Store
from pipeline.streamed import Streamed
from pipeline.zones import open_zones

BATCH = 128
WORKERS = 2
ROUNDS = 5
CPU = torch.device("cpu")
PLACES = {"litdata": "local disk", "webdataset": "the store"}
MEMORY = 4 << 30
"""As by default."""
STORE, DISK = "streamed from the store", "streamed from local disk"
Learn = Callable[[torch.Tensor, torch.Tensor], object]


@dataclass(frozen=True, slots=True)
class Workload:
    """So many images of that size."""

    images: int
    side: int
    channels: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.side}x{self.side}x{self.channels}"


WORKLOADS = (Workload(60_000, 28, 1), Workload(6_000, 128, 3))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often the contenders take turns")
    parser.add_argument("--peers", metavar="PYTHON", default=_own_peers(), help="a Python with litdata and webdataset")
    parser.add_argument("--epochs", type=int, default=3, help="of the trainings that compare accuracy; 0: none")
    parser.add_argument("--seeds", type=int, default=2, help="how many such trainings for each window")
    parser.add_argument("--images", type=int, default=20_000, help="of the 60,000 to train on")
    parser.add_argument("--only", choices=("speed", "shuffle"), help="one of the two")
    options = parser.parse_args()
    if options.only != "shuffle":
        for workload in WORKLOADS:
            measure_speed(workload, options.rounds, options.peers)
    if options.only != "speed":
        shuffle.measure(options.epochs, options.seeds, options.images)


def _own_peers() -> str | None:
    """This Python, if it has both."""
    return sys.executable if all(map(importlib.util.find_spec, ("litdata", "webdataset"))) else None


def measure_speed(workload: Workload, turns: int, peers: str | None) -> None:
    """Let the contenders take turns with a workload and print images per second and CPU time."""
    shape = (workload.images, workload.side, workload.side, workload.channels)
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, shape, dtype=np.uint8), np.arange(workload.images) % 10
    with own_store() as settings, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        remote = open_zones(settings).datasets
        local = Store(LocalStore(Path(folder, "shards"), mkdir=True), "file://shards")
        layout = packed(remote, pixels, labels)
        packed(local, pixels, labels)
        print(f"\n{workload}, {len(layout.names)} shards, batches of {BATCH}; load {os.getloadavg()[0]:.1f}")
        contenders = {name: partial(epoch, store, layout, folder) for name, store in ((STORE, remote), (DISK, local))}
        if peers:
            np.save(Path(folder, "pixels.npy"), pixels)
            np.save(Path(folder, "labels.npy"), labels)
            contenders |= stack.enter_context(peers_epochs(peers, settings, remote, Path(folder), shape[1:]))
        else:
            print("litdata and WebDataset are not installed: see --peers in the first lines of this file.")
        reached = rounds(contenders, turns)
        learn = learner(layout)
        learning = rounds({name: partial(contenders[name], learn=learn) for name in (STORE, DISK)}, turns)
    for reference in list(contenders)[1:]:
        table("images/s", {name: [speed for speed, _ in figures] for name, figures in reached.items()}, reference)
    table(
        "images/s while a network learns",
        {name: [speed for speed, _ in figures] for name, figures in learning.items()},
        DISK,
    )
    print(f"\n{'CPU, without the store':50}{'us/image':>12}")
    for name, figures in reached.items():
        print(f"  {name:48}{median(cpu for _, cpu in figures):12.2f}", flush=True)


def learner(layout: SplitLayout) -> Learn:
    """What the default network does with a batch."""
    version, config = layout.version, TrainConfig()
    net = model.build(config.architecture, len(version.classes), version.pixels, config.width)
    taught = Learner(net, config, CPU)
    return lambda pixels, labels: taught.learn(pixels, labels, 0.1, 0)


def epoch(store: Store, layout: SplitLayout, folder: str, learn: Learn | None = None) -> tuple[float, float]:
    """Images per second from the opened window to the last batch, and CPU microseconds per image."""
    with Streamed(
        store,
        layout,
        Path(folder),
        disk_bytes=len(layout.labels) * int(np.prod(shape_of(layout.version))) // 2,
        memory_bytes=MEMORY,
    ) as examples:
        examples.on(CPU, 1)
        began, used, seen = time.perf_counter(), time.process_time(), 0
        for batch in examples.batches(0, 0, -(-len(layout.labels) // BATCH), 0):
            if batch is not None:
                labels = examples.labels[batch.index]
                if learn:
                    learn(batch.pixels[batch.at], labels)
                seen += len(labels)
                examples.release()
        return seen / (time.perf_counter() - began), 1e6 * (time.process_time() - used) / seen


@contextmanager
def peers_epochs(
    python: str, settings: Settings, store: Store, folder: Path, shape: tuple[int, ...]
) -> Iterator[dict[str, Callable[[], tuple[float, float]]]]:
    """An epoch by each peer in a process of its own, whenever it is called, from what is put into the store for it."""
    script = Path(__file__).with_name("streaming_peers.py")
    environ = os.environ | {"HOME": str(folder)}
    command = [python, str(script), json.dumps({"write": str(folder)})]
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for file in (folder / "webdataset").iterdir():
        store.put(f"peers/{file.parent.name}/{file.name}", file.read_bytes())
        file.unlink()
    common = {"batch": BATCH, "workers": WORKERS, "shape": shape}
    told: dict[str, dict[str, Any]] = {
        "litdata": {"where": str(folder / "litdata")},
        "webdataset": {"urls": _presigned(settings, store)},
    }
    start = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True)
    with ExitStack() as stack:
        asked = {}
        for by, special in told.items():
            process = stack.enter_context(start([python, str(script), json.dumps({"by": by} | common | special)]))
            _answer_of(process)
            asked[f"{by} from {PLACES[by]}, {WORKERS} workers"] = partial(_asked, process)
        yield asked


def _asked(process: "subprocess.Popen[str]") -> tuple[float, float]:
    print(file=process.stdin, flush=True)
    return _answer_of(process)


def _answer_of(process: "subprocess.Popen[str]") -> tuple[float, float]:
    if process.stdout is None:
        return 0.0, 0.0
    speed, cpu = map(float, process.stdout.readline().split())
    return speed, cpu


def _presigned(settings: Settings, store: Store) -> list[str]:
    """URLs of the tar files that need no credentials."""
    key, secret = credentials(settings)
    backend = S3Store(
        "safelight-datasets",
        endpoint=settings.s3_endpoint,
        access_key_id=key,
        secret_access_key=secret,
        region=settings.s3_region,
        client_options={"allow_http": True},
    )
    keys = [found.key for found in store.listing("peers/webdataset")]
    return list(obstore.sign(backend, "GET", keys, timedelta(days=1)))


if __name__ == "__main__":
    main()
