"""The challenger's share of the requests, in this process: computed like the champion's, and never at its expense.

- A quick challenger is computed by the event loop, a slow one by a thread of its own, as ``live_model`` says of any
  model: so a challenger that is as quick as the champion is measured as quick, and one that is slow keeps nobody else
  waiting. One that turns out to be slow only while it answers moves to the thread.
- **Whatever the challenger cannot answer, the champion does**: what it raised on, which counts as its failure; what it
  would have made wait too long; and what still waits when it goes.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pipeline.onnx_model import OnnxModel
from serving.batch import Job, Outcome, compute
from serving.calls import now
from serving.canary import Lineup
from serving.counts import Counts
from serving.errors import ModelFailed, NothingLive
from serving.live_model import INLINE_S, LiveModel
from serving.participant import Participant
from serving.slow_lane import SlowLane, taken

log = logging.getLogger(__name__)

LONGEST_S: Final = 0.5
"""How long a request may wait for the challenger; beyond that the champion answers it."""
STILL_INLINE_S: Final = 5 * INLINE_S
"""For one image, as it turns out: a slower challenger is not computed by the event loop."""
MEMORY: Final = 0.2
"""Weight of the last batch in what an image takes."""

Finished = Callable[[Job, Outcome, float, float], None]
"""Told what a job gets, and when its computation began and ended."""


class Trial:
    """Who waits for the challenger; used by the event loop alone."""

    def __init__(
        self,
        participant: Participant,
        counts: Counts,
        top_k: int,
        finished: Finished,
        to_champion: Callable[[Job], None],
    ) -> None:
        """Nothing waits yet; ``to_champion`` gets the jobs that the challenger does not answer."""
        self._participant = participant
        self._counts = counts
        self._top_k = top_k
        self._finished = finished
        self._to_champion = to_champion
        self._lane = SlowLane(participant, self._compute, self._finish, which=lambda lineup: lineup.challenger)
        self._jobs: deque[Job] = deque()
        self._images = 0
        self._image_s = 0.0
        self._challenger: LiveModel | None = None
        self._warned: LiveModel | None = None
        self._round_is_due = False

    def takes(self, job: Job) -> bool:
        """Whether the challenger answers a job; if so, it is seen to."""
        lineup = self._participant.lineup_now()
        if lineup is None or lineup.challenger is None or job.call.version is not None:
            return False
        if lineup.choose(job.call.caller)[1] == "champion":
            return False
        self._get_to_know(lineup.challenger)
        if not self._may_wait(job, lineup):
            return False
        self._images += len(job.sent)
        if self._is_inline(lineup.challenger):
            self._jobs.append(job)
            self._again()
        else:
            self._lane.put([job])
        return True

    def close(self) -> None:
        """Let the thread finish what it is at."""
        self._lane.close()

    def _get_to_know(self, challenger: LiveModel) -> None:
        if challenger is not self._challenger:
            self._challenger, self._image_s = challenger, challenger.image_s

    def _may_wait(self, job: Job, lineup: Lineup) -> bool:
        wait, deadline = self._images * self._image_s, job.call.deadline
        if wait > LONGEST_S:
            return False
        if deadline is not None and now() + wait + len(job.sent) * self._image_s > deadline:
            return False
        return _is_for(lineup.challenger, job) or not _is_for(lineup.champion, job)

    def _is_inline(self, challenger: LiveModel) -> bool:
        return challenger.inline and self._image_s < STILL_INLINE_S

    def _again(self) -> None:
        if not self._round_is_due:
            self._round_is_due = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        """Compute one batch; then let the loop look at the network again."""
        self._round_is_due = False
        lineup = self._participant.lineup_now()
        challenger = lineup.challenger if lineup else None
        if challenger and not self._is_inline(challenger):
            self._lane.put(self._jobs)
            self._jobs.clear()
            return
        jobs, begun = taken(self._jobs, challenger.batch if challenger else 1), now()
        outcomes = self._compute(jobs, challenger, challenger.model if challenger else None)
        self._finish(jobs, outcomes, begun)
        if self._jobs:
            self._again()

    def _compute(self, jobs: Sequence[Job], challenger: LiveModel | None, model: OnnxModel | None) -> Sequence[Outcome]:
        if challenger is None or model is None:
            return [NothingLive("The challenger is gone.")] * len(jobs)
        return compute(jobs, challenger, model, self._top_k, self._counts, role="challenger")

    def _finish(self, jobs: Sequence[Job], outcomes: Sequence[Outcome], begun: float) -> None:
        ended, images = now(), sum(len(job.sent) for job in jobs)
        self._images -= images
        self._image_s += MEMORY * ((ended - begun) / images - self._image_s)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, ModelFailed):
                self._counts.failed("challenger")
                self._warn(outcome)
            if isinstance(outcome, ModelFailed | NothingLive):
                self._to_champion(job)
            else:
                self._finished(job, outcome, begun, ended)

    def _warn(self, failure: ModelFailed) -> None:
        """Once for each challenger: the counts tell how often."""
        if self._warned is not self._challenger:
            self._warned = self._challenger
            log.warning("%s The champion answers instead.", failure, exc_info=failure.__cause__)


def _is_for(live: LiveModel | None, job: Job) -> bool:
    """Whether pixels that came as such are of the model's size; encoded images are of any."""
    if live is None:
        return False
    pixels = live.manifest.pixels
    shape = (pixels.height, pixels.width, pixels.channels)
    return all(found is not None or image.shape == shape for image, found in zip(job.sent, job.found, strict=True))  # type: ignore[union-attr]
