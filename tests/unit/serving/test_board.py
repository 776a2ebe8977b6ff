import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import utc_now
from serving.agreement import Agreement, Prepared, Report
from serving.board import Board, new_board_file
from serving.schemas import SwapError


@pytest.fixture
def file() -> int:
    """Memory for two processes."""
    return new_board_file(2)


def test_all_boards_on_one_memory_show_the_same(file: int) -> None:
    """What one process writes, another one reads: generation, agreement, report, counts and signs of life."""
    one, other = Board(file), Board(file)
    agreement = Agreement(
        live=Prepared(generation=3, version="v", file=1),
        proposed=Prepared(generation=4),
        since=utc_now(),
        error=SwapError(version="v", reason="été", at=utc_now()),
        swaps=3,
    )
    report = Report(pid=7, held={0: None, 3: "v"}, refused={4: "no"}, draining=True)
    one.agree(agreement)
    one.say(1, report)
    one.flip(3)
    one.counts(1)[5] = 25
    one.beat(1)
    assert (other.seats, other.generation, other.agreement(), other.report(1)) == (2, 3, agreement, report)
    assert list(other.counts(1))[4:7] == [0, 25, 0]
    assert other.silent_s(1) is not None
    assert (other.report(0), other.silent_s(0), sum(other.counts(0))) == (Report(), None, 0)


def test_another_process_sees_it_too(file: int) -> None:
    """The descriptor is all that it inherits."""
    board = Board(file)
    board.agree(Agreement(swaps=5))
    code = (
        "import sys; from serving.board import Board; "
        "b = Board(int(sys.argv[1])); print(b.agreement().swaps); b.flip(9); b.beat(0)"
    )
    os.set_inheritable(file, True)
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], pass_fds=[file], capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), board.generation) == ("5", 9)
    assert 0 <= (board.silent_s(0) or -1) < 60


def test_nothing_written_is_the_beginning(file: int) -> None:
    """Before anybody said anything, nothing is live."""
    board = Board(file)
    assert (board.generation, board.agreement(), board.deaths) == (0, Agreement(), 0)


def test_a_seat_that_is_vacated_keeps_its_counts(file: int) -> None:
    """Who takes the place of a dead process counts on from where it stopped; the death is remembered."""
    board = Board(file)
    board.say(0, Report(pid=1))
    board.beat(0)
    board.counts(0)[0] = 12
    board.vacate(0)
    assert (board.report(0), board.silent_s(0), board.counts(0)[0], board.deaths) == (Report(), None, 12, 1)


def test_a_reader_never_sees_half_a_record(file: int) -> None:
    """Read while another thread writes records of changing length, each one is one that was written."""
    board, stop = Board(file), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            board.say(0, Report(pid=number, refused={number: "x" * (number % 900)}))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2000):
            seen = board.report(0)
            assert seen == Report() or seen.refused == {seen.pid: "x" * (seen.pid % 900)}
    finally:
        stop.set()
        writer.join()


@given(st.text(max_size=1000))
def test_any_reason_fits(reason: str) -> None:
    """A thousand characters of whatever script, thrice."""
    board = Board(new_board_file(1))
    report = Report(pid=1, refused={1: reason, 2: reason})
    board.say(0, report)
    assert board.report(0) == report


def test_what_does_not_fit_is_refused(file: int) -> None:
    """Rather than to write over the neighbour."""
    with pytest.raises(ValueError, match="do not fit"):
        Board(file).say(0, Report(refused={1: "x" * 20_000}))
