"""Many small pieces of work at once, with work that is a function."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ahead import RUN_BYTES, RUN_ITEMS, RUNS_PER_THREAD, ahead
from pipeline.errors import StoreUnavailable

LIMIT = 1 << 20
SIZES = st.integers(0, 100) | st.integers(0, RUN_BYTES) | st.integers(0, 2 * LIMIT)


def no_size(_: object) -> int:
    """Of items that weigh nothing."""
    return 0


def failing_at(number: int) -> Callable[[int], int]:
    """Work that one item prevents."""

    def work(item: int) -> int:
        if item == number:
            raise StoreUnavailable(f"item {number}")
        return item

    return work


@given(st.lists(SIZES, max_size=200), st.integers(1, 8))
def test_results_come_in_order(sizes: list[int], threads: int) -> None:
    """Every item comes once, in order, with its own result."""
    made = ahead(enumerate(sizes), lambda item: ("made of", item), lambda item: item[1], threads=threads, limit=LIMIT)
    assert list(made) == [(item, ("made of", item)) for item in enumerate(sizes)]


@given(st.lists(SIZES, max_size=200), st.integers(1, 8))
def test_bytes_are_bounded(sizes: list[int], threads: int) -> None:
    """Items begun and not yet taken stay within the limit, unless one item alone exceeds it."""
    lock = threading.Lock()
    held = most = 0

    def work(size: int) -> None:
        nonlocal held, most
        with lock:
            held += size
            most = max(most, held)

    for size, _ in ahead(sizes, work, lambda size: size, threads=threads, limit=LIMIT):
        with lock:
            held -= size
    assert most <= max([LIMIT, *sizes])


@pytest.mark.parametrize("number", [0, 1, 500, 999])
def test_an_error_comes_in_its_place(number: int) -> None:
    """All results before the failing item are given, then its error."""
    made = ahead(range(1000), failing_at(number), no_size, threads=4, limit=LIMIT)
    assert [item for item, _ in islice(made, number)] == list(range(number))
    with pytest.raises(StoreUnavailable, match=f"item {number}"):
        next(made)


def test_few_items_keep_every_thread_busy() -> None:
    """As many items as threads are worked on at once: nobody waits behind another."""
    together = threading.Barrier(8)
    work = ahead(range(8), lambda _: together.wait(10), no_size, threads=8, limit=LIMIT)
    assert sorted(place for _, place in work) == list(range(8))


def test_large_items_are_not_queued_behind_each_other() -> None:
    """However many came before, as many large items as threads are worked on at once."""
    together = threading.Barrier(4)

    def work(size: int) -> None:
        if size:
            together.wait(10)

    sizes = [0] * 1000 + [RUN_BYTES] * 4
    assert len(list(ahead(sizes, work, lambda size: size, threads=4, limit=1 << 30))) == len(sizes)


def test_leaving_early_begins_nothing_more() -> None:
    """A caller that has enough waits for the items under way, not for their whole runs, and leaves no thread behind."""
    before = threading.active_count()
    left = threading.Event()
    late: list[int] = []

    def work(item: int) -> None:
        if left.is_set():
            late.append(item)
        time.sleep(0.0 if item < 500 else 0.1)  # by then, runs are long

    made = ahead(iter(range(1_000_000)), work, no_size, threads=4, limit=LIMIT)
    for item, _ in made:
        if item == 500:
            break
    left.set()
    made.close()
    assert len(late) <= RUN_ITEMS
    assert threading.active_count() == before


def test_items_are_taken_as_they_are_needed() -> None:
    """An endless source is asked for no more than the window holds."""
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    made = ahead(endless(), lambda item: item, no_size, threads=2, limit=LIMIT)
    for _ in range(500):
        next(made)
    made.close()
    assert drawn <= 500 + (RUNS_PER_THREAD * 2 + 2) * RUN_ITEMS


def test_an_error_of_the_source_is_passed_on() -> None:
    """What goes wrong while items are listed ends the work with that error."""

    def breaking() -> Iterator[int]:
        yield 1
        raise StoreUnavailable("listing")

    with pytest.raises(StoreUnavailable, match="listing"):
        list(ahead(breaking(), lambda item: item, no_size, threads=2, limit=LIMIT))


def test_nothing_is_nothing() -> None:
    """Without items nothing is worked on."""
    assert list(ahead([], failing_at(0), no_size, threads=2, limit=LIMIT)) == []
