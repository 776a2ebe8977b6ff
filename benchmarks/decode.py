"""How fast images become pixels on one core, beside Pillow doing the same: ``python -m benchmarks.decode``.

Pictures are made here: noise for the small ones, smooth colour for the photographs (some 40 KB, as a photograph of that
size has). The figure is the best of five rounds, because other processes only ever slow one down.
"""

import io
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.artifacts import PixelSpec
from pipeline.images import decode, encode_png, read_header

ROUNDS = 5
SECONDS = 0.5


def main() -> None:
    """Print images per second."""
    cv2.setNumThreads(1)
    small = encode_png(_small())
    photo = _photograph("JPEG", quality=90)
    lossless = _photograph("PNG")
    grey28 = PixelSpec(height=28, width=28, channels=1)
    rgb224 = PixelSpec(height=224, width=224, channels=3)
    print(f"{'images/s on one core':44}{'ours':>10}{'Pillow':>10}")
    _row("28x28 grey PNG, header", lambda: read_header(small), lambda: Image.open(io.BytesIO(small)).size)
    _row("28x28 grey PNG, decoded", lambda: decode(small, grey28), lambda: np.asarray(Image.open(io.BytesIO(small))))
    _row(f"500x375 JPEG of {len(photo) >> 10} KB to 224x224", lambda: decode(photo, rgb224), lambda: _by_pillow(photo))
    _row(
        f"500x375 PNG of {len(lossless) >> 10} KB to 224x224",
        lambda: decode(lossless, rgb224),
        lambda: _by_pillow(lossless),
    )


def _row(what: str, ours: Callable[[], object], pillow: Callable[[], object]) -> None:
    print(f"{what:44}{_rate(ours):10,.0f}{_rate(pillow):10,.0f}")


def _rate(work: Callable[[], object]) -> float:
    """Calls per second, best round."""
    best = 0.0
    for _ in range(ROUNDS):
        calls, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < SECONDS:
            work()
            calls += 1
        best = max(best, calls / seconds)
    return best


def _small() -> NDArray[np.uint8]:
    pixels = np.zeros((28, 28, 1), np.uint8)
    pixels[4:24, 6:22, 0] = np.random.default_rng(0).integers(0, 256, (20, 16))
    return pixels


def _photograph(kind: str, **options: int) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


def _by_pillow(data: bytes) -> NDArray[np.uint8]:
    """The same crop and size by Pillow, with its bilinear filter."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    return np.asarray(cropped.resize((224, 224), Image.Resampling.BILINEAR))


if __name__ == "__main__":
    main()
