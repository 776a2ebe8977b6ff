"""Items handed to whoever works on them elsewhere: a few at a time, their results in any order, none of them lost.

The same for processes of this machine and for a Dask cluster, with and without Prefect: each of them is a ``Runner``.

- **Only as many items are under way as the workers can use**, and the next one is made when there is room for it: so
  memory does not grow with the number of items.
- **A runner that was lost is opened anew** (a pool broke, a scheduler started again), and what was under way is given
  away once more. So an item may be done twice, and doing it again must be harmless.
- **Nothing is waited for in silence**: while no result comes, the runner is looked at, and says what is the matter.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from pipeline.errors import WorkersUnavailable

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
MOST_LOSSES = 3
"""How often in a row, without a result between, a runner is lost before that is final."""

FOR_MANY = 64
"""Items for several workers: enough that they end at about the same time, however many there are."""

Item = TypeVar("Item")
R = TypeVar("R")
Promise: TypeAlias = Any
"""A future of whichever library; it has ``add_done_callback``, whose argument is itself."""


class Lost(Exception):
    """The runner is gone with what it was given; str() begins a sentence for a person."""


class Whole(Generic[Item]):
    """An item that travels as it is: Prefect and Dask look into tuples and records, and 10,000 keys take a while."""

    def __init__(self, item: Item) -> None:
        self.item = item


@dataclass(frozen=True, slots=True)
class Runner(Generic[Item, R]):
    """Who works on items. Each function raises ``Lost`` where the runner is gone.

    Attributes:
        submit: begins an item, or has it begun as soon as a worker is free.
        result: what came of it, once it is done; raises what the work raised.
        room: how many items may be under way now, one at least.
        look: called while no result comes; says what is the matter, and raises where waiting on would be in vain.
    """

    submit: Callable[[Item], Promise]
    result: Callable[[Promise], R]
    room: Callable[[], int]
    look: Callable[[], None]


Opening: TypeAlias = Callable[[], AbstractContextManager[Runner[Item, R]]]
"""Begins a runner; at the end of the block nothing that it was given is under way on this machine."""


def least_items(task_runner: str) -> int:
    """Into how many items work should be cut, by the setting, if it is enough work."""
    return 1 if task_runner == "threads" else FOR_MANY


def always_wanted() -> None:
    """Nobody stops the work."""


def spread(
    opening: Opening[Item, R], items: Iterable[Item], *, still_wanted: Callable[[], None] = always_wanted
) -> Iterator[tuple[Item, R]]:
    """Each item with its result, in any order.

    Args:
        opening: who works on them.
        items: taken one by one, as there is room for them.
        still_wanted: called about once a second and after each result; what it raises stops everything.

    Raises:
        WorkersUnavailable: the runner was lost again and again, or waiting for it is in vain.
    """
    todo = _Todo(items)
    while True:
        try:
            with opening() as runner:
                yield from _results(runner, todo, still_wanted)
        except Lost as error:
            todo.put_back(error)
        else:
            return


class _Todo(Generic[Item]):
    """What is still to be given away, what was lost at first; and what is under way, by its promise."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._next: deque[Item] = deque()
        self._losses = 0
        self.under_way: dict[Promise, Item] = {}

    def give(self, submit: Callable[[Item], Promise], done: Callable[[Promise], object]) -> bool:
        """Give the next item away; False where there is none."""
        if not self._next:
            self._next.extend(islice(self._items, 1))
        if not self._next:
            return False
        promise = submit(self._next[0])
        self.under_way[promise] = self._next.popleft()
        promise.add_done_callback(done)
        return True

    def finished(self, promise: Promise) -> Item:
        """The item whose result is here."""
        self._losses = 0
        return self.under_way.pop(promise)

    def put_back(self, error: Lost) -> None:
        """Nothing is under way any more."""
        self._losses += 1
        if self._losses == MOST_LOSSES:
            raise WorkersUnavailable(
                f"{error}, {MOST_LOSSES} times in a row: see to it, and run this again."
            ) from error
        log.warning("%s; what was under way, %d chunks, is given away once more.", error, len(self.under_way))
        self._next.extend(self.under_way.values())
        self.under_way.clear()


def _results(runner: Runner[Item, R], todo: _Todo[Item], still_wanted: Callable[[], None]) -> Iterator[tuple[Item, R]]:
    """Results until nothing is left, from one runner."""
    done: SimpleQueue[Promise] = SimpleQueue()
    more = True
    while True:
        while more and len(todo.under_way) < runner.room():
            more = todo.give(runner.submit, done.put)
        if not todo.under_way:
            return
        still_wanted()
        try:
            promise = done.get(timeout=LOOK_EVERY_S)
        except Empty:
            runner.look()
            continue
        result = runner.result(promise)
        yield todo.finished(promise), result
