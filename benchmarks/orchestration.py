"""What Prefect costs: ``python -m benchmarks.orchestration [--epochs 40] [--images 10000] [--rounds 3]``.

With an object store and a Prefect server of its own, both gone at the end.

1. One run of the flow ``pipeline``. Work is what the steps do in their threads; all the rest of the run's wall clock is
   orchestration: Prefect, opening the store, artifacts for the UI.
2. Preparation inside the flow ``prepare`` against a bare call of ``prepare`` with as many threads and the same images,
   in turns; photographs of 500x375 as JPEG, and small pictures of 28x28 as PNG. On a busy machine the second table,
   per second of this process's CPU time, tells more.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.own_store import own_store, rounds, table
from pipeline import images, inference_server, prefect_server, processes
from pipeline.artifacts import GateConfig, PrepareConfig, TrainConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones, reachable

BASES = 64
"""Different pictures; the others are these with other bytes behind their end, so that each must be decoded."""
LONG_RUN_S = 180.0


@dataclass
class Work:
    """Seconds that the steps of a run took, all threads of a step counting once."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Speed:
    """Images per second, by the clock on the wall, and of CPU time in this process."""

    wall: float
    cpu: float


def main() -> None:
    """Print both tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--images", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with own_store() as settings, prefect(settings):
        zones = open_zones(settings)
        put(zones, "small", chosen.images, small_pictures())
        put(zones, "photographs", chosen.images, photographs())
        whole_route(chosen.epochs)
        for dataset, size in (("photographs", 224), ("small", 28)):
            ways = both_ways(settings, zones, dataset, PrepareConfig(size=size), chosen.images)
            reached = {way: turns[1:] for way, turns in rounds(ways, chosen.rounds + 1).items()}  # the first warms up
            for what, speed in (("images/s", attrgetter("wall")), ("images per CPU second", attrgetter("cpu"))):
                told = {way: [speed(turn) for turn in turns] for way, turns in reached.items()}
                table(f"prepare {dataset}, {what}", told, "bare")


@contextmanager
def prefect(settings: Settings) -> Iterator[None]:
    """A Prefect server in the settings' home, for this process's flows; it ends here, with all that they start."""
    for name in [name for name in os.environ if name.startswith("SAFELIGHT_")]:
        del os.environ[name]
    os.environ["SAFELIGHT_HOME"] = str(settings.home)
    try:
        prefect_server.use(settings.home, prefect_server.up(settings.home, settings.prefect_port))
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        yield
    finally:
        inference_server.down(settings)
        processes.stop(settings.home, prefect_server.SERVER)


def whole_route(epochs: int) -> None:
    """One run of the pipeline, and how much of it was not work."""
    # Prefect reads its environment when it is imported.
    from pipeline import flow_tasks, flows, prefect_runs  # noqa: PLC0415

    training = TrainConfig(epochs=epochs)
    gate = GateConfig(minimum_accuracy=0.0)
    with work_of(flow_tasks, opening={reachable, prefect_runs.opened}) as work:
        begun = time.perf_counter()
        prefect_runs.run_here(flows.pipeline("small", training=training, gate=gate))
        seconds = time.perf_counter() - begun
    rest = seconds - work.seconds
    print(f"pipeline: {seconds:.1f} s, of which {work.seconds:.1f} s are work and {rest:.2f} s are not")
    print(f"orchestration: {rest / seconds:.1%} of this run, {rest / max(seconds, LONG_RUN_S):.1%} of one of 3 minutes")


@contextmanager
def work_of(flow_tasks: Any, opening: Collection[Callable[..., Any]]) -> Iterator[Work]:
    """Count what runs in the flows' threads meanwhile, except the ``opening`` of the store.

    A preparation's thread waits for the tasks that pack; of those only their own threads count.
    """
    work, in_thread, pack_images = Work(), asyncio.to_thread, flow_tasks.pack_images

    async def counted(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return await in_thread(step, *args, **kwargs)
        finally:
            work.seconds += 0 if step in opening else time.perf_counter() - begun

    async def packed(*arguments: Any) -> Any:
        begun = time.perf_counter()
        try:
            return await pack_images(*arguments)
        finally:
            work.seconds -= time.perf_counter() - begun

    asyncio.to_thread, flow_tasks.pack_images = counted, packed  # type: ignore[assignment]
    try:
        yield work
    finally:
        asyncio.to_thread, flow_tasks.pack_images = in_thread, pack_images


def both_ways(
    settings: Settings, zones: Zones, dataset: str, config: PrepareConfig, count: int
) -> dict[str, Callable[[], Speed]]:
    """The same preparation of ``count`` images from nothing, bare and in a flow, with as many threads."""
    from pipeline import flows  # noqa: PLC0415 - Prefect reads its environment when it is imported

    threads, cache = settings.decode_threads, settings.cache
    ways: dict[str, Callable[[], object]] = {
        "bare": partial(prepare, zones, dataset, config, decode_threads=threads, cache=cache),
        "in a flow": lambda: asyncio.run(flows.prepare_flow(dataset, config)),
    }

    def turn(way: Callable[[], object]) -> Speed:
        zones.datasets.delete([found.key for found in zones.datasets.listing(dataset)])
        begun, used = time.perf_counter(), time.process_time()
        way()
        return Speed(count / (time.perf_counter() - begun), count / (time.process_time() - used))

    return {name: partial(turn, way) for name, way in ways.items()}


def put(zones: Zones, dataset: str, count: int, bases: list[bytes]) -> None:
    """Store ``count`` different objects of ten classes."""
    made = (
        (f"{dataset}/class-{number % 10}/{number:06d}", bases[number % len(bases)] + number.to_bytes(4, "big"))
        for number in range(count)
    )
    for _ in zones.images.write_many((f"{key}.{suffix(data)}", data) for key, data in made):
        pass


def small_pictures() -> list[bytes]:
    """PNGs of 28x28, brighter from class to class."""
    random = np.random.default_rng(0)
    return [
        images.encode_png((random.integers(0, 60, (28, 28, 1)) + 19 * (number % 10)).astype(np.uint8))
        for number in range(10 * BASES)
    ]


def photographs() -> list[bytes]:
    """JPEGs of 500x375 with the detail of a photograph, about 30 kB each."""
    random = np.random.default_rng(0)
    made = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        for _ in range(BASES):
            coarse = Image.fromarray(random.integers(0, 256, (47, 63, 3), np.uint8)).resize((500, 375))
            coarse.save(path, quality=85)
            made.append(path.read_bytes())
    return made


def suffix(data: bytes) -> str:
    """Of the name of such a file."""
    return "png" if data.startswith(b"\x89PNG") else "jpg"


if __name__ == "__main__":
    main()
