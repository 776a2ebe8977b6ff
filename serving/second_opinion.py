"""What the other of champion and challenger says of an image that one has answered; nobody waits for it.

- In ``split`` mode the champion is asked what the challenger answered, to count how often they agree. In ``shadow``
  mode the challenger is asked what the champion answered, and how it does is counted as if it had.
- **At nobody's expense**: one thread, a bounded queue, and the event loop only appends to it. While others wait for
  answers, this thread takes a twentieth of the time at most, and what is offered meanwhile is dropped. Its priority is
  not lowered: holding the interpreter's lock, a thread of low priority would keep it from the others.
- A shadow's time is what the request would have taken with the challenger in the champion's place: the champion's own,
  less what the champion takes for such images, and the challenger's processor time, which no other thread prolongs.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pipeline.errors import InvalidInput
from serving.batch import Job, decode
from serving.calls import now
from serving.canary import NOTHING
from serving.counts import Counts
from serving.live_model import Answers, LiveModel, best_of
from serving.participant import Participant

log = logging.getLogger(__name__)

IMAGES: Final = 8
"""Of one call that the other model is asked about: the first ones."""
LARGEST_QUEUE: Final = 8
LARGEST_BYTES: Final = 8 << 20
"""Of a call's images, where they have to be kept to be decoded once more."""
BUSY_PAUSE: Final = 19.0
IDLE_PAUSE: Final = 0.5
"""After each question nothing is taken for so many times as long as it took."""


@dataclass(frozen=True, slots=True)
class Question:
    """An answered call, and the model that is to say what it thinks; ``seconds`` is what the answer took."""

    job: Job
    answers: Answers
    other: LiveModel
    seconds: float
    busy: bool


class SecondOpinions:
    """The queue and its thread, which starts with the first question."""

    def __init__(self, participant: Participant, counts: Counts) -> None:
        """Nothing runs yet."""
        self._participant = participant
        self._counts = counts
        self._questions: deque[Question] = deque()
        self._changed = threading.Condition()
        self._free_at = 0.0
        self._asking = False
        self._warned: LiveModel | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="second-opinion", daemon=True)

    def offer(self, job: Job, answers: Answers, seconds: float, *, busy: bool) -> None:
        """Perhaps ask the other model about an answered call; ``busy``: others wait for answers. For the event loop."""
        other = self._other(job, answers)
        if other is None or now() < self._free_at:
            return
        if len(self._questions) >= LARGEST_QUEUE or (busy and (self._questions or self._asking)):
            return
        copy = _copied(job, other)
        if copy is None:
            return
        with self._changed:
            self._questions.append(Question(copy, answers, other, seconds, busy))
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Ask nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _other(self, job: Job, answers: Answers) -> LiveModel | None:
        lineup = self._participant.lineup_now()
        if lineup is None or lineup.challenger is None:
            return None
        if answers.role == "challenger":
            return lineup.champion if answers.live is lineup.challenger else None
        return lineup.shadow(job.call.caller) if answers.live is lineup.champion else None

    def _run(self) -> None:
        while question := self._taken():
            begun = now()
            try:
                self._ask(question)
            except Exception:  # a thread that ends in silence would leave the canary without comparisons
                log.exception("a second opinion could not be had")
            ended = now()
            self._free_at = ended + (ended - begun) * (BUSY_PAUSE if question.busy else IDLE_PAUSE)

    def _taken(self) -> Question | None:
        with self._changed:
            self._asking = False
            while not self._questions and not self._stopping:
                self._changed.wait()
            self._asking = True
            return None if self._stopping else self._questions.popleft()

    def _ask(self, question: Question) -> None:
        lineup, answers, other = self._participant.lineup_now() or NOTHING, question.answers, question.other
        if other is not lineup.champion and other is not lineup.challenger:
            return  # it went meanwhile
        job = question.job
        try:
            decode(job, other.manifest.pixels)
        except InvalidInput:
            return  # pixels of the first model's size, which the other one cannot take
        begun = time.thread_time()
        try:
            probabilities = other.model.probabilities(np.stack(job.pixels))
        except Exception as error:  # noqa: BLE001 - whatever a model's graph does
            if answers.role == "champion":
                self._counts.failed("challenger")
            self._warn(other, error)
            return
        took = time.thread_time() - begun
        best, likely = best_of(probabilities, len(answers.best[0]))
        self._compare(answers, other, best)
        if answers.role == "champion":
            seconds = max(took, question.seconds + took - answers.live.image_s * len(best))
            self._counts.predicted(
                Answers(other, "challenger", probabilities, best, likely, answers.digests[:IMAGES]), seconds
            )

    def _warn(self, other: LiveModel, error: Exception) -> None:
        """Once for each model: the counts tell how often."""
        if other is not self._warned:
            self._warned = other
            log.warning("version %s failed on a copy of an image: %s", other.manifest.version, error)

    def _compare(self, answers: Answers, other: LiveModel, best: list[list[int]]) -> None:
        """By the classes' names: the two need not number them alike."""
        names, others = answers.live.manifest.classes, other.manifest.classes
        for one, two in zip(answers.best, best, strict=False):
            self._counts.compared(agreed=names[one[0]] == others[two[0]])


def _copied(job: Job, other: LiveModel) -> Job | None:
    """What the other model needs of a call: its pixels, or the images where it takes other ones; None if too large."""
    if job.spec == other.manifest.pixels:
        return replace(job, sent=(), found=[], pixels=job.pixels[:IMAGES])
    if job.size > LARGEST_BYTES:
        return None
    return replace(job, sent=job.sent[:IMAGES], found=job.found[:IMAGES])
