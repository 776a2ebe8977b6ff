import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import synthetic
from answered import DATASET, MODEL, VERSION, answers
from live_server import wait_until

from pipeline.errors import AccessDenied, StoreUnavailable
from pipeline.store import Store
from serving import prediction_log, prediction_outbox
from serving.prediction_log import FILE_ROWS, WAITING_ROWS, PredictionLog
from serving.uploads import Upload

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


class Refusing(Store):
    """A zone in memory; where ``error`` is set it takes nothing."""

    def __init__(self, error: Exception | None = None) -> None:
        self._kept = synthetic.memory_store()
        super().__init__(self._kept._backend, "memory://predictions")  # noqa: SLF001 - the same memory
        self.error = error
        self.tries = 0

    def put(self, key: str, data: bytes) -> None:
        """Take an object, or not."""
        self.tries += 1
        if self.error:
            raise self.error
        super().put(key, data)


class Clock:
    """Stands still where it is put."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now


@contextmanager
def logging_to(store: Store, lost: list[int], **options: Any) -> Iterator[PredictionLog]:
    """A log that runs, and is stopped at the end."""
    log = PredictionLog(store, MODEL, options.pop("flush_s", 3600), lost.append, **options)
    log.start()
    try:
        yield log
    finally:
        log.stop()


def rows(store: Store) -> list[dict[str, Any]]:
    """All rows, by key."""
    keys = sorted(each.key for each in store.listing())
    return [row for key in keys for row in pq.read_table(io.BytesIO(store.get(key))).to_pylist()]


def image(number: int) -> bytes:
    """Bytes like no others."""
    return b"image %d" % number


def test_every_image_of_every_call_is_a_row() -> None:
    """What was answered comes back: each image's digest as sha256sum prints it, its best class, and the versions."""
    store, lost = Refusing(), list[int]()
    given = answers([image(1), image(2)], seed=7)
    with logging_to(store, lost, clock=Clock()) as log:
        log.note(given, "first")
        log.note(answers([image(3)], role="challenger"), "second")
    found = rows(store)
    assert [row["image_sha256"] for row in found] == [hashlib.sha256(image(number)).hexdigest() for number in (1, 2, 3)]
    assert [row["request_id"] for row in found] == ["first", "first", "second"]
    assert [row["role"] for row in found] == ["champion", "champion", "challenger"]
    for row, probabilities in zip(found, given.probabilities, strict=False):
        assert row["label"] == given.live.manifest.classes[int(probabilities.argmax())]
        assert row["probability"] == float(probabilities.max())
    assert {(row["model"], row["model_version"], row["dataset_version"]) for row in found} == {
        (MODEL, VERSION, DATASET)
    }
    assert {row["time"] for row in found} == {datetime.fromtimestamp(NOON, UTC)}
    assert "image" not in found[0]
    assert lost == []


def test_images_are_logged_where_that_is_on_alone() -> None:
    """The bytes as they were sent, in a column of their own; where it is off, nothing of them."""
    for images in (True, False):
        store = Refusing()
        with logging_to(store, [], images=images) as log:
            log.note(answers([image(1), image(2)]), "call", [Upload("", image(1)), Upload("", image(2))])
        assert [row.get("image") for row in rows(store)] == ([image(1), image(2)] if images else [None, None])


def test_a_flush_that_spans_midnight_is_two_files() -> None:
    """The date in a key is the UTC day of all rows below it."""
    clock, store = Clock(datetime(2026, 3, 1, 23, 59, 59, 900_000, tzinfo=UTC).timestamp()), Refusing()
    with logging_to(store, [], clock=clock) as log:
        log.note(answers([image(1)]), "before")
        clock.now += 0.2
        log.note(answers([image(2)]), "after")
    keys = sorted(each.key for each in store.listing())
    assert [key.split("/")[:2] for key in keys] == [[MODEL, "date=2026-03-01"], [MODEL, "date=2026-03-02"]]
    assert [row["request_id"] for row in rows(store)] == ["before", "after"]


def test_a_row_waits_no_longer_than_it_may() -> None:
    """A second after it was answered it is stored, with nothing else going on."""
    store = Refusing()
    with logging_to(store, [], flush_s=1) as log:
        log.note(answers([image(1)]), "alone")
        wait_until(lambda: bool(rows(store)), 10)


def test_a_file_has_fifty_thousand_rows_at_most() -> None:
    """More rows than that are several files, and none is missing."""
    store, lost = Refusing(), list[int]()
    calls = 3 * FILE_ROWS // 1000 + 1
    some = answers([image(number) for number in range(1000)])
    with logging_to(store, lost) as log:
        for number in range(calls):
            wait_until(lambda: log._rows < WAITING_ROWS - 1000, 30)  # noqa: SLF001 - so that nothing is dropped
            log.note(some, f"{number}")
    counts = [pq.read_metadata(io.BytesIO(store.get(each.key))).num_rows for each in store.listing()]
    assert sum(counts) == calls * 1000
    assert max(counts) <= FILE_ROWS
    assert lost == []


def test_beyond_the_bound_the_oldest_rows_go_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is either stored or counted as lost, the lost ones are the oldest."""
    monkeypatch.setattr(prediction_log, "WAITING_ROWS", 5)
    monkeypatch.setattr(prediction_log, "BLOCK_ROWS", 5)
    store, lost = Refusing(), list[int]()
    log = PredictionLog(store, MODEL, 3600, lost.append)
    for number in range(20):
        log.note(answers([image(number)]), f"{number}")
    log.start()
    log.stop()
    assert [row["request_id"] for row in rows(store)] == ["15", "16", "17", "18", "19"]
    assert sum(lost) == 15


def test_images_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few large images reach the bound that a thousand small ones do not."""
    monkeypatch.setattr(prediction_log, "WAITING_BYTES", 100_000)
    monkeypatch.setattr(prediction_log, "FILE_BYTES", 20_000)
    store, lost = Refusing(), list[int]()
    log = PredictionLog(store, MODEL, 3600, lost.append, images=True)
    for number in range(10):
        log.note(answers([image(number)]), f"{number}", [Upload("", bytes(30_000))])
    log.start()
    log.stop()
    assert sorted(row["request_id"] for row in rows(store)) == ["7", "8", "9"]
    assert sum(lost) == 7


def test_notes_of_several_threads_are_all_logged() -> None:
    """None is lost or counted twice, whoever makes it."""
    store, lost = Refusing(), list[int]()

    def note(log: PredictionLog, name: int) -> None:
        for number in range(500):
            log.note(answers([image(1)]), f"{name} {number}")

    with logging_to(store, lost) as log:
        threads = [threading.Thread(target=note, args=(log, name)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    noted = {f"{name} {number}" for name in range(4) for number in range(500)}
    assert sorted(row["request_id"] for row in rows(store)) == sorted(noted)
    assert lost == []


def test_rows_wait_for_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is back it gets every row once, under the key that was tried before."""
    monkeypatch.setattr(prediction_outbox, "FIRST_PAUSE_S", 0.01)
    store, lost = Refusing(StoreUnavailable("away")), list[int]()
    with logging_to(store, lost, flush_s=1) as log:
        log.note(answers([image(1)]), "during the outage")
        wait_until(lambda: store.tries > 2, 10)
        store.error = None
        log.note(answers([image(2)]), "after it")
    assert [row["request_id"] for row in sorted(rows(store), key=lambda row: row["time"])] == [
        "during the outage",
        "after it",
    ]
    assert lost == []


def test_what_waits_for_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest files go first, their rows are counted, and what is left is stored when the store is back."""
    monkeypatch.setattr(prediction_log, "OUTBOX_BYTES", 10_000)
    monkeypatch.setattr(prediction_log, "FILE_ROWS", 1)
    monkeypatch.setattr(prediction_log, "BLOCK_ROWS", 1)
    store, lost = Refusing(StoreUnavailable("away")), list[int]()
    with logging_to(store, lost) as log:
        for number in range(30):
            log.note(answers([image(number)]), f"{number:02d}")
        wait_until(lambda: bool(lost) and not log._rows, 10)  # noqa: SLF001 - all are files by now
        store.error = None
    stored = sorted(row["request_id"] for row in rows(store))
    assert len(stored) + sum(lost) == 30
    assert stored == [f"{number:02d}" for number in range(30 - len(stored), 30)]


def test_a_store_that_stays_away_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be stored in time is counted, and said."""
    monkeypatch.setattr(prediction_log, "STOP_S", 0.3)
    store, lost = Refusing(StoreUnavailable("away")), list[int]()
    with logging_to(store, lost) as log:
        log.note(answers([image(1), image(2)]), "call")
    assert lost == [2]
    assert "2 rows of the prediction log were not stored" in caplog.text


def test_a_server_without_the_right_to_write_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """Its rows are lost and counted, its log has one line, and should it get the right it begins to log."""
    store, lost = Refusing(AccessDenied("PUT refused.")), list[int]()
    with logging_to(store, lost, flush_s=1) as log:
        for number in range(2):
            log.note(answers([image(number)]), "refused")
            wait_until(lambda: len(lost) == number + 1, 10)  # noqa: B023 - called at once
        store.error = None
        log.note(answers([image(3)]), "taken")
    assert [row["request_id"] for row in rows(store)] == ["taken"]
    assert lost == [1, 1]
    assert caplog.text.count("PUT refused.") == 1


def test_a_store_that_comes_back_and_refuses_is_complained_of_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That rows were to wait while it was away is not the last that a person reads: now they are lost."""
    monkeypatch.setattr(prediction_outbox, "FIRST_PAUSE_S", 0.01)
    store, lost = Refusing(StoreUnavailable("away")), list[int]()
    with logging_to(store, lost, flush_s=1) as log:
        log.note(answers([image(1)]), "call")
        wait_until(lambda: store.tries > 2, 10)
        store.error = AccessDenied("PUT refused.")
        wait_until(lambda: bool(lost), 10)
    assert lost == [1]
    assert (caplog.text.count("waits: away"), caplog.text.count("loses its rows: PUT refused.")) == (1, 1)


@pytest.mark.parametrize("odd", ["text", "class"])
def test_a_call_that_cannot_be_logged_takes_none_with_it_but_its_block(
    odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, and the log goes on: after an error, and after a panic of what makes the columns."""
    store, lost = Refusing(), list[int]()
    with logging_to(store, lost, flush_s=1) as log:
        given = answers([image(1)])
        given.best = [[99]] if odd == "class" else given.best
        given.probabilities = np.ones((1, 100), np.float32) if odd == "class" else given.probabilities
        log.note(given, "a surrogate \ud800" if odd == "text" else "a class that there is not")
        wait_until(lambda: bool(lost), 10)
        log.note(answers([image(2)]), "fine")
    assert [row["request_id"] for row in rows(store)] == ["fine"]
    assert lost == [1]
    assert "could not be logged" in caplog.text
