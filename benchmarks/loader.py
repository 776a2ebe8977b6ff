"""How fast raw images become a dataset version, and the version tensors: ``python -m benchmarks.loader [images]``.

Small grey PNGs of noise are put into the store that the settings name (the embedded one by default), prepared, prepared
again without and with 1 % more, and loaded; beside it, what a loader without preparation does: one request and one
decoding per image, in as many threads. What was put is deleted at the end.
"""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline import datasets, images
from pipeline.artifacts import PixelSpec, PrepareConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

IMAGES = 10_000
ROUNDS = 5


def main() -> None:
    """Print seconds and images per second."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    zones = open_zones(Settings.from_environ(os.environ))
    dataset = f"benchmark-{secrets.token_hex(4)}"
    try:
        with tempfile.TemporaryDirectory() as cache:
            _measure(zones, dataset, count, Path(cache))
    finally:
        for zone in (zones.images, zones.datasets):
            zone.delete([found.key for found in zone.listing(dataset)])


def _measure(zones: Zones, dataset: str, count: int, cache: Path) -> None:
    ready = partial(prepare, zones, dataset, PrepareConfig(size=28), cache=cache)
    print(f"{'28x28 grey PNGs':34}{'seconds':>10}{'images/s':>12}")
    _row("put", _timed(lambda: _put(zones, dataset, range(count))), count)
    _row("prepare", _timed(ready), count)
    _row("prepare again, no change", _timed(ready), count)
    _put(zones, dataset, range(count, count + count // 100))
    _row("prepare again, 1 % more", _timed(ready), count + count // 100)
    version = datasets.latest(zones.datasets, dataset)
    load = partial(datasets.load_split, zones.datasets, version, "train")
    _row(f"load, best of {ROUNDS}", min(_timed(load) for _ in range(ROUNDS)), version.counts["train"])
    some = [found.key for found in islice(zones.images.listing(dataset), 2000)]
    _row("one request and decoding per image", _timed(lambda: _naively(zones, some, version.pixels)), len(some))


def _put(zones: Zones, dataset: str, numbers: range) -> None:
    for _ in zones.images.write_many(_made(dataset, numbers)):
        pass


def _made(dataset: str, numbers: range) -> Iterator[tuple[str, bytes]]:
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28, 1), dtype=np.uint8)
        yield f"{dataset}/class-{number % 10}/{number:06d}.png", images.encode_png(pixels)


def _naively(zones: Zones, keys: list[str], pixels: PixelSpec) -> int:
    with ThreadPoolExecutor(16) as pool:
        return len(np.stack(list(pool.map(lambda key: images.decode(zones.images.get(key), pixels), keys))))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _row(what: str, seconds: float, count: int) -> None:
    print(f"{what:34}{seconds:10.2f}{count / seconds:12,.0f}")


if __name__ == "__main__":
    main()
