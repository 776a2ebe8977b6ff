"""What preparation costs from 10^4 to 10^6 images, and by a model to 10^8: ``python -m benchmarks.scale``.

For each number of images, small grey PNGs of noise are put into the store that the settings name (the embedded one by
default), and ``safelight prepare`` makes a dataset version of them, then finds it again, each in a process of its own
that counts its requests and their bytes, its CPU time, and its peak memory; with ``perf`` on the path, also the
instructions that it executed, which no neighbour on the machine changes. The line through the two smallest numbers is
the model, a fixed part and a part per image. It is compared with what the largest took, and drawn on to 10^8.

A million images take about 2 GB of disk, and five minutes to put. ``--keep`` leaves them for the next time.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore

from benchmarks.memory import made
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones, reachable

NUMBERS = (10_000, 100_000, 1_000_000)
FAR = 100_000_000
PREPARE, AGAIN = "prepare", "prepare again, no change"
LISTED_BYTES = 232
"""Of an object's line in the answer to a listing, as ``benchmarks.cost`` counted them on the wire."""
UNITS = {
    "GET": (1.0, "requests"),
    "PUT": (1.0, "requests"),
    "LIST": (1.0, "requests"),
    "received": (1e9, "GB"),
    "sent": (1e9, "GB"),
    "CPU": (1.0, "s"),
    "instructions": (1e9, "billions"),
    "memory": (1 << 20, "MiB"),
    "wall clock": (1.0, "s"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """What ``fixed`` and so much per image come to."""

    fixed: float
    each: float

    def at(self, images: int) -> float:
        """For so many images."""
        return self.fixed + self.each * images


def line(low: tuple[int, float], high: tuple[int, float]) -> Line:
    """The line through two measurements, each a number of images and what they took."""
    each = (high[1] - low[1]) / (high[0] - low[0])
    return Line(low[1] - each * low[0], each)


def main() -> None:
    """Print a table per stage; or be the process that prepares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=NUMBERS, help="numbers of images, the largest last")
    parser.add_argument("--keep", action="store_true", help="leave the images in the store")
    parser.add_argument("--prepare", nargs=2, metavar=("DATASET", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        counted(*options.prepare)
        return
    zones = open_zones(reachable(Settings.from_environ(os.environ)))
    found: dict[str, dict[int, dict[str, float]]] = {PREPARE: {}, AGAIN: {}}
    for count in options.images:
        put(zones, count)
        for stage in (PREPARE, AGAIN):
            found[stage][count] = measured(dataset(count))
            print(f"{count:,} images: {stage}: {json.dumps(found[stage][count])}", file=sys.stderr, flush=True)
        for zone in (zones.datasets,) if options.keep else (zones.images, zones.datasets):
            zone.delete([stored.key for stored in zone.listing(dataset(count))])
    for stage, figures in found.items():
        report(stage, figures)


def dataset(count: int) -> str:
    """Its name."""
    return f"scale-{count}"


def put(zones: Zones, count: int) -> None:
    """See that so many raw images are stored, and nothing is prepared."""
    zones.datasets.delete([stored.key for stored in zones.datasets.listing(dataset(count))])
    if sum(1 for _ in zones.images.listing(dataset(count))) != count:
        for _ in zones.images.write_many(made(dataset(count), count)):
            pass


def measured(name: str) -> dict[str, float]:
    """What one preparation took, by figure."""
    with tempfile.TemporaryDirectory() as folder:
        told, counts = Path(folder) / "told", Path(folder) / "counts"
        perf = shutil.which("perf")
        watched = [perf, "stat", "-x", ",", "-e", "instructions:u", "-o", str(counts)] if perf else []
        command = [*watched, sys.executable, "-m", "benchmarks.scale", "--prepare", name, str(told)]
        # As the command line sets it for all that it does.
        environ = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found: dict[str, float] = json.loads(told.read_text())
        if perf:
            rows = (row.split(",") for row in counts.read_text().splitlines())
            found["instructions"] = next((float(row[0]) for row in rows if "instructions:u" in row), 0.0)
    return found


def counted(name: str, told: str) -> None:
    """``safelight prepare``, and what it took."""
    seen, lock = Counter[str](), threading.Lock()
    for function, operation in (("get", "GET"), ("head", "GET"), ("put", "PUT"), ("list", "LIST")):
        setattr(obstore, function, counting(getattr(obstore, function), operation, seen, lock))
    from pipeline.cli import main as cli  # noqa: PLC0415 - what it imports takes the functions as they are by then

    begun = time.perf_counter()
    sys.argv = ["safelight", "prepare", name, "--size", "28"]
    with suppress(SystemExit):
        cli()
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    figures = dict(seen) | {
        "received": seen["received"] + LISTED_BYTES * int(name.rpartition("-")[2]),
        "CPU": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss * unit,
        "wall clock": time.perf_counter() - begun,
    }
    Path(told).write_text(json.dumps(figures))


def counting(function: Callable[..., Any], operation: str, seen: Counter[str], lock: threading.Lock) -> Any:
    """``function`` of obstore, its calls and the bytes of bodies counted."""

    def called(*arguments: Any, **options: Any) -> Any:
        answer = function(*arguments, **options)
        sent = len(arguments[2]) if operation == "PUT" else 0
        received = answer.meta["size"] if function.__name__ == "get" else 0
        with lock:
            seen.update({operation: 1, "sent": sent, "received": received})
        return answer

    return called


def report(stage: str, figures: dict[int, dict[str, float]]) -> None:
    """Print the model of a stage, its test by the largest number, and what it says of ``FAR`` images, as Markdown."""
    small, middle, *_, large = sorted(figures)
    print(f"\n{stage}\n\n| figure | fixed | per image | {large:,}: model | measured | off | {FAR:,}: model |")
    print("|---|" + "---:|" * 6)
    for name, (unit, what) in UNITS.items():
        if not figures[small].get(name):
            continue
        model = line(*((count, figures[count].get(name, 0.0)) for count in (small, middle)))
        expected, found = model.at(large), figures[large][name]
        cells = f"{model.fixed / unit:,.3g} | {model.each:,.3g} | {expected / unit:,.4g} | {found / unit:,.4g}"
        print(f"| {name}, {what} | {cells} | {found / expected - 1:+.0%} | {model.at(FAR) / unit:,.4g} |")
    print(f"\n| {stage}: | " + " | ".join(f"{count:,}" for count in sorted(figures)) + " |")
    print("|---|" + "---:|" * len(figures))
    for name, each in marginal(figures):
        print(f"| {name} | " + " | ".join(f"{figure:,.4g}" for figure in each) + " |")


def marginal(figures: dict[int, dict[str, float]]) -> Iterator[tuple[str, list[float]]]:
    """What one image takes beyond the fixed part, which is that of the two smallest numbers, by number of images."""
    small, middle, *_ = sorted(figures)
    for name, unit in (("CPU", 1e-6), ("instructions", 1e3)):
        if name in figures[small]:
            fixed = line(*((count, figures[count][name]) for count in (small, middle))).fixed
            unit_name = "CPU µs per image" if name == "CPU" else "thousands of instructions per image"
            yield unit_name, [(figures[count][name] - fixed) / count / unit for count in sorted(figures)]


if __name__ == "__main__":
    main()
