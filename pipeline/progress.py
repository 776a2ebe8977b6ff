"""How long work tells where it stands, without knowing who listens: a bar, a log, or nobody."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a running step.

    Attributes:
        stage: what is being done, as a person would say it ("reading images").
        done: units finished so far.
        total: units in all, or ``None`` while unknown.
        unit: what is counted ("images", "steps").
        note: the latest figure worth showing ("loss 0.31, 2,400 images/s"), or empty.
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "images"
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Listen to nothing: the default of every step."""
    del progress


def plain_lines(write: Callable[[str], None], interval_s: float = 5.0) -> OnProgress:
    """A listener that writes a line when a stage begins, when it ends, and every ``interval_s`` seconds between."""
    last: dict[str, float] = {}

    def show(now: Progress) -> None:
        finished = now.total is not None and now.done >= now.total
        due = time.monotonic() - last.get(now.stage, float("-inf")) >= interval_s
        if due or finished:
            # A finished stage that reports again starts anew.
            last[now.stage] = float("-inf") if finished else time.monotonic()
            total = "" if now.total is None else f"/{now.total:,}"
            note = f", {now.note}" if now.note else ""
            write(f"{now.stage}: {now.done:,}{total} {now.unit}{note}")

    return show
