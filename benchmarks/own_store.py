"""What benchmarks of object I/O share: an object store of their own, and contenders that take turns.

The store is the embedded one, as the product starts it, with a home in a temporary folder, so that nothing of a
person's is touched; it is stopped and removed at the end.
"""

import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

import numpy as np

from pipeline import embedded_store, images
from pipeline.settings import Settings
from pipeline.zones import reachable

T = TypeVar("T")

INNER = slice(4, 24)


@contextmanager
def own_store() -> Iterator[Settings]:
    """Settings of an empty store, which is gone afterwards; ``home`` is a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="safelight-benchmark-") as folder:
        given = {name: value for name, value in os.environ.items() if name == "SAFELIGHT_THREADS"}
        settings = Settings.from_environ(given | {"SAFELIGHT_HOME": folder})
        try:
            yield reachable(settings)
        finally:
            embedded_store.down(Path(folder))


def endpoint(settings: Settings) -> SplitResult:
    """Of the store."""
    return urlsplit(settings.s3_endpoint or "")


def credentials(settings: Settings) -> tuple[str, str]:
    """Access key and secret key of the store."""
    access, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    return (access.get_secret_value(), secret.get_secret_value()) if access and secret else ("", "")


def answer_of(process: "subprocess.Popen[str]") -> float:
    """The number on the next line that a process prints."""
    return float(process.stdout.readline()) if process.stdout else 0.0


def small_png(number: int) -> bytes:
    """A grey 28x28 PNG of some 600 bytes, another one for each number, as Fashion-MNIST's are."""
    pixels = np.zeros((28, 28, 1), np.uint8)
    pixels[INNER, INNER, 0] = np.random.default_rng(number).integers(0, 256, (20, 20))
    return images.encode_png(pixels)


def rounds(contenders: Mapping[str, Callable[[], T]], count: int) -> dict[str, list[T]]:
    """What each contender reached in each round: all take turns, in an order that moves on from round to round."""
    names = list(contenders)
    reached: dict[str, list[T]] = {name: [] for name in names}
    for number in range(count):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            reached[name].append(contenders[name]())
    return reached


def table(what: str, reached: Mapping[str, list[float]], reference: str) -> None:
    """Print each contender's median, and the median of its ratios to ``reference``, round by round."""
    print(f"\n{what:50}{'median':>12}   times {reference}")
    for name, figures in reached.items():
        ratios = sorted(own / base for own, base in zip(figures, reached[reference], strict=True))
        spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  {name:48}{statistics.median(figures):12,.0f}{statistics.median(ratios):10.2f} {spread}")
