"""A split that fits neither into memory nor onto this machine's disk: its shards come from the store meanwhile.

- Every shard is read whole, because its SHA-256 is of the whole, and checked before an image of it is used.
- The order (``windowed_order``) depends on the seed, the epoch, how images are packed and how wide the window is; never
  on what is at hand, on time or on threads. So the step of a checkpoint says where the reader stands. A window that is
  narrower for want of disk, or a dataset that was packed anew, is another order, and a resumed run says so.
- **Of several ranks** each has every so-many-th shard of each epoch's order, and of every batch the same share of its
  own images: nothing is read twice, nothing travels between them. They step together, and none says that it waits.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import datasets
from pipeline.augment import generator_at
from pipeline.errors import InvalidInput
from pipeline.examples import MINIMUM_PART, Batch
from pipeline.parts import starts
from pipeline.pixel_file import PixelFile
from pipeline.ranks import ALONE, Ranks
from pipeline.shard_window import AHEAD, FETCHED_AT_ONCE, Sequences, ShardWindow, slots_for
from pipeline.split_layout import SplitLayout, read_images
from pipeline.store import Store
from pipeline.windowed_order import Order, epoch_order, shards_in_turn

WINDOW = 256
"""Shards whose images are mixed, where the disk has room for them."""
SAMPLED_SHARDS = 32
MAPPED_AROUND = 64 << 10
"""What the system maps with an image that is read, in bytes."""


class Streamed:
    """Examples that come from the store, in a context that holds the room for those at hand.

    One is read by ``batches``, to learn from, or by ``in_turn``, to judge by.

    Args:
        store: the datasets zone.
        layout: of the split.
        folder: where the room is; by default the system's own for temporary files.
        disk_bytes: what it may take there.
        memory_bytes: what of it may be in memory at a time.
        group: the ranks that share the images.

    Attributes:
        labels: int64 (N,), of all images of the split.
        facts: what the order depends on.
        half: of the window in which images are mixed, in shards.

    Raises:
        InvalidInput: the room is too little, or cannot be had.
    """

    def __init__(
        self,
        store: Store,
        layout: SplitLayout,
        folder: Path | None,
        *,
        disk_bytes: int,
        memory_bytes: int = 0,
        group: Ranks = ALONE,
    ) -> None:
        self.labels = torch.from_numpy(layout.labels)
        self._shape = datasets.shape_of(layout.version)
        self._image = int(np.prod(self._shape))
        self._slot = int(layout.sizes.max(initial=1))
        slots = disk_bytes // (self._slot * self._image)
        fits = slots >= len(layout.names)
        self.half = (WINDOW if fits else min(WINDOW, slots - AHEAD)) // 2
        if self.half < 1:
            raise self._too_little(layout, disk_bytes)
        self.facts = {"order": f"{2 * self.half} shards mixed, packed as {layout.digest[:16]}"}
        self._store = store
        self._layout = layout
        self._ranks = group
        self._slots = min(slots, len(layout.names))
        self._classes = torch.from_numpy(layout.classes())
        self._starts = torch.from_numpy(layout.starts)
        self._sizes = torch.from_numpy(layout.sizes)
        self._everyone = range(group.world)
        self._name = (group.rank,) if group.rank else ()
        self._memory = memory_bytes
        self._mapped = 0
        self._epochs: int | None = None
        self._turns = 0
        self._window: ShardWindow | None = None
        self._file = PixelFile(folder, (self._slots * self._slot, *self._shape))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._window is not None:
            self._window.close()  # whoever still writes needs the file
        self._file.__exit__(kind, error, trace)

    @property
    def fetched(self) -> int:
        """Shards that were asked of the store so far, without those of a sample."""
        return self._window.fetched if self._window else 0

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Up to ``count`` images from shards here and there, the same ones every time: uint8 (n, H, W, C)."""
        shards = shards_in_turn(self._classes, generator_at("sample"))[: min(count, SAMPLED_SHARDS)].tolist()
        each = -(-count // len(shards))
        with ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="sample") as pool:
            parts = pool.map(lambda shard: self._fetched(shard)[:each].copy(), shards)
            return np.concatenate(list(parts))[:count]

    def on(self, device: torch.device, epochs: int) -> Self:
        """These examples for training on ``device``; nothing is read ahead for more than so many epochs."""
        self.labels = self.labels.to(device)
        self._epochs = epochs
        return self

    def batches(self, seed: int, epoch: int, count: int, done: int) -> Iterator[Batch | None]:
        """In the order of a window that slides over the shards."""
        window = self._at_hand(self.half, lambda each: self._own(self._shards_of(seed, each)).tolist())
        shards = self._shards_of(seed, epoch)
        shares = [starts(int(self._sizes[shards[rank :: self._ranks.world]].sum()), count) for rank in self._everyone]
        if min(share[-1] for share in shares) < MINIMUM_PART * count:
            raise self._too_many()
        own, rank = self._own(shards), self._ranks.rank
        order = epoch_order(own, self._sizes[own], self.half, generator_at(seed, "order", epoch, *self._name))
        for number in range(done, count):
            sizes = [share[number + 1] - share[number] for share in shares]
            begin = shares[rank][number]
            for batch in self._drawn(window, order, epoch, range(begin, begin + sizes[rank])):
                yield batch and _as_part(batch, sizes, rank)

    def in_turn(self, images: int, pixels: int) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Shard by shard; None at last where others have more, so that all yield as often."""
        shards = self._own(torch.arange(len(self._sizes)))
        window = self._at_hand(1, lambda _: shards.tolist())
        size = max(1, min(images, pixels // (self._shape[0] * self._shape[1])))
        blocks = self._sizes.add(size - 1).div(size, rounding_mode="floor")
        for place, shard in enumerate(shards.tolist()):
            yield from self._waited(window, self._turns, place)
            for at in range(0, int(self._sizes[shard]), size):
                rows = torch.arange(at, min(at + size, int(self._sizes[shard])))
                yield self._starts[shard] + rows, self._read(window, torch.full_like(rows, shard), rows)
        self._turns += 1
        most = max(int(blocks[rank :: self._ranks.world].sum()) for rank in self._everyone)
        yield from [None] * (most - int(blocks[shards].sum()))

    def release(self) -> None:
        """Let go of the memory of what was read, once it may be more than there should be."""
        if self._mapped > self._memory < self._slots * self._slot * self._image:
            self._file.release()
            self._mapped = 0

    def _drawn(self, window: ShardWindow, order: Order, epoch: int, positions: range) -> Iterator[Batch | None]:
        """One batch: the images at some positions of the epoch."""
        place, rows = order.found(positions.start, positions.stop)
        shards = order.shards[place]
        parts = []
        at = positions.start
        while at < positions.stop:
            moment = order.moment_of(at)
            yield from self._waited(window, epoch, moment)
            stop = min(positions.stop, int(order.moments[moment + 1]))
            part = slice(at - positions.start, stop - positions.start)
            parts.append(self._read(window, shards[part], rows[part]))
            at = stop
        yield Batch(self._starts[shards] + rows, torch.cat(parts), torch.arange(len(positions)))

    def _waited(self, window: ShardWindow, epoch: int, moment: int) -> Iterator[None]:
        """Return when a moment is reached; who is alone is told that it takes time."""
        while not window.reached(epoch, moment):
            if not self._ranks.several:
                yield

    def _read(self, window: ShardWindow, shards: Tensor, rows: Tensor) -> Tensor:
        self._mapped += len(rows) * (self._image + MAPPED_AROUND)
        return torch.from_numpy(window.read(shards.numpy(), rows.numpy()))

    def _at_hand(self, half: int, shards_of: Sequences) -> ShardWindow:
        """The window, which is made at the first call."""
        if self._window is None:
            self._window = ShardWindow(
                self._file,
                slots=self._slots,
                slot=self._slot,
                half=half,
                count=len(shards_of(0)),
                fetch=self._fetched,
                shards_of=shards_of,
            )
        return self._window

    def _shards_of(self, seed: int, epoch: int) -> Tensor:
        """What all ranks read in an epoch, in order, int64 (S,); nothing once there is no such epoch."""
        if epoch == self._epochs:
            return torch.empty(0, dtype=torch.int64)
        return shards_in_turn(self._classes, generator_at(seed, "shards", epoch))

    def _own(self, shards: Tensor) -> Tensor:
        """Those that this rank reads."""
        return shards[self._ranks.rank :: self._ranks.world]

    def _fetched(self, shard: int) -> NDArray[np.uint8]:
        return read_images(self._store, self._layout, shard)

    def _too_many(self) -> InvalidInput:
        return InvalidInput(
            f"{self._ranks.world} processes are too many for {len(self._sizes)} shards and this batch_size: start "
            "fewer, or choose a larger batch_size."
        )

    def _too_little(self, layout: SplitLayout, disk_bytes: int) -> InvalidInput:
        needed = slots_for(1) * self._slot * self._image
        return InvalidInput(
            f"{disk_bytes >> 20:,} MiB of disk are too few to stream images of {layout.version.dataset!r} through: set "
            f"SAFELIGHT_TRAINING_DISK_MB to {-(-needed >> 20):,} or more, and see that so much is free."
        )


def _as_part(batch: Batch, sizes: list[int], rank: int) -> Batch:
    """A batch as the part of a greater one whose parts have such sizes, where there are several."""
    first = sum(sizes[:rank])
    return replace(batch, of=sum(sizes), part=slice(first, first + sizes[rank])) if len(sizes) > 1 else batch
