"""Peak memory of preparation and of the training loader: ``python -m benchmarks.memory [--images N …]``.

For each number of images, small grey PNGs of noise are put into the store that the settings name (the embedded one by
default). ``safelight prepare`` makes a dataset version of them, and another one when an image was added; then a process
reads a whole epoch of shuffled batches while the images may not stay in memory, and another one while they may. Each
line is the highest resident set of a process of its own, as the kernel saw it; the last two columns compare it with the
first number of images. What was put is deleted at the end.
"""

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline import datasets, images
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones, reachable

NUMBERS = (1_000, 10_000, 100_000)
BATCH = 128
"""As training takes them."""
SAFELIGHT = "import sys; from pipeline.cli import main; sys.exit(main())"
PREPARE, AGAIN = "prepare", "prepare one more"
STREAMED, RESIDENT = "loader, streamed", "loader, resident"


def main() -> None:
    """Print a line per stage and number of images; or be the process that reads an epoch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=NUMBERS, help="numbers of images")
    parser.add_argument("--epoch", nargs=3, metavar=("DATASET", "SCRATCH", "MIB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    zones = open_zones(reachable(Settings.from_environ(os.environ)))
    if options.epoch:
        dataset, scratch, memory_mb = options.epoch
        read_epoch(zones, dataset, Path(scratch), memory_mb=int(memory_mb))
        return
    print(f"{'stage':20}{'images':>10}{'peak MiB':>10}{'ratio':>8}{'bytes per image more':>23}")
    first: dict[str, tuple[int, int]] = {}
    for count in options.images:
        for stage, peak in measure(zones, count):
            fewer, least = first.setdefault(stage, (count, peak))
            more = f"{1024 * (peak - least) / (count - fewer):,.0f}" if count > fewer else ""
            print(f"{stage:20}{count:10,}{peak / 1024:10.1f}{peak / least:8.2f}{more:>23}", flush=True)


def measure(zones: Zones, count: int) -> Iterator[tuple[str, int]]:
    """The peaks with so many images, by stage, in KiB."""
    dataset = f"benchmark-{secrets.token_hex(4)}"
    try:
        for _ in zones.images.write_many(made(dataset, count)):
            pass
        with tempfile.TemporaryDirectory() as scratch:
            prepare = ["-c", SAFELIGHT, "prepare", dataset, "--size", "28"]
            yield PREPARE, peak_of(prepare)
            zones.images.put(f"{dataset}/class-0/more.png", encoded(count))
            yield AGAIN, peak_of(prepare)
            epoch = ["-m", "benchmarks.memory", "--epoch", dataset, scratch]
            yield STREAMED, peak_of([*epoch, "0"])
            yield RESIDENT, peak_of([*epoch, "4096"])
    finally:
        for zone in (zones.images, zones.datasets):
            zone.delete([found.key for found in zone.listing(dataset)])


def peak_of(arguments: Sequence[str]) -> int:
    """The highest resident set of a Python process with these arguments, in KiB."""
    # As the command line sets it for all that it does.
    environ = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], environ, file_actions=silent)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}.")
    return used.ru_maxrss // 1024 if sys.platform == "darwin" else used.ru_maxrss


def read_epoch(zones: Zones, dataset: str, scratch: Path, *, memory_mb: int) -> None:
    """All training images once, in shuffled batches."""
    version = datasets.latest(zones.datasets, dataset)
    loaded = datasets.load_split(zones.datasets, version, "train", memory_mb=memory_mb, scratch=scratch)
    order = np.random.default_rng(0).permutation(len(loaded.labels))
    for start in range(0, len(order), BATCH):
        loaded.pixels[order[start : start + BATCH]]
        loaded.release()


def made(dataset: str, count: int) -> Iterator[tuple[str, bytes]]:
    """Keys and bytes of as many different images in ten classes."""
    for number in range(count):
        yield f"{dataset}/class-{number % 10}/{number:07d}.png", encoded(number)


def encoded(number: int) -> bytes:
    """A PNG of noise, another one for each number."""
    return images.encode_png(np.random.default_rng(number).integers(0, 256, (28, 28, 1), dtype=np.uint8))


if __name__ == "__main__":
    main()
