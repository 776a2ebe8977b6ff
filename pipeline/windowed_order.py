"""The order of images that are read shard by shard: every one once an epoch, mixed with those of a window of shards.

- **Shards come at random, and the classes take turns**: images are packed in the order of their keys, so that a shard
  often holds one class. The shards of each class are shuffled and spread evenly over the epoch, so that every window
  has about the share of each class that the whole split has.
- **Images are drawn from a sliding window.** An image of the p-th shard comes at a random moment between p - w/2 and
  p + w/2, so that at any moment images of w shards are mixed, and no more than w shards have to be at hand: w/2 of them
  at the beginning and at the end of an epoch. With w/2 shards or fewer in all, every order is as likely as any other.
- **Nothing but numbers decides**: a generator per epoch, the sizes of the shards and the window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """In which order an epoch takes N images out of S shards.

    Attributes:
        shards: int64 (S,), numbers of the shards in the order in which they are needed.
        starts: int64 (S,), how many images the shards before each of them hold.
        drawn: int64 (N,), the images in the order of the epoch. They are numbered as if the shards lay one after
            another in the order of ``shards``.
        moments: int64 (S + 1,), how many images are drawn before each moment.
    """

    shards: Tensor
    starts: Tensor
    drawn: Tensor
    moments: Tensor

    def moment_of(self, position: int) -> int:
        """The moment in which the image at a position of the epoch is drawn."""
        return int(torch.searchsorted(self.moments, position, right=True)) - 1

    def found(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Where the images at some positions are: the place of the shard in ``shards``, and the row in it, int64."""
        drawn = self.drawn[begin:end]
        place = torch.searchsorted(self.starts, drawn, right=True) - 1
        return place, drawn - self.starts[place]


def open_at(moment: int, shards: int, half: int) -> range:
    """Which of ``shards`` shards, by their place in the order, may be drawn from at a moment."""
    return range(max(0, moment - half + 1), min(shards, moment + half + 1))


def shards_in_turn(classes: Tensor, generator: torch.Generator) -> Tensor:
    """Shards in random order, those of each class spread evenly: int64 (S,).

    Args:
        classes: int64 (S,), the class of most images of each shard.
        generator: on the CPU.
    """
    shuffled = torch.randperm(len(classes), generator=generator)
    by_class = shuffled[torch.argsort(classes[shuffled], stable=True)]
    own = classes[by_class]
    sizes = torch.bincount(own)
    rank = torch.arange(len(own)) - (sizes.cumsum(0) - sizes)[own]
    offset = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    return by_class[torch.argsort((rank + offset[own]) / sizes[own], stable=True)]


def epoch_order(shards: Tensor, sizes: Tensor, half: int, generator: torch.Generator) -> Order:
    """Draw the images of an epoch.

    Args:
        shards: int64 (S,), in the order in which they are needed.
        sizes: int64 (S,), how many images each one holds, in the same order.
        half: of the window, in shards.
        generator: on the CPU.
    """
    count = len(shards)
    place = torch.arange(count)
    first, last = (place - half).clamp(min=0).double(), (place + half).clamp(max=count).double()
    moment = torch.rand(int(sizes.sum()), generator=generator, dtype=torch.float64)
    moment *= (last - first).repeat_interleave(sizes)
    moment += first.repeat_interleave(sizes)
    # Rounded up to its end, a moment would find its shard gone.
    moment = torch.minimum(moment, torch.nextafter(last, first).repeat_interleave(sizes))
    moment, drawn = torch.sort(moment, stable=True)
    moments = torch.searchsorted(moment, torch.arange(count + 1, dtype=torch.float64))
    return Order(shards, sizes.cumsum(0) - sizes, drawn, moments)
