"""A split whose pixels several ranks hold, a part each; every rank computes a part of each batch.

Batches are the same images in the same order as one process has them (``examples.Resident``), and their parts differ by
one image at most. What a rank computes and does not hold comes from the rank that does, once for each batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline import augment
from pipeline.examples import Batch, nothing
from pipeline.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Shared:
    """A split of N images.

    Attributes:
        pixels: uint8 (n, H, W, C), those that this rank holds, on the training device or mapped from a local file.
        labels: int64 (N,), of all, on the training device.
        places: int64 (N,): where each image lies among those of all ranks (``datasets.LoadedSplit``).
        ranks: who else holds some.
        release_pixels: lets go of what was read of a file.
        facts: nothing that is not recorded otherwise.
    """

    pixels: Tensor
    labels: Tensor
    places: Tensor
    ranks: Ranks
    release_pixels: Callable[[], None] = nothing
    facts: dict[str, str] = field(default_factory=dict)

    def batches(self, seed: int, epoch: int, count: int, done: int) -> Iterator[Batch]:
        """This rank's parts of the batches, in random order."""
        order = augment.generator_at(seed, "order", epoch)
        for index in augment.epoch_batches(len(self.labels), count, order)[done:]:
            part = self.ranks.part(len(index))
            pixels, at = self.ranks.fetch(self.pixels, self.places[index], len(self.labels))
            yield Batch(index[part], pixels, at, len(index), part)

    def in_turn(self, images: int, pixels: int) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Those that this rank holds, as they lie; None at last where others hold more, so that all yield as often."""
        height, width = self.pixels.shape[1:3]
        size = max(1, min(images, pixels // (height * width)))
        held = torch.argsort(self.places)[self.ranks.part(len(self.labels))]
        for at in range(0, math.ceil(len(self.labels) / self.ranks.world), size):
            part = slice(at, at + size)
            yield (held[part], self.pixels[part]) if len(held[part]) else None

    def release(self) -> None:
        """Let go of what was read of a file."""
        self.release_pixels()
