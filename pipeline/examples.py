"""What a training loop sees of a split: its labels, and its pixels batch by batch, in an order of their own.

- An order is a function of seed and epoch. So the step that a checkpoint names is the position of whoever reads the
  images, and a resumed run sees what an uninterrupted one sees.
- ``Resident`` has all pixels at hand, in memory or in a local file that is mapped, and any order is as good as another.
  Pixels that fit into neither come from the object store meanwhile (``streamed``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pipeline import augment

MINIMUM_PART = 2
"""Images of a batch that each rank has at least: one alone has no variance."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one step.

    Attributes:
        index: int64 (B,), on the CPU: which of the split they are.
        pixels: uint8 (M, H, W, C), of these images and maybe of others.
        at: int64 (B,), on the CPU: where in ``pixels`` each one is.
        of: how many images the step has at all ranks, where these are a part of them; else None.
        part: which part.
    """

    index: Tensor
    pixels: Tensor
    at: Tensor
    of: int | None = None
    part: slice | None = None


class Examples(Protocol):
    """A split, as the training loop reads it."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,), on the training device."""

    @property
    def facts(self) -> dict[str, str]:
        """What the order depends on besides seed and epoch, by name, as ``exactness`` compares it."""

    def batches(self, seed: int, epoch: int, count: int, done: int) -> Iterator[Batch | None]:
        """Every image once, in ``count`` batches whose sizes differ by one at most, without the first ``done`` ones.

        It yields None now and then while it has to wait for the images.
        """

    def in_turn(self, images: int, pixels: int) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Every image once, in an order that never changes, so many images and pixels at once at most.

        It yields indices, int64 (B,), and pixels, uint8 (B, H, W, C); None now and then while it has to wait.
        """

    def release(self) -> None:
        """Let go of the memory of what was read."""


def nothing() -> None:
    """What is meant to be in memory stays there."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A split whose pixels, uint8 (N, H, W, C), are at hand: on the training device, or mapped from a local file.

    ``release_pixels`` lets go of what was read of a file.
    """

    pixels: Tensor
    labels: Tensor
    release_pixels: Callable[[], None] = nothing
    facts: dict[str, str] = field(default_factory=dict)

    def batches(self, seed: int, epoch: int, count: int, done: int) -> Iterator[Batch]:
        """In random order."""
        order = augment.generator_at(seed, "order", epoch)
        for index in augment.epoch_batches(len(self.labels), count, order)[done:]:
            yield Batch(index, self.pixels, index)

    def in_turn(self, images: int, pixels: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As they lie."""
        height, width = self.pixels.shape[1:3]
        size = max(1, min(images, pixels // (height * width)))
        for at in range(0, len(self.labels), size):
            part = slice(at, at + size)
            yield torch.arange(len(self.labels))[part], self.pixels[part]

    def release(self) -> None:
        """Let go of what was read of a file."""
        self.release_pixels()
