"""Synthetic raw images, and zones in memory for tests that need no server."""

import numpy as np
from obstore.store import MemoryStore

from pipeline import images
from pipeline.store import Store
from pipeline.zones import Zones


def png(number: int, height: int = 28, width: int = 28, channels: int = 1) -> bytes:
    """A PNG of noise; another number is another image."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return images.encode_png(pixels)


def memory_store(backend: MemoryStore | None = None) -> Store:
    """A zone in memory, empty unless another store has that backend too."""
    return Store(backend or MemoryStore(), "memory://zone")


def memory_zones() -> Zones:
    """Empty zones in this process's memory, whose etags are counters."""
    names = ("images", "datasets", "checkpoints", "models", "predictions")
    return Zones(**{name: Store(MemoryStore(), f"memory://{name}", threads=4) for name in names})


def put_classes(zones: Zones, dataset: str, per_class: int, classes: int = 3, start: int = 0) -> None:
    """Put ``per_class`` images of each class, named after their numbers, from ``start`` on."""
    for number in range(start, start + per_class * classes):
        zones.images.put(f"{dataset}/class-{number % classes:03d}/{number:06d}.png", png(number))
