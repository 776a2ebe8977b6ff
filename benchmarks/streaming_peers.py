"""litdata's and WebDataset's side of ``benchmarks.streaming``, run by a Python that has them.

The one argument is a JSON object. With ``"write": folder`` it turns ``pixels.npy`` and ``labels.npy`` of that folder
into litdata's chunks and WebDataset's tar files there, raw pixels in both, so that nothing has to be decoded. Else, for
each line that comes in, an epoch is read, shuffled, in batches, with nothing kept from the epoch before,
and its images per second and CPU seconds per million images are printed. The clock starts at the first batch, so that
the start of worker processes does not count.
"""

import functools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
import webdataset

FILE_BYTES = 64 << 20
"""Of chunks and tar files: what both recommend, or near it."""
BUFFER = 1000
"""Images among which WebDataset draws, its documentation's own number."""


def main() -> None:
    """Write, or answer each line."""
    told = json.loads(sys.argv[1])
    if "write" in told:
        write(Path(told["write"]))
        return
    read = {"litdata": by_litdata, "webdataset": by_webdataset}[told["by"]]
    print(0, 0, file=sys.__stdout__, flush=True)
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as cache:
            print(*measured(functools.partial(read, told, cache)), file=sys.__stdout__, flush=True)


def write(folder: Path) -> None:
    """Both formats, in folders named after their libraries."""
    pixels, labels = np.load(folder / "pixels.npy"), np.load(folder / "labels.npy")
    make = functools.partial(item, torch.from_numpy(pixels), labels)
    chunks = str(folder / "litdata")
    litdata.optimize(make, list(range(len(labels))), chunks, chunk_bytes=FILE_BYTES, num_workers=1, verbose=False)
    (folder / "webdataset").mkdir()
    pattern = str(folder / "webdataset" / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=1 << 40, maxsize=FILE_BYTES, verbose=0) as writer:
        for number, (one, label) in enumerate(zip(pixels, labels, strict=True)):
            writer.write({"__key__": f"{number:09d}", "pixels": one.tobytes(), "cls": int(label)})


def item(pixels: torch.Tensor, labels: np.ndarray, number: int) -> dict[str, object]:
    """One image."""
    return {"image": pixels[number].clone(), "label": int(labels[number])}


def by_litdata(told: dict[str, Any], cache: str) -> Iterable[Any]:
    """An epoch of litdata's, from local files."""
    dataset = litdata.StreamingDataset(told["where"], cache_dir=cache, shuffle=True)
    return litdata.StreamingDataLoader(dataset, batch_size=told["batch"], num_workers=told["workers"])


def by_webdataset(told: dict[str, Any], _: str) -> Iterable[Any]:
    """An epoch of WebDataset's, from presigned URLs, which it has curl read."""
    decode = functools.partial(decoded, tuple(told["shape"]))
    dataset = webdataset.WebDataset(told["urls"], shardshuffle=len(told["urls"]), seed=0)
    dataset = dataset.shuffle(BUFFER).map(decode).batched(told["batch"])
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=min(told["workers"], len(told["urls"])))


def decoded(shape: tuple[int, ...], sample: dict[str, bytes]) -> tuple[torch.Tensor, int]:
    """Pixels and label of one image."""
    return torch.frombuffer(bytearray(sample["pixels"]), dtype=torch.uint8).reshape(shape), int(sample["cls"])


def measured(begin: Callable[[], Iterable[Any]]) -> tuple[float, float]:
    """Images per second after the first batch, and CPU seconds for a million images, workers' included."""
    seen, began, first = 0, 0.0, 0
    used = cpu_seconds()
    for batch in begin():
        labels = batch["label"] if isinstance(batch, dict) else batch[1]
        seen += len(labels)
        if not began:
            began, first = time.perf_counter(), seen
    seconds = time.perf_counter() - began
    return (seen - first) / seconds, 1e6 * (cpu_seconds() - used) / seen


def cpu_seconds() -> float:
    """What this process and those that it has ended used."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in each)


if __name__ == "__main__":
    main()
