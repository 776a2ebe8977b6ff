"""The thread that computes models which are too slow for the event loop; as many threads of its own as they may use.

It takes whatever has queued while it was busy, up to a batch: nobody waits for a batch to fill, and there is no timer.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pipeline.onnx_model import OnnxModel
from serving import cores
from serving.batch import Job, Outcome
from serving.calls import now
from serving.canary import NOTHING, Lineup
from serving.live_model import LiveModel
from serving.participant import Participant

log = logging.getLogger(__name__)

Compute = Callable[[Sequence[Job], LiveModel | None, OnnxModel | None], Sequence[Outcome]]
"""What jobs get from a version, by one of its models; without a version, why they get nothing."""
Finish = Callable[[Sequence[Job], Sequence[Outcome], float], None]
"""Told what became of jobs, and when they began to be computed; from the lane's thread."""


class SlowLane:
    """Its queue and its thread, which starts with the first job."""

    def __init__(
        self,
        participant: Participant,
        compute: Compute,
        finish: Finish,
        *,
        which: Callable[[Lineup], LiveModel | None] = lambda lineup: lineup.champion,
    ) -> None:
        """Nothing runs yet; ``compute`` and ``finish`` are called from the thread, for ``which`` of the two models."""
        self._which = which
        self._participant = participant
        self._compute = compute
        self._finish = finish
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="slow-lane", daemon=True)

    def put(self, jobs: Sequence[Job]) -> None:
        """Compute these, after those that are there."""
        with self._changed:
            self._jobs.extend(jobs)
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Finish what is queued, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while jobs := self._taken():
            begun = now()
            try:
                outcomes = self._computed(jobs)
            except Exception as error:  # a thread that ends in silence would leave everybody waiting
                log.exception("a batch could not be computed")
                outcomes = [error] * len(jobs)
            self._finish(jobs, outcomes, begun)

    def _taken(self) -> list[Job]:
        """The next batch, once there is one; empty at the end."""
        with self._changed:
            while not self._jobs and not self._stopping:
                self._changed.wait()
            live = self._which(self._participant.lineup_now() or NOTHING)
            return taken(self._jobs, live.batch if live else 1)

    def _computed(self, jobs: Sequence[Job]) -> Sequence[Outcome]:
        live = self._which(self._participant.lineup())
        if live is None:
            return self._compute(jobs, None, None)
        with cores.taken(self._participant.board, self._participant.seat) as all_of_them:
            model = live.wide if all_of_them and live.wide else live.model
            return self._compute(jobs, live, model)


def taken(jobs: deque[Job], images: int) -> list[Job]:
    """The first jobs, as many as have at most so many images together, and at least one if there is any."""
    found: list[Job] = []
    while jobs and (not found or images >= len(jobs[0].sent)):
        images -= len(jobs[0].sent)
        found.append(jobs.popleft())
    return found
