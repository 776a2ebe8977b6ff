"""litdata's side of ``benchmarks.loader``, run by a Python that has litdata: it gets FOLDER, BATCH and WORKERS.

``FOLDER`` has ``pixels.npy`` and ``labels.npy``. They become litdata's optimised chunks in that folder; then, for each
line that comes in, an epoch is read from these local files, shuffled, and its images per second are printed. An item
holds raw pixels, so that nothing has to be decoded. The clock starts at the first batch, so that the start of litdata's
worker processes does not count.
"""

import functools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize


def main() -> None:
    """Answer each line."""
    folder, batch, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    pixels, labels = np.load(folder / "pixels.npy"), np.load(folder / "labels.npy")
    chunks = str(folder / "chunks")
    make = functools.partial(item, torch.from_numpy(pixels), labels)
    optimize(make, list(range(len(labels))), chunks, chunk_bytes="64MB", num_workers=1, verbose=False)
    print(0, file=sys.__stdout__, flush=True)
    for _ in sys.stdin:
        loader = StreamingDataLoader(StreamingDataset(chunks, shuffle=True), batch_size=batch, num_workers=workers)
        print(epoch(loader), file=sys.__stdout__, flush=True)


def item(pixels: torch.Tensor, labels: np.ndarray, number: int) -> dict[str, object]:
    """One image."""
    return {"image": pixels[number].clone(), "label": int(labels[number])}


def epoch(loader: StreamingDataLoader) -> float:
    """Images per second after the first batch."""
    seen, began = 0, 0.0
    for batch in loader:
        if began:
            seen += len(batch["label"])
        else:
            began = time.perf_counter()
    return seen / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
