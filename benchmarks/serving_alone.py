"""Decode + model alone, without HTTP: what no server can exceed. ``python -m benchmarks.serving_alone FOLDER THREADS``.

``FOLDER`` holds ``model.onnx``, ``model.json`` and encoded images in ``images``. For each line ``BATCH SECONDS`` that
comes in, so many threads of this process decode and classify batches for so long; printed is their sum of images per
second. ``alone`` tries ways to share out the cores, and keeps to the best.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from benchmarks.own_store import answer_of
from benchmarks.serving_cpu import watched
from benchmarks.serving_load import Visit
from pipeline import images
from pipeline.artifacts import PixelSpec
from pipeline.onnx_model import OnnxModel

WAYS = ((2, 1), (1, 2))
"""Processes, and threads of each."""
BATCHES = (1, 4, 16, 64)
TRIAL_S = 0.5


@contextmanager
def alone(model: Path) -> Iterator[tuple[str, Callable[[float], Visit]]]:
    """The best way, in words, and what it reaches in so many seconds."""
    with ExitStack() as stack:
        found: dict[str, Callable[[float], Visit]] = {}
        for processes, threads in WAYS:
            crew = [stack.enter_context(worker(model, threads)) for _ in range(processes)]
            for batch in BATCHES:
                found[f"{processes} processes x {threads} threads, batches of {batch}"] = partial(
                    all_at_once, crew, batch
                )
        best = max(found, key=lambda way: found[way](TRIAL_S).per_second)
        yield best, found[best]


@contextmanager
def worker(model: Path, threads: int) -> Iterator["subprocess.Popen[str]"]:
    """A process of this module that is ready."""
    command = [sys.executable, "-m", "benchmarks.serving_alone", str(model), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        answer_of(process)
        yield process
        if process.stdin:
            process.stdin.close()


def all_at_once(crew: list["subprocess.Popen[str]"], batch: int, seconds: float) -> Visit:
    """Images per second of all of them."""
    with ExitStack() as stack:
        uses = [stack.enter_context(watched(process.pid)) for process in crew]
        for process in crew:
            print(batch, seconds, file=process.stdin, flush=True)
        rate = sum(map(answer_of, crew))
    spent = sum(use.seconds for use in uses)
    strangers = uses[0].strangers - (spent - uses[0].seconds) / seconds
    return Visit(rate, rate * seconds / spent, max(0.0, strangers))


def main() -> None:
    """Answer each line."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    cv2.setNumThreads(1)
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    spec = PixelSpec(height=about["height"], width=about["width"], channels=about["channels"])
    model = OnnxModel((folder / "model.onnx").read_bytes())
    encoded = [path.read_bytes() for path in sorted((folder / "images").iterdir())]
    with ThreadPoolExecutor(threads) as pool:
        print(0, flush=True)
        for line in sys.stdin:
            batch, seconds = int(line.split()[0]), float(line.split()[1])
            rates = [pool.submit(rate, model, spec, encoded, batch, seconds) for _ in range(threads)]
            print(sum(each.result() for each in rates), flush=True)


def rate(model: OnnxModel, spec: PixelSpec, encoded: list[bytes], batch: int, seconds: float) -> float:
    """Images per second of one thread."""
    begun = time.perf_counter()
    for done in count(batch, batch):
        chosen = [encoded[number % len(encoded)] for number in range(done - batch, done)]
        model.probabilities(np.stack([images.decode(each, spec) for each in chosen]))
        spent = time.perf_counter() - begun
        if spent >= seconds:
            return done / spent
    raise AssertionError


if __name__ == "__main__":
    main()
