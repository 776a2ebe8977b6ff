"""Preparation by more than one core: ``python -m benchmarks.preparation [--images 12000] [--rounds 3]``.

Photographs of 500x375 as JPEG are made into 224x224, in turns: by one thread, by two threads, by two processes (which
start and load their libraries each time, as ``safelight prepare`` has them do), and by a Dask cluster of two workers
with one thread each, which runs already. An object store of its own, on the same cores, is gone at the end.

The second table has images per second of CPU time, of all processes that prepare: what getting more done costs.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import psutil
from distributed import Client

from benchmarks.orchestration import photographs, put
from benchmarks.own_store import credentials, own_store, rounds, table
from pipeline import fan_out, task_runners
from pipeline.artifacts import PrepareConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

WORKERS = 2
DATASET = "photographs"
CONFIG = PrepareConfig(size=224)


@dataclass(frozen=True)
class Speed:
    """Images per second, by the clock on the wall, and of CPU time."""

    wall: float
    cpu: float


def main() -> None:
    """Print both tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=12_000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with own_store() as settings, cluster(settings) as (address, workers):
        os.environ |= environ(settings)
        zones = open_zones(settings)
        put(zones, DATASET, chosen.images, photographs())
        ways = {
            "1 thread": (1, "threads"),
            f"{WORKERS} threads": (WORKERS, "threads"),
            f"{WORKERS} processes": (WORKERS, "processes"),
            f"Dask, {WORKERS} workers with 1 thread": (1, address),
        }
        turns: dict[str, Callable[[], Speed]] = {
            name: partial(
                turn,
                zones,
                settings.model_copy(update={"decode_threads": threads, "task_runner": runner}),
                chosen.images,
                workers,
            )
            for name, (threads, runner) in ways.items()
        }
        reached = {name: done[1:] for name, done in rounds(turns, chosen.rounds + 1).items()}  # the first warms up
        for what, speed in (("images/s", attrgetter("wall")), ("images per CPU second", attrgetter("cpu"))):
            told = {name: [speed(each) for each in done] for name, done in reached.items()}
            table(f"prepare {chosen.images:,} photographs, {what}", told, "1 thread")


def turn(zones: Zones, settings: Settings, count: int, workers: list[psutil.Process]) -> Speed:
    """One preparation from nothing."""
    zones.datasets.delete([found.key for found in zones.datasets.listing(DATASET)])
    begun, used = time.perf_counter(), spent(workers)
    prepare(
        zones,
        DATASET,
        CONFIG,
        map_chunks=fan_out.map_chunks(settings, zones),
        chunks=task_runners.least_items(settings.task_runner),
        decode_threads=settings.decode_threads,
    )
    reached = Speed(count / (time.perf_counter() - begun), count / (spent(workers) - used))
    print(f"{settings.task_runner}, {settings.decode_threads}: {reached}", file=sys.stderr, flush=True)
    return reached


def spent(workers: list[psutil.Process]) -> float:
    """CPU seconds so far of this process, of children that have ended, and of ``workers``."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = [each.cpu_times() for each in workers]
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(each.user + each.system for each in times)


def environ(settings: Settings) -> dict[str, str]:
    """With which another process finds the store, and has one core."""
    access, secret = credentials(settings)
    return {
        "SAFELIGHT_HOME": str(settings.home),
        "SAFELIGHT_S3_ENDPOINT": settings.s3_endpoint or "",
        "SAFELIGHT_S3_ACCESS_KEY_ID": access,
        "SAFELIGHT_S3_SECRET_ACCESS_KEY": secret,
        "SAFELIGHT_DECODE_THREADS": "1",
    }


@contextmanager
def cluster(settings: Settings) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The address of a Dask scheduler of this machine, and its workers."""
    told = os.environ | environ(settings)
    file = settings.home / "scheduler.json"
    scheduler = ("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    worker = ("dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny")
    with ExitStack() as running:
        running.enter_context(started(scheduler, told, settings.home))
        workers = [running.enter_context(started(worker, told, settings.home)) for _ in range(WORKERS)]
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(WORKERS, timeout=60)
            address = client.scheduler_info()["address"]
        yield address, [psutil.Process(each.pid) for each in workers]


@contextmanager
def started(words: tuple[str, ...], environ: dict[str, str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of Dask's, until the end of the block."""
    name, *options = words
    command = [sys.executable, "-m", f"distributed.cli.{name}", "--no-dashboard", *options]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=environ, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
