"""What a batch prediction reaches: ``python -m benchmarks.batch_prediction [--rounds N] [--images N]``.

The same images in one embedded store, answered by the same exported network, by contenders that take turns:

- ``predict``: the product's step, from the listing to the manifest.
- ``loop``: what one writes first: each image in turn is fetched, opened and resized by Pillow, put through ONNX
  Runtime (with its own threads, as it comes) and noted; a Parquet file at the end.
- ``fetch``: the same images only read, as many at a time as ``predict`` has under way.
- ``limit``: decoding and the model alone, by the product's functions, images in memory, in as many threads as cores.

Told are images per second of the clock, in which the store's process takes its share of the cores, and images per
second of processor time of the contender's own process; of the latter, what ``predict`` reaches of what fetching,
decoding and the model would leave if there were nothing else. ``--memory N …`` tells the highest resident set of
``safelight predict`` with so many small images instead.
"""

import argparse
import io
import itertools
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from benchmarks.decode import photograph
from benchmarks.own_store import own_store, rounds, small_png, table
from pipeline import aliases, answering, images, model, predict, registry
from pipeline.artifacts import DatasetVersion, PixelSpec
from pipeline.export import Probabilities, to_onnx
from pipeline.onnx_model import INPUT, OUTPUT, OnnxModel
from pipeline.zones import Zones, open_zones
from tests import tiny_models

MODEL, FOLDER = "answered", "incoming"
CLASSES = tuple(f"class-{number}" for number in range(10))
COMMAND = ("predict", MODEL, FOLDER)
DIFFERENT = 100
KINDS: Mapping[str, tuple[PixelSpec, Callable[[int], bytes]]] = {
    "28x28 PNG, small_resnet": (PixelSpec(height=28, width=28, channels=1), small_png),
    "500x375 JPEG to 64x64, small_resnet": (PixelSpec(height=64, width=64, channels=3), photograph),
}


def main() -> None:
    """Print a table per kind of image."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, nargs=2, default=(10_000, 2_000), help="of each kind")
    parser.add_argument("--memory", type=int, nargs="+", default=(), help="numbers of images, instead of all else")
    options = parser.parse_args()
    for count in options.memory:
        print(f"{count:10,} images: {peak(count) / 1024:6.0f} MiB", flush=True)
    if options.memory:
        return
    cv2.setNumThreads(1)
    for (kind, (spec, made)), count in zip(KINDS.items(), options.images, strict=True):
        with own_store() as settings:
            zones = open_zones(settings)
            encoded = [made(number) for number in range(DIFFERENT)]
            prepare(zones, spec, encoded, count)
            reached = rounds(contenders(zones, spec, encoded, count), options.rounds)
            print(f"\n{kind}, {count:,} images")
            for place, what in enumerate(("images per second", "images per second of processor time")):
                table(what, {name: [each[place] for each in found] for name, found in reached.items()}, "loop")
            print(f"  predict of fetch and limit together: {share(reached):.2f}")


def peak(count: int) -> int:
    """The highest resident set of the command, in KiB."""
    spec, made = KINDS["28x28 PNG, small_resnet"]
    with own_store() as settings:
        prepare(open_zones(settings), spec, [made(number) for number in range(DIFFERENT)], count)
        # A process counts what the one that started it held: so it is started by a small one.
        code = f"from benchmarks import memory; print(memory.peak_of(['-c', memory.SAFELIGHT, *{COMMAND!r}]))"
        told = os.environ | {"SAFELIGHT_HOME": str(settings.home)}
        return int(subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, check=True).stdout)


def share(reached: Mapping[str, Sequence[tuple[float, float]]]) -> float:
    """The median, over the rounds, of ``predict`` times what fetching and answering an image take (processor time)."""
    each = zip(*(reached[name] for name in ("predict", "fetch", "limit")), strict=True)
    return statistics.median(ours[1] * (1 / fetch[1] + 1 / limit[1]) for ours, fetch, limit in each)


def prepare(zones: Zones, spec: PixelSpec, encoded: Sequence[bytes], count: int) -> None:
    """Images in the store, and a champion with random weights."""
    named = ((f"{FOLDER}/{number:06d}", encoded[number % len(encoded)]) for number in range(count))
    for _ in zones.images.write_many(named):
        pass
    torch.manual_seed(0)
    network = Probabilities(model.build("small_resnet", len(CLASSES), spec)).eval()
    dataset = DatasetVersion(
        dataset=MODEL, version="0123456789abcdef", classes=CLASSES, pixels=spec, counts={"train": 6, "test": 3}
    )
    version = tiny_models.register(
        zones.checkpoints, zones.models, MODEL, 1, dataset=dataset, onnx_file=to_onnx(network, spec)
    )
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, version.version, reason="benchmark")


def contenders(
    zones: Zones, spec: PixelSpec, encoded: Sequence[bytes], count: int
) -> dict[str, Callable[[], tuple[float, float]]]:
    """Each answers all images; returned are its two speeds."""
    manifest = registry.versions(zones.models, MODEL)[0]
    onnx_file = registry.load_file(zones.models, manifest, "model.onnx")
    in_memory = list(itertools.islice(itertools.cycle(encoded), count))
    return {
        "predict": lambda: timed(count, lambda: by_predict(zones)),
        "loop": lambda: timed(count, lambda: in_a_loop(zones, spec, onnx_file)),
        "fetch": lambda: timed(count, lambda: fetched(zones)),
        "limit": lambda: timed(count, lambda: alone(in_memory, spec, onnx_file)),
    }


def timed(count: int, work: Callable[[], None]) -> tuple[float, float]:
    """Images per second, and per second of this process's processor time."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return count / (time.perf_counter() - begun), count / (time.process_time() - used)


def by_predict(zones: Zones) -> None:
    """The product's step, under a name of its own each time."""
    result = predict.predict(zones, MODEL, FOLDER, name=f"round-{secrets.token_hex(4)}")
    if result.manifest.left_out:
        raise SystemExit(f"not answered: {result.manifest.left_out}")


def in_a_loop(zones: Zones, spec: PixelSpec, onnx_file: bytes) -> None:
    """What one writes first."""
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    rows = []
    for found in zones.images.listing(FOLDER):
        image = Image.open(io.BytesIO(zones.images.get(found.key))).convert("L" if spec.channels == 1 else "RGB")
        fitted = ImageOps.fit(image, (spec.width, spec.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(fitted, np.uint8).reshape(1, spec.height, spec.width, spec.channels)
        (probabilities,) = session.run([OUTPUT], {INPUT: pixels})[0]
        best = int(probabilities.argmax())
        rows.append({"key": found.key, "label": CLASSES[best], "probability": float(probabilities[best])})
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    zones.predictions.put("loop.parquet", file.getvalue())


def fetched(zones: Zones) -> None:
    """The listing, and the bytes."""
    for found, data in zones.images.read_many(zones.images.listing(FOLDER)):
        if data is None:
            raise SystemExit(f"{found.key} is gone")


def alone(in_memory: Sequence[bytes], spec: PixelSpec, onnx_file: bytes) -> None:
    """Decoding and the model, in threads that have nothing else to do."""
    network = OnnxModel(onnx_file)

    def answered(group: Sequence[bytes]) -> int:
        return len(network.probabilities(np.stack([images.decode(data, spec) for data in group])))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        if sum(pool.map(answered, groups(in_memory))) != len(in_memory):
            raise SystemExit("not all images were answered")


def groups(in_memory: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many images at once as the product takes."""
    size = answering.GROUP_IMAGES
    return (in_memory[start : start + size] for start in range(0, len(in_memory), size))


if __name__ == "__main__":
    main()
