"""Shards at hand while images are drawn from a window that slides over them."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import shard_window
from pipeline.errors import Corrupted
from pipeline.pixel_file import PixelFile
from pipeline.shard_window import Fetch, Sequences, ShardWindow, slots_for
from pipeline.windowed_order import open_at

SHAPE = (2, 3, 1)
ROWS = 4


def made(shard: int) -> NDArray[np.uint8]:
    """The images of a shard: as many as its number says, up to ``ROWS``, with that number as their brightness."""
    return np.full((1 + shard % ROWS, *SHAPE), shard % 256, np.uint8)


def orders(shards: int, epochs: int) -> Sequences:
    """Each epoch's order of so many shards."""

    def shards_of(epoch: int) -> list[int]:
        return np.random.default_rng(epoch).permutation(shards).tolist() if epoch < epochs else []

    return shards_of


class Opened:
    """A window with its file, closed with the context; ``asked`` are the shards that it fetched."""

    def __init__(
        self, folder: Path, shards: int, half: int, slots: int, *, shards_of: Sequences, fetch: Fetch = made
    ) -> None:
        self.asked: list[int] = []
        self.half, self.shards = half, shards
        self.shards_of = shards_of
        self._fetch = fetch
        self._stack = ExitStack()
        file = self._stack.enter_context(PixelFile(folder, (slots * ROWS, *SHAPE)))
        self.window = ShardWindow(
            file, slots=slots, slot=ROWS, half=half, count=shards, fetch=self._asked, shards_of=self.shards_of
        )
        self._stack.callback(self.window.close)

    def _asked(self, shard: int) -> NDArray[np.uint8]:
        self.asked.append(shard)
        return self._fetch(shard)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def reach(self, epoch: int, moment: int) -> None:
        """Wait until the shards of a moment are at hand, and see that their images are those that were made."""
        while not self.window.reached(epoch, moment):
            pass
        for place in open_at(moment, self.shards, self.half):
            shard = self.shards_of(epoch)[place]
            rows = np.arange(1 + shard % ROWS)
            assert np.array_equal(self.window.read(np.full(len(rows), shard), rows), made(shard))


@settings(max_examples=25)
@given(
    shards=st.integers(1, 30), half=st.integers(1, 6), more=st.integers(0, 12), begin=st.integers(0, 29), data=st.data()
)
def test_whatever_is_needed_is_at_hand(
    tmp_path_factory: pytest.TempPathFactory, *, shards: int, half: int, more: int, begin: int, data: st.DataObject
) -> None:
    """From any moment on, with any room for the window or more, each shard of each moment is at hand, unaltered."""
    slots = min(shards, slots_for(half) + more)
    first = data.draw(st.integers(0, 1))
    with Opened(tmp_path_factory.mktemp("room"), shards, half, slots, shards_of=orders(shards, 3)) as opened:
        for turn in range(first * shards + min(begin, shards - 1), 3 * shards):
            opened.reach(*divmod(turn, shards))
        assert opened.window.fetched == len(opened.asked)


def test_with_room_for_all_each_shard_is_fetched_once(tmp_path: Path) -> None:
    """What is at hand is not asked for again, nor is anything after the last epoch."""
    with Opened(tmp_path, 30, 2, 30, shards_of=orders(30, 4)) as opened:
        for turn in range(4 * 30):
            opened.reach(*divmod(turn, 30))
        assert sorted(opened.asked) == list(range(30))


def test_room_beyond_the_window_spares_fetches(tmp_path: Path) -> None:
    """With room for 28 of 80 shards beside the window, clearly more than 28 are at hand when they are needed again."""
    with Opened(tmp_path, 80, 2, 40, shards_of=orders(80, 5)) as opened:
        for turn in range(5 * 80):
            opened.reach(*divmod(turn, 80))
        again = len(opened.asked) - 80
        assert len(set(opened.asked)) == 80
        assert again < 0.58 * 4 * 80


def test_a_fixed_order_is_read_again_and_again(tmp_path: Path) -> None:
    """The same order in each epoch, as for judging, with room for no more than the window."""
    with Opened(tmp_path, 20, 1, slots_for(1), shards_of=lambda _: list(range(20))) as opened:
        for turn in range(40):
            opened.reach(*divmod(turn, 20))


def test_what_is_wrong_is_raised_where_it_is_needed(tmp_path: Path) -> None:
    """An error of a fetch comes when its shard is needed, and not before."""

    def fetch(shard: int) -> NDArray[np.uint8]:
        if shard == broken:
            raise Corrupted("this one was altered")
        return made(shard)

    broken = orders(20, 1)(0)[6]
    with Opened(tmp_path, 20, 2, slots_for(2), shards_of=orders(20, 1), fetch=fetch) as opened:
        for moment in range(4):
            opened.reach(0, moment)
        with pytest.raises(Corrupted, match="this one"):
            opened.reach(0, 4)


def test_who_waits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is slow, ``reached`` comes back again and again; closing waits for what is under way."""
    monkeypatch.setattr(shard_window, "WAIT_S", 0.01)
    go = threading.Event()

    def fetch(shard: int) -> NDArray[np.uint8]:
        go.wait()
        return made(shard)

    with Opened(tmp_path, 20, 2, slots_for(2), shards_of=orders(20, 1), fetch=fetch) as opened:
        assert not any(opened.window.reached(0, 0) for _ in range(3))
        assert len(opened.asked) <= shard_window.FETCHED_AT_ONCE
        threading.Timer(0.05, go.set).start()
    assert go.is_set()
    assert len(opened.asked) <= shard_window.FETCHED_AT_ONCE


def test_no_more_is_fetched_than_there_is_room_for(tmp_path: Path) -> None:
    """However long the reader takes, what was fetched and not let go of fits into the slots."""
    with Opened(tmp_path, 100, 3, slots_for(3), shards_of=orders(100, 1)) as opened:
        for moment in range(100):
            opened.reach(0, moment)
            time.sleep(0.001)
            assert len(opened.asked) <= moment + 3 + 1 + shard_window.AHEAD
