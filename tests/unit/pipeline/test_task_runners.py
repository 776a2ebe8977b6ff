"""Items handed to others: how many at once, and what happens to them where others are lost."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import task_runners
from pipeline.errors import WorkersUnavailable
from pipeline.task_runners import Lost, Runner, spread


@dataclass
class Crew:
    """Squares numbers, the newest first; is lost at some of its submissions and results."""

    room: int
    lost_at: frozenset[int] = frozenset()
    most: int = 0
    opened: int = 0
    closed: int = 0
    _moments: Iterator[int] = field(default_factory=count)
    _begun: list[tuple[int, "Future[int]"]] = field(default_factory=list)

    @contextmanager
    def opening(self) -> Iterator[Runner[int, int]]:
        """Begin with nothing under way."""
        self.opened += 1
        self._begun.clear()
        try:
            yield Runner(submit=self.submit, result=self.result, room=lambda: self.room, look=lambda: None)
        finally:
            self.closed += 1

    def submit(self, item: int) -> "Future[int]":
        """Begin; with the room full, finish the newest."""
        self._perhaps_lost()
        self._begun.append((item, Future()))
        self.most = max(self.most, len(self._begun))
        return self._begun[-1][1]

    def finish(self) -> None:
        """Finish what was begun last."""
        item, promise = self._begun.pop()
        promise.set_result(item * item)

    def result(self, promise: "Future[int]") -> int:
        """What came of it."""
        self._perhaps_lost()
        return promise.result()

    def _perhaps_lost(self) -> None:
        if next(self._moments) in self.lost_at:
            raise Lost("The crew is gone")


def finishing(crew: Crew) -> Callable[[], None]:
    """Lets the crew finish an item whenever it is looked whether the work is still wanted."""
    return crew.finish


@given(items=st.lists(st.integers(), max_size=30), room=st.integers(1, 5), lost_at=st.frozensets(st.integers(0, 60)))
def test_nothing_is_lost_and_nothing_told_twice(items: list[int], room: int, lost_at: frozenset[int]) -> None:
    """Whatever was under way when a crew was lost, each item has one result, or it is said that the crew is gone."""
    crew = Crew(room, lost_at)
    with suppress(WorkersUnavailable):
        found = list(spread(crew.opening, items, still_wanted=finishing(crew)))
        assert sorted(found) == sorted((item, item * item) for item in items)
    assert crew.most <= room
    assert crew.opened == crew.closed


def test_items_are_made_when_there_is_room() -> None:
    """However many there are, no more exist than may be under way."""
    made = 0

    def numbers() -> Iterator[int]:
        nonlocal made
        for number in range(1000):
            made += 1
            yield number

    crew = Crew(room=3)
    for told, _ in enumerate(spread(crew.opening, numbers(), still_wanted=finishing(crew)), 1):
        assert made <= told + 3
    assert made == 1000


def test_a_result_makes_earlier_losses_forgotten() -> None:
    """A crew that is lost now and then, but works, is opened as often as it takes."""
    crew = Crew(room=1, lost_at=frozenset(range(0, 60, 4)))
    assert len(list(spread(crew.opening, range(20), still_wanted=finishing(crew)))) == 20
    assert crew.opened > task_runners.MOST_LOSSES


def test_what_the_work_raises_is_raised_and_ends_it() -> None:
    """An error of the work is nobody's loss: it comes out, and the crew is sent home."""
    crew = Crew(room=2)

    def refuse(_: "Future[int]") -> int:
        raise ValueError("cannot be squared")

    @contextmanager
    def opening() -> Iterator[Runner[int, int]]:
        with crew.opening() as runner:
            yield Runner(submit=runner.submit, result=refuse, room=runner.room, look=runner.look)

    with pytest.raises(ValueError, match="cannot be squared"):
        list(spread(opening, range(5), still_wanted=finishing(crew)))
    assert crew.closed == 1


def test_what_is_wanted_no_more_stops() -> None:
    """It stops between results, and the crew is sent home."""
    crew = Crew(room=1)
    done = 0

    def enough() -> None:
        if done == 3:
            raise KeyboardInterrupt
        crew.finish()

    def work() -> None:
        nonlocal done
        for _ in spread(crew.opening, count(), still_wanted=enough):
            done += 1

    with pytest.raises(KeyboardInterrupt):
        work()
    assert (done, crew.closed) == (3, 1)


def test_who_says_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """While no result comes the runner is looked at, and what it raises comes out."""
    monkeypatch.setattr(task_runners, "LOOK_EVERY_S", 0.01)
    looks = count(1)

    def look() -> None:
        if next(looks) == 3:
            raise WorkersUnavailable("nobody came")

    @contextmanager
    def opening() -> Iterator[Runner[int, int]]:
        yield Runner(submit=lambda _: Future(), result=lambda promise: promise.result(), room=lambda: 2, look=look)

    with pytest.raises(WorkersUnavailable, match="nobody came"):
        list(spread(opening, range(5)))
    assert next(looks) == 4
