import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving import counts
from serving.board import Board, new_board_file
from serving.counts import CLASSES, OTHER, Counts, Role, Totals, waiting


@dataclass(frozen=True)
class Given:
    """An answer, as far as it is counted."""

    live: Any
    role: Role
    probabilities: NDArray[np.float32]
    best: list[list[int]]


def answers(classes: tuple[str, ...], *named: int, role: Role = "champion", confidence: float = 0.75) -> Given:
    """An answer that names these classes with this confidence, for one image each."""
    probabilities = np.zeros((len(named), len(classes)), np.float32)
    probabilities[range(len(named)), named] = confidence
    return Given(
        SimpleNamespace(manifest=SimpleNamespace(classes=classes)), role, probabilities, [[each] for each in named]
    )


@pytest.fixture
def board() -> Board:
    """Of two processes."""
    return Board(new_board_file(2))


def totals(board: Board) -> Totals:
    """What all processes counted."""
    return Totals([board.counts(seat) for seat in range(board.seats)])


def test_every_series_has_numbers_of_its_own(board: Board) -> None:
    """Whatever is counted once stands in its own place, and nothing else moves."""
    own = Counts(board.counts(0))
    places = [counts.REJECTIONS, counts.FAILURES, counts.COMPARED]
    for reason in counts.REASONS:
        own.refused(reason)
    for role in counts.ROLES:
        own.failed(role)
    own.compared(agreed=True)
    own.compared(agreed=False)
    own.log_dropped(1)
    own.batch(1)
    for route in counts.ROUTES:
        for status in (200, 418):
            own.answered(route, status, 0.0)
    for stage in counts.STAGES:
        own.stage(stage, 0.0)
    found = totals(board)
    assert all(found.count(at) == 1 for groups in places for at in groups.values())
    assert found.count(counts.LOG_DROPPED) == 1
    assert found.histogram(counts.BATCHES, counts.SIZES).counts == (1, *[0] * len(counts.SIZES))
    for start in counts.REQUESTS.values():
        counted = {status: count for status, count in found.counts(start, counts.STATUSES).items() if count}
        assert counted == {"200": 1, OTHER: 1}
    for start in counts.STAGE_SECONDS.values():
        assert found.histogram(start, counts.SECONDS).counts == (1, *[0] * len(counts.SECONDS))
    assert found.classes("champion") == {}


def test_a_client_s_mistake_is_a_rejection_wherever_it_was_found(board: Board) -> None:
    """By the status of its answer, on the routes that take images; other answers are none."""
    own = Counts(board.counts(0))
    for status in (200, 400, 413, 415, 422, 500, 503):
        own.answered("predict", status, 0.1)
        own.answered("infer", status, 0.1)
        own.answered("other", status, 0.1)
    found = totals(board)
    counted = {reason: found.count(at) for reason, at in counts.REJECTIONS.items() if found.count(at)}
    assert counted == {"invalid": 6, "too_large": 2}


@given(st.lists(st.tuples(st.sampled_from(counts.STAGES), st.floats(0, 100)), max_size=50))
def test_a_histogram_holds_each_observation_once(observed: list[tuple[counts.Stage, float]]) -> None:
    """In the bucket of the smallest bound that is not below it, and in the sum; spread over two processes."""
    board = Board(new_board_file(2))
    both = [Counts(board.counts(seat)) for seat in range(2)]
    for number, (stage, seconds) in enumerate(observed):
        both[number % 2].stage(stage, seconds)
    for stage, start in counts.STAGE_SECONDS.items():
        own = [seconds for each, seconds in observed if each == stage]
        found = totals(board).histogram(start, counts.SECONDS)
        for at, bound in enumerate(found.bounds):
            assert sum(found.counts[: at + 1]) == len([seconds for seconds in own if seconds <= bound])
        assert sum(found.counts) == len(own)
        assert found.sum == pytest.approx(sum(own))


def test_a_class_is_counted_under_its_label_whatever_its_index(board: Board) -> None:
    """Versions with other class lists, at the same time and in two processes that met them in another order."""
    first, second = Counts(board.counts(0)), Counts(board.counts(1))
    first.predicted(answers(("cat", "dog"), 0, 1, 1), 0.1)
    first.predicted(answers(("ant", "cat", "dog"), 0, 1, 2), 0.1)
    second.predicted(answers(("ant", "cat", "dog"), 2, role="challenger"), 0.1)
    second.predicted(answers(("dog", "eel"), 0, 1), 0.1)
    found = totals(board)
    assert found.classes("champion") == {"cat": 2, "dog": 4, "ant": 1, "eel": 1}
    assert found.classes("challenger") == {"dog": 1}


def test_predictions_are_counted_by_role(board: Board) -> None:
    """One duration for a request, one confidence for each of its images."""
    own = Counts(board.counts(1))
    own.predicted(answers(("a", "b"), 0, 1, 1, role="challenger", confidence=0.95), 0.02)
    found = totals(board)
    seconds = found.histogram(counts.PREDICTION_SECONDS["challenger"], counts.SECONDS)
    confidence = found.histogram(counts.CONFIDENCE["challenger"], counts.CONFIDENCES)
    assert (sum(seconds.counts), seconds.sum) == (1, 0.02)
    assert confidence.counts[counts.CONFIDENCES.index(0.95)] == 3
    assert confidence.sum == pytest.approx(3 * 0.95)
    assert sum(found.histogram(counts.CONFIDENCE["champion"], counts.CONFIDENCES).counts) == 0


def test_what_does_not_fit_is_counted_as_other(board: Board) -> None:
    """Labels beyond the bound, too long ones and empty ones; those that have a place keep it, also later."""
    own = Counts(board.counts(0))
    many = tuple(f"class {number}" for number in range(CLASSES - 2))
    own.predicted(answers(many, 0, CLASSES - 3), 0.1)
    own.predicted(answers(("é" * 100, "", "new", "newer", "newest", "class 0"), 0, 1, 2, 3, 4, 5), 0.1)
    found = totals(board).classes("champion")
    assert found == {"class 0": 2, f"class {CLASSES - 3}": 1, "new": 1, "newer": 1, OTHER: 3}


def test_who_takes_the_seat_of_a_dead_process_counts_on(board: Board) -> None:
    """Numbers and labels go on; the gauge begins at nothing."""
    dead = Counts(board.counts(0))
    dead.predicted(answers(("cat", "dog"), 1), 0.1)
    dead.answered("predict", 200, 0.1)
    dead.waiting(7)
    assert waiting(board.counts(0)) == 7
    board.vacate(0)
    heir = Counts(board.counts(0))
    heir.predicted(answers(("ant", "dog"), 0, 1), 0.1)
    heir.answered("predict", 200, 0.1)
    found = totals(board)
    assert found.classes("champion") == {"dog": 2, "ant": 1}
    assert found.counts(counts.REQUESTS["predict"], counts.STATUSES)["200"] == 2
    assert waiting(board.counts(0)) == 0


def test_a_label_that_was_not_written_to_its_end_is_none(board: Board) -> None:
    """The place that a killed process was writing to is the next label's."""
    Counts(board.counts(0)).predicted(answers(("cat",), 0), 0.1)
    area = board.counts(0)
    start = counts.NUMBERS * 8 + counts.LABEL_BYTES
    area[start : start + 3] = b"dog"
    heir = Counts(area)
    heir.predicted(answers(("eel", "cat"), 0, 1), 0.1)
    assert totals(board).classes("champion") == {"cat": 2, "eel": 1}


def test_threads_count_at_once_and_lose_nothing(board: Board) -> None:
    """The event loop and the threads that decode and predict share one area."""
    own = Counts(board.counts(0))

    def count() -> None:
        for _ in range(5000):
            own.stage("decode", 0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = totals(board).histogram(counts.STAGE_SECONDS["decode"], counts.SECONDS)
    assert (sum(found.counts), found.sum) == (20_000, 10_000)
