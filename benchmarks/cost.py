"""What one more image, class and version cost in requests, bytes and CPU, per stage: ``python -m benchmarks.cost``.

The whole route runs on an embedded store of its own, behind a proxy that counts (a process of its own, the one that the
tests use), at several numbers of images, and once more with more classes. From the smallest and the largest size follow
a fixed part and a part per image; the size between them shows how far a line fits. Images are 28x28 grey PNGs of noise,
as large as any of that size. CPU is that of this process and of the inference server, not the store's; medians of
``ROUNDS``. Takes five minutes on a quiet machine.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import psutil

from benchmarks.own_store import credentials, own_store
from pipeline import datasets, inference_server, processes, registry
from pipeline.artifacts import DatasetVersion, GateConfig, ModelVersion, PrepareConfig, TrainConfig, TrainingRun
from pipeline.buckets import create_buckets
from pipeline.deploy import deploy
from pipeline.errors import TrainingStopped
from pipeline.evaluate import evaluate
from pipeline.export import export
from pipeline.images import encode_png
from pipeline.prepare import prepare
from pipeline.promote import promote
from pipeline.settings import Settings
from pipeline.sources import import_folder
from pipeline.train import train
from pipeline.zones import Zones, open_zones

SIZES = (400, 1200, 3600)
CLASSES, MORE_CLASSES = 4, 44
ROUNDS = 3
BUCKET = "safelight-cost"
PROXY = Path(__file__).parents[1] / "tests" / "counting_proxy.py"
GATE = GateConfig(minimum_accuracy=0, margin=-1, class_drop=1)
FIGURES = ("requests", "sent", "received", "cpu")


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests, bytes to and from the store, and CPU seconds; floats, because per image they are small."""

    requests: float
    sent: float
    received: float
    cpu: float


class Meter:
    """Costs by stage, each measured as often as it was run."""

    def __init__(self, proxy: subprocess.Popen[str], home: Path) -> None:
        self.costs: dict[str, list[Cost]] = defaultdict(list)
        self._proxy = proxy
        self._home = home

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what the block costs."""
        self._counts()
        before = self._cpu()
        yield
        spent = self._cpu() - before
        found = self._counts()
        sent = sum(each["bytes"] for each in found if each["operation"] in ("PUT", "POST"))
        received = sum(each["bytes"] for each in found) - sent
        self.costs[name].append(Cost(sum(each["requests"] for each in found), sent, received, spent))

    def _counts(self) -> list[dict[str, Any]]:
        """What went through the proxy since the last time."""
        print(file=self._proxy.stdin, flush=True)
        found: list[dict[str, Any]] = json.loads(heard(self._proxy))
        return found

    def _cpu(self) -> float:
        servers = [each.pid for each in processes.running(self._home) if each.name.startswith(inference_server.SERVICE)]
        times = [psutil.Process(pid).cpu_times() for pid in servers]
        return time.process_time() + sum(each.user + each.system for each in times)


def main() -> None:
    """Run the route at every size, and print the tables."""
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    runs: dict[tuple[int, int], list[dict[str, list[Cost]]]] = defaultdict(list)
    with store() as (settings, proxy):
        for number in range(ROUNDS):
            for images, classes in [*((size, CLASSES) for size in SIZES), (SIZES[1], MORE_CLASSES)]:
                meter = Meter(proxy, settings.home)
                own = settings.model_copy(update={"store_url": f"s3://{BUCKET}/{number}-{images}-{classes}"})
                route(meter, open_zones(own), own, images, classes)
                runs[images, classes].append(meter.costs)
                print(f"round {number + 1}: {images} images, {classes} classes", file=sys.stderr, flush=True)
    report({case: {stage: median(each[stage] for each in many) for stage in many[0]} for case, many in runs.items()})


@contextmanager
def store() -> Iterator[tuple[Settings, subprocess.Popen[str]]]:
    """An embedded store behind a proxy: settings for both, and the proxy."""
    with own_store() as direct:
        at = direct.s3_endpoint or ""
        create_buckets(at, *credentials(direct), direct.s3_region, [BUCKET])
        with subprocess.Popen([sys.executable, str(PROXY), at], stdin=PIPE, stdout=PIPE, text=True) as proxy:
            settings = direct.model_copy(update={"s3_endpoint": heard(proxy)})
            try:
                yield settings, proxy
            finally:
                inference_server.down(settings)
                proxy.terminate()


def heard(proxy: subprocess.Popen[str]) -> str:
    """The next line that the proxy says."""
    return (proxy.stdout or sys.stdin).readline().strip()


def route(meter: Meter, zones: Zones, settings: Settings, images: int, classes: int) -> None:
    """The whole route once, every stage measured."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = _prepared(meter, zones, Path(folder), images, classes)
    run = _trained(meter, zones, dataset)
    _go_live(meter, zones, settings, _registered(meter, zones, run), "first")
    again = train(zones, dataset, TrainConfig(epochs=1, seed=1), device="cpu")
    made = export(zones, again), evaluate(zones, again)
    challenger = registry.register(zones.checkpoints, zones.models, "noise", *made)
    _go_live(meter, zones, settings, challenger, "next")
    inference_server.down(settings)


def _prepared(meter: Meter, zones: Zones, folder: Path, images: int, classes: int) -> DatasetVersion:
    again = partial(prepare, zones, "noise", PrepareConfig(size=28), cache=folder / "cache")
    write(folder / "noise", range(images), classes)
    for stage in ("import", "import again"):
        with meter.stage(stage):
            import_folder(zones, folder / "noise", "noise")
    for stage in ("prepare", "prepare again"):
        with meter.stage(stage):
            again()
    write(folder / "noise", range(images, images + images // 100), classes)
    import_folder(zones, folder / "noise", "noise")
    with meter.stage("prepare, 1 % more"):
        version = again().version
    with meter.stage("load all splits"):
        for split in version.counts:
            datasets.load_split(zones.datasets, version, split)
    return version


def _trained(meter: Meter, zones: Zones, dataset: DatasetVersion) -> TrainingRun:
    stages: set[str] = set()
    with meter.stage("train, to the first step"), suppress(TrainingStopped):
        train(
            zones,
            dataset,
            TrainConfig(epochs=1),
            device="cpu",
            on_progress=lambda progress: stages.add(progress.stage),
            should_stop=lambda: "training" in stages,
        )
    with meter.stage("train, one epoch more"):
        return train(zones, dataset, TrainConfig(epochs=1), device="cpu")


def _registered(meter: Meter, zones: Zones, run: TrainingRun) -> ModelVersion:
    with meter.stage("evaluate"):
        judged = evaluate(zones, run)
    with meter.stage("export"):
        exported = export(zones, run)
    with meter.stage("register"):
        return registry.register(zones.checkpoints, zones.models, "noise", exported, judged)


def _go_live(meter: Meter, zones: Zones, settings: Settings, version: ModelVersion, which: str) -> None:
    with meter.stage(f"promote, {which}"):
        promote(zones, version, GATE)
    with meter.stage(f"deploy, {which}"):
        deploy(zones, settings, version)


def write(folder: Path, numbers: range, classes: int) -> None:
    """Images of noise, a folder per class, in a person's folder."""
    for number in numbers:
        path = folder / f"class-{number % classes:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.random.default_rng(number).integers(0, 256, (28, 28, 1), dtype=np.uint8)))


def median(costs: Iterator[list[Cost]]) -> Cost:
    """Figure by figure, over the rounds."""
    each = [cost for found in costs for cost in found]
    return Cost(*(statistics.median(getattr(cost, figure) for cost in each) for figure in FIGURES))


def report(costs: dict[tuple[int, int], dict[str, Cost]]) -> None:
    """Print the fixed part and the part per image of each stage, and what a class adds, as Markdown."""
    small, between, large = (costs[size, CLASSES] for size in SIZES)
    print(
        "| stage | requests | kB sent | kB received | CPU ms | requests | bytes sent | bytes received | CPU µs | off |"
    )
    print("|---|" + "---:|" * 9)
    for stage in small:
        lines = [line(getattr(small[stage], name), getattr(large[stage], name)) for name in FIGURES]
        fixed = [f"{part:,.0f}" for part in scaled([part for part, _ in lines], 1e3, 1e3)]
        slope = [
            f"{part:,.0f}" if abs(part) >= 100 else f"{part:.3g}"
            for part in scaled([part for _, part in lines], 1, 1e6)
        ]
        off = deviation(small[stage].requests, between[stage].requests, large[stage].requests)
        print(f"| {stage} | {' | '.join(fixed)} | {' | '.join(slope)} | {off:.0%} |")
    print("\n| stage, one class more | requests | kB sent | kB received | CPU ms |\n|---|---:|---:|---:|---:|")
    for stage, many in costs[SIZES[1], MORE_CLASSES].items():
        extra = [getattr(many, name) - getattr(between[stage], name) for name in FIGURES]
        cells = scaled([part / (MORE_CLASSES - CLASSES) for part in extra], 1e3, 1e3)
        print(f"| {stage} | {' | '.join(f'{cell:,.2f}' for cell in cells)} |")


def scaled(figures: list[float], unit_bytes: float, per_second: float) -> list[float]:
    """Requests as they are, bytes in units of ``unit_bytes``, CPU in units of which ``per_second`` make a second."""
    requests, sent, received, cpu = figures
    return [requests, sent / unit_bytes, received / unit_bytes, cpu * per_second]


def line(low: float, high: float) -> tuple[float, float]:
    """Fixed part and part per image of what cost ``low`` at the smallest size and ``high`` at the largest."""
    slope = (high - low) / (SIZES[-1] - SIZES[0])
    return low - slope * SIZES[0], slope


def deviation(low: float, between: float, high: float) -> float:
    """How far the cost at the size between is off the line through the two others, as a share."""
    fixed, slope = line(low, high)
    expected = fixed + slope * SIZES[1]
    return abs(between - expected) / expected if expected else 0.0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
