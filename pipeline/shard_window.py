"""Shards at hand: those of a sliding window, some ahead of it and, where there is room, what is needed soonest again.

- **A plan, not a guess.** Which shards are needed, and when, is known for the whole run. So shards are fetched in that
  order, some ahead, and when room is short the one goes that is needed last (Belady 1966).
- **Bounded.** Shards lie in slots of a local file of a fixed size, which has no name and is gone with the process. In
  memory is only what is under way, and what a batch was copied from, until ``release``.
- **One thread decides**, the one that reads. Others fetch, check and write one shard each; what they find wrong is
  raised where the shard is needed.
"""

import sys
from bisect import insort
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.pixel_file import PixelFile
from pipeline.windowed_order import open_at

AHEAD = 8
"""Shards that are fetched before they are needed."""
FETCHED_AT_ONCE = 4
WAIT_S = 0.5
"""Seconds after which who waits for a shard is told so."""
NEVER = sys.maxsize

Fetch = Callable[[int], NDArray[np.uint8]]
"""The images of a shard, by its number, checked: uint8 (n, height, width, channels). Called in several threads."""
Sequences = Callable[[int], Sequence[int]]
"""The shards that an epoch needs, by number and in order; none once there is no such epoch."""


def slots_for(half: int) -> int:
    """How many shards have to have room at least, for a window of twice ``half``."""
    return 2 * half + AHEAD


class ShardWindow:
    """Some shards of a split in a local file. For one thread.

    Args:
        file: of ``slots`` times ``slot`` images.
        slots: ``slots_for(half)`` or more, or as many as there are shards at all.
        slot: images that a shard has at most.
        half: of the window, in shards.
        count: shards that an epoch needs.
        fetch: gets one.
        shards_of: what each epoch needs.
    """

    def __init__(
        self, file: PixelFile, *, slots: int, slot: int, half: int, count: int, fetch: Fetch, shards_of: Sequences
    ) -> None:
        self.fetched = 0
        """Shards that were asked of the store so far."""
        self._file = file
        self._pixels = file.mapped_while_written()
        self._slot = slot
        self._half = half
        self._count = count
        self._fetch = fetch
        self._shards_of = lru_cache(4)(shards_of)
        self._places_of = lru_cache(4)(self._places)
        self._free = list(range(slots))
        self._slots: dict[int, int] = {}
        self._uses: Counter[int] = Counter()
        self._idle: list[tuple[int, int]] = []
        self._again: dict[int, int] = {}
        self._under_way: dict[int, Future[None]] = {}
        self._closed = self._ready = self._opened = -1
        self._pool = ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="fetch")

    def close(self) -> None:
        """Fetch nothing any more, and wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)

    def reached(self, epoch: int, moment: int) -> bool:
        """Whether the shards that may be drawn from then are at hand; waits ``WAIT_S`` for one of them at most.

        Moments are reached in their order, a later epoch's after an earlier one's. What only earlier ones needed goes.

        Raises:
            SafelightError: ``fetch`` did.
        """
        needed = open_at(moment, self._count, self._half)
        turn = epoch * self._count
        if self._opened < 0:
            self._closed = self._ready = self._opened = turn + needed.start
        self._close(turn + needed.start)
        self._open(turn + moment + self._half + 1 + AHEAD)
        while self._ready < turn + needed.stop:
            shard = self._shard(self._ready)
            if shard in self._under_way:
                if not wait([self._under_way[shard]], WAIT_S).done:
                    return False
                self._under_way.pop(shard).result()
            self._ready += 1
        return True

    def read(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy of images, given by shard and row (n,): uint8 (n, height, width, channels)."""
        numbers, which = np.unique(shards, return_inverse=True)
        slots = np.array([self._slots[shard] for shard in numbers.tolist()], np.int64)
        copied: NDArray[np.uint8] = self._pixels[slots[which] * self._slot + rows]
        return copied

    def _shard(self, turn: int) -> int:
        """The shard whose turn it is; turns are counted over all epochs."""
        epoch, place = divmod(turn, self._count)
        return self._shards_of(epoch)[place]

    def _close(self, turn: int) -> None:
        """Let go of what is needed before ``turn`` alone."""
        for closed in range(self._closed, turn):
            shard = self._shard(closed)
            self._uses[shard] -= 1
            if not self._uses[shard]:
                self._again[shard] = self._next_turn(shard)
                insort(self._idle, (self._again[shard], shard))
        self._closed = max(self._closed, turn)

    def _open(self, turn: int) -> None:
        """Fetch what is needed before ``turn``, in so far as it is not at hand."""
        while self._opened < turn and self._shards_of(self._opened // self._count):
            shard = self._shard(self._opened)
            if shard not in self._slots:
                self._slots[shard] = self._room()
                self._under_way[shard] = self._pool.submit(self._bring, shard, self._slots[shard])
                self.fetched += 1
            elif not self._uses[shard]:
                self._idle.remove((self._again.pop(shard), shard))
            self._uses[shard] += 1
            self._opened += 1

    def _room(self) -> int:
        """A slot: a free one, or that of the shard that is needed last."""
        if self._free:
            return self._free.pop()
        _, shard = self._idle.pop()
        del self._again[shard]
        return self._slots.pop(shard)

    def _next_turn(self, shard: int) -> int:
        """When a shard is needed again that no turn before ``_opened`` needs any more."""
        epoch = self._opened // self._count
        turns = (each * self._count + self._places_of(each).get(shard, NEVER) for each in (epoch, epoch + 1))
        return next((turn for turn in turns if self._opened <= turn < NEVER), NEVER)

    def _places(self, epoch: int) -> dict[int, int]:
        return {shard: place for place, shard in enumerate(self._shards_of(epoch))}

    def _bring(self, shard: int, slot: int) -> None:
        self._file.write_run(slot * self._slot, self._fetch(shard))
