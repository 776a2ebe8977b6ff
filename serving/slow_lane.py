"""The thread that computes models which are too slow for the event loop; as many threads of its own as they may use.

It takes whatever has queued while it was busy, up to a batch: nobody waits for a batch to fill, and there is no timer.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

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
"""Told on the event loop what became of jobs, and when they began to be computed."""


class SlowLane:
    """Its queue and its thread, which starts with the first job; used by the event loop alone."""

    def __init__(
        self,
        participant: Participant,
        compute: Compute,
        finish: Finish,
        *,
        which: Callable[[Lineup], LiveModel | None] = lambda lineup: lineup.champion,
    ) -> None:
        """Nothing runs yet; ``compute`` is called in the thread, for ``which`` of the two models."""
        self._which = which
        self._participant = participant
        self._compute = compute
        self._finish = finish
        self._jobs: deque[Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slow-lane")

    def put(self, jobs: Sequence[Job]) -> None:
        """Compute these, after those that are there."""
        self._jobs.extend(jobs)
        self._thread.submit(self._run, asyncio.get_running_loop())

    def close(self) -> None:
        """Finish what is queued, and end."""
        self._thread.shutdown()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute all that is queued; what came while that was done, too."""
        while self._jobs:
            jobs, begun = self._taken(), now()
            try:
                outcomes = self._computed(jobs)
            except Exception as error:  # a future that nobody reads would keep it, and leave everybody waiting
                log.exception("a batch could not be computed")
                outcomes = [error] * len(jobs)
            loop.call_soon_threadsafe(self._finish, jobs, outcomes, begun)

    def _taken(self) -> list[Job]:
        """The next batch."""
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
