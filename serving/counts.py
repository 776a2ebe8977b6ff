"""What a process counts, in its area of the board: the layout, its one writer, and the reader that adds all areas up.

- **Numbers are floats in shared memory** (exact up to 2^53), so whichever process is asked tells of all, and a process
  that is killed leaves its counts to the one that takes its seat: no sum ever falls. A gauge is its process's own, and
  goes with it.
- **One writer per area, behind a lock of its process alone**: the event loop and the threads that decode and predict
  count at once, and ``+=`` is a reading and a writing. Nobody waits for a process that was killed.
- **A class is counted under its label, never under its index**: which class an index means changes with the model
  version. Each area holds its own list of labels, which only grows; a label is written before the number that makes it
  count, so one that a killed process left half-written is no label. What does not fit is counted as ``other``.
- Every call takes less than a microsecond.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:  # the parent of several processes needs the layout, and nothing of what models bring
    from serving.live_model import Answers

Route = Literal["predict", "infer", "other"]
Stage = Literal["queue", "decode", "predict"]
Reason = Literal["overload", "deadline", "gone", "invalid", "too_large", "unauthorized", "slow", "no_model"]
Role = Literal["champion", "challenger"]

ROUTES: Final[tuple[Route, ...]] = get_args(Route)
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
ROLES: Final[tuple[Role, ...]] = get_args(Role)
OTHER: Final = "other"
STATUSES: Final = (
    *("200", "204", "304", "400", "401", "403", "404", "405", "406", "408", "409", "411", "413", "414", "415", "417"),
    *("422", "429", "431", "499", "500", "501", "502", "503", "504", OTHER),
)
CLASSES: Final = 256
"""Labels that are counted apart."""
LABEL_BYTES: Final = 128
"""Of a label, in UTF-8."""

SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the buckets of every duration; here and below, one more bucket has none."""
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
CONFIDENCES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class _Layout:
    """Gives each series its place."""

    def __init__(self) -> None:
        self.size = 0

    def place(self, groups: Iterable[str], width: int = 1) -> Mapping[str, int]:
        """Where each group's first number lies; ``width`` of them belong to it."""
        found = {}
        for group in groups:
            found[group] = self.size
            self.size += width
        return found

    def histograms(self, groups: Iterable[str], bounds: Sequence[float]) -> Mapping[str, int]:
        """The same of histograms: their buckets, the one without a bound, and the sum of what was observed."""
        return self.place(groups, len(bounds) + 2)


_layout: Final = _Layout()
REQUESTS: Final = _layout.place(ROUTES, len(STATUSES))
REQUEST_SECONDS: Final = _layout.histograms(ROUTES, SECONDS)
STAGE_SECONDS: Final = _layout.histograms(STAGES, SECONDS)
BATCHES: Final = _layout.histograms(["images"], SIZES)["images"]
REJECTIONS: Final = _layout.place(REASONS)
PREDICTION_SECONDS: Final = _layout.histograms(ROLES, SECONDS)
CONFIDENCE: Final = _layout.histograms(ROLES, CONFIDENCES)
PREDICTED: Final = _layout.place(ROLES, CLASSES + 1)
"""Of each role: its images by class, then those of all further classes."""
FAILURES: Final = _layout.place(ROLES)
COMPARED: Final = _layout.place(["disagreed", "agreed"])
LOG_DROPPED: Final = _layout.place(["rows"])["rows"]
WAITING: Final = _layout.place(["images"])["images"]
"""A gauge, as the only one of them all."""
LABELS: Final = _layout.place(["labels"])["labels"]
"""How many labels are complete."""

NUMBERS: Final = _layout.size
WORD: Final = 8
BYTES: Final = NUMBERS * WORD + CLASSES * LABEL_BYTES
"""Of one process's area: the numbers, then the labels."""

MISTAKES: Final[Mapping[int, Reason]] = {400: "invalid", 413: "too_large", 415: "invalid", 422: "invalid"}
"""What a client did wrong, by the status of its answer: wherever it was found, it is a rejection once."""
_MISTAKEN: Final = {status: REJECTIONS[reason] for status, reason in MISTAKES.items()}
_STATUS: Final = {int(status): at for at, status in enumerate(STATUSES[:-1])}
_OTHER_STATUS: Final = len(STATUSES) - 1


class Counts:
    """One process's numbers; made once in it, and used by all of its threads."""

    def __init__(self, area: memoryview) -> None:
        """``area`` is the process's on the board; what whoever had it before counted goes on, but for the gauge."""
        self._numbers, self._cells = _split(area)
        self._lock = threading.Lock()
        self._labels = {label: at for at, label in enumerate(_labels(self._numbers, self._cells))}
        self._known: dict[Role, tuple[tuple[str, ...], Sequence[int]]] = dict.fromkeys(ROLES, ((), ()))
        self._numbers[WAITING] = 0.0

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """A request got its answer; one by which a client learns of its own mistake is a rejection, too."""
        with self._lock:
            self._numbers[REQUESTS[route] + _STATUS.get(status, _OTHER_STATUS)] += 1.0
            if status in _MISTAKEN and route != OTHER:
                self._numbers[_MISTAKEN[status]] += 1.0
            self._observe(REQUEST_SECONDS[route], SECONDS, seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """A request, or a batch of them, went through a stage."""
        with self._lock:
            self._observe(STAGE_SECONDS[stage], SECONDS, seconds)

    def batch(self, size: int) -> None:
        """So many images were classified together."""
        with self._lock:
            self._observe(BATCHES, SIZES, size)

    def refused(self, reason: Reason) -> None:
        """A request was not, or not to its end, worked on, for another reason than ``MISTAKES``."""
        with self._lock:
            self._numbers[REJECTIONS[reason]] += 1.0

    def predicted(self, answers: "Answers", seconds: float) -> None:
        """One model version answered all images of one request, which took it ``seconds``."""
        role, classes, probability = answers.role, answers.live.manifest.classes, answers.probabilities.item
        confidence, predicted = CONFIDENCE[role], PREDICTED[role]
        numbers = self._numbers
        with self._lock:
            known, places = self._known[role]
            if known is not classes:
                places = self._placed(role, classes)
            self._observe(PREDICTION_SECONDS[role], SECONDS, seconds)
            for row, best in enumerate(answers.best):
                index = best[0]
                self._observe(confidence, CONFIDENCES, probability(row, index))
                numbers[predicted + places[index]] += 1.0

    def failed(self, role: Role) -> None:
        """A model raised instead of answering."""
        with self._lock:
            self._numbers[FAILURES[role]] += 1.0

    def compared(self, agreed: bool) -> None:
        """Champion and challenger saw the same image."""
        with self._lock:
            self._numbers[COMPARED["agreed" if agreed else "disagreed"]] += 1.0

    def waiting(self, images: int) -> None:
        """So many images wait in this process at this moment."""
        self._numbers[WAITING] = images

    def log_dropped(self, rows: int) -> None:
        """So many rows of the prediction log are lost."""
        with self._lock:
            self._numbers[LOG_DROPPED] += rows

    def _observe(self, start: int, bounds: Sequence[float], value: float) -> None:
        numbers = self._numbers
        numbers[start + bisect_left(bounds, value)] += 1.0
        numbers[start + len(bounds) + 1] += value

    def _placed(self, role: Role, classes: tuple[str, ...]) -> Sequence[int]:
        """Where each class of a model version is counted, by its index."""
        places = [self._place(label) for label in classes]
        self._known[role] = classes, places
        return places

    def _place(self, label: str) -> int:
        if label in self._labels:
            return self._labels[label]
        text, free = label.encode(errors="replace"), len(self._labels)
        if free == CLASSES or not 0 < len(text) <= LABEL_BYTES:
            return CLASSES
        start = free * LABEL_BYTES
        self._cells[start : start + LABEL_BYTES] = text.ljust(LABEL_BYTES, b"\0")
        self._numbers[LABELS] = free + 1
        self._labels[label] = free
        return free


@dataclass(frozen=True, slots=True)
class Histogram:
    """What was observed: how often in each bucket, the last of which has no bound, and the sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class Totals:
    """What all processes of a replica counted so far, those that died since included."""

    def __init__(self, areas: Sequence[memoryview]) -> None:
        """Reads every area once."""
        self._each = [(_labels(numbers, cells), numbers.tolist()) for numbers, cells in map(_split, areas)]
        self._numbers = [sum(each) for each in zip(*(numbers for _, numbers in self._each), strict=True)]

    def count(self, at: int) -> int:
        """A counter."""
        return int(self._numbers[at])

    def counts(self, start: int, names: Sequence[str]) -> Mapping[str, int]:
        """Counters that lie one after the other, by their names."""
        return {name: int(count) for name, count in zip(names, self._numbers[start:], strict=False)}

    def histogram(self, start: int, bounds: tuple[float, ...]) -> Histogram:
        """A histogram."""
        end = start + len(bounds) + 1
        counts = tuple(int(count) for count in self._numbers[start:end])
        return Histogram(bounds, counts, float(self._numbers[end]))

    def classes(self, role: Role) -> Mapping[str, int]:
        """Images by the label that a role's models gave them."""
        start, found = PREDICTED[role], dict[str, int]()
        for labels, numbers in self._each:
            own = numbers[start : start + CLASSES + 1]
            for label, count in [*zip(labels, own[:-1], strict=False), (OTHER, own[-1])]:
                if count:
                    found[label] = found.get(label, 0) + int(count)
        return found


def waiting(area: memoryview) -> int:
    """How many images wait in the process that ``area`` is of."""
    return int(_split(area)[0][WAITING])


def _split(area: memoryview) -> "tuple[memoryview[float], memoryview[int]]":
    """The numbers of an area, and its labels' cells."""
    return area[: NUMBERS * WORD].cast("d"), area[NUMBERS * WORD :]


def _labels(numbers: "memoryview[float]", cells: "memoryview[int]") -> Sequence[str]:
    starts = range(0, int(numbers[LABELS]) * LABEL_BYTES, LABEL_BYTES)
    return [bytes(cells[start : start + LABEL_BYTES]).rstrip(b"\0").decode() for start in starts]
