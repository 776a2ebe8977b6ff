"""Calls in, answers out: admission, decoding, and batches of whatever is there.

- Small images are decoded, and quick models computed, by the event loop itself: whatever arrived since it last looked
  is one batch, taken when all sockets have been read. Large images are decoded by a pool of threads, slow models
  computed by a thread of their own (``slow_lane``). ``live_model`` and ``batch`` say what is small, and what is slow.
- **A call is answered by one version**, the one that is live when its turn to be computed comes: the version in the
  answer is the version that computed it, and no answer is older than one that any client has seen before it asked.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

import cv2

from pipeline.errors import InvalidInput, SafelightError
from pipeline.onnx_model import OnnxModel
from serving.admission import Admission
from serving.batch import SMALL_BYTES, Done, Image, Job, Outcome, compute, decode, examine, size_of
from serving.calls import Call, now
from serving.counts import Counts
from serving.decoders import Decoders
from serving.errors import ClientGone, DeadlineExceeded, NothingLive, Overloaded
from serving.live_model import Answers, LiveModel
from serving.participant import JOIN_S, Participant
from serving.prediction_log import PredictionLog
from serving.second_opinion import SecondOpinions
from serving.slow_lane import SlowLane, taken
from serving.status import nothing_live
from serving.trial import Trial

AGAIN_S: Final = 0.01
"""Between two looks whether this process has loaded what the others answer with."""


class Predictor:
    """What every route asks; used by the event loop alone."""

    def __init__(
        self,
        participant: Participant,
        counts: Counts,
        *,
        threads: int,
        top_k: int,
        model: str,
        queue_s: float | None = None,
        log: PredictionLog | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            participant: knows the live model.
            counts: of this process.
            threads: that decode large images.
            top_k: classes that an answer names.
            model: its name.
            queue_s: what a standing queue may take; None for what suits the model.
            log: of all answers; None to keep none.
        """
        cv2.setNumThreads(1)
        self._participant = participant
        self._counts = counts
        self._top_k = top_k
        self._model = model
        self._log = log
        self._admission = Admission(queue_s)
        self._decoders = Decoders(threads, self._decode, self._decoded)
        self._slow = SlowLane(participant, self._compute, self._finish)
        self._trial = Trial(participant, counts, top_k, self._end, self._enqueue_for_champion)
        self._second = SecondOpinions(participant, counts)
        self._ready: deque[Job] = deque()
        self._round_is_due = False

    async def answer(self, call: Call, images: Sequence[Image]) -> Answers:
        """One version's answers to all images of a call.

        Args:
            call: of a client.
            images: at least one, encoded or as pixels of the live model's size.

        Raises:
            NothingLive: no version answers.
            InvalidImage: one of them is not an image we read.
            InvalidInput: pixels of another size.
            Overloaded: it would have to wait too long.
            DeadlineExceeded: its deadline passed.
            ClientGone: nobody waits for the answer any more.
            ModelFailed: the model raised.
        """
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if future.done():  # its task was cancelled
                return
            if isinstance(outcome, Answers):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

        self.submit(call, images, done)
        return await future

    def submit(self, call: Call, images: Sequence[Image], done: Done) -> None:
        """The same, but that ``done`` is told the answers or the error, at once or later, on the event loop."""
        begun = now()
        job = Job(call, images, done, begun, size=size_of(images))
        if self._admission.is_new and (live := self._participant.live_now()):
            self._admission.expect(live.image_s)
        try:
            self._admission.admit(call, len(images), job.size, begun)
        except SafelightError as error:
            self._refused(job, error)
            return
        self._counts.waiting(self._admission.images)
        try:
            if job.size <= SMALL_BYTES:
                examine(job)
        except InvalidInput as error:
            self._leave(job, error)
            return
        if job.is_small:
            self._enqueue(job)
        else:
            self._decoders.put(job)

    def close(self) -> None:
        """Let the threads finish what they are at."""
        self._decoders.close()
        self._slow.close()
        self._trial.close()
        self._second.close()

    def _decode(self, job: Job) -> None:
        """In a thread of the decoders."""
        live = self._participant.lineup().choose(job.call.caller)[0]
        if live:
            begun = now()
            decode(job, live.manifest.pixels)
            self._counts.stage("decode", now() - begun)

    def _decoded(self, job: Job, error: Exception | None) -> None:
        if error:
            self._leave(job, error)
        else:
            self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if not self._trial.takes(job):
            self._enqueue_for_champion(job)

    def _enqueue_for_champion(self, job: Job) -> None:
        self._ready.append(job)
        if not self._round_is_due:
            self._again(0.0)

    def _round(self) -> None:
        """Compute one batch, or hand it on; then let the loop look at the network again."""
        self._round_is_due = False
        if not self._participant.has_joined:
            self._wait_to_join()
            return
        live = self._participant.live_now()
        batch = taken(self._ready, live.batch) if live and live.inline else list(self._ready)
        if live is None or not live.inline:
            self._ready.clear()
        elif self._ready:
            self._again(0.0)
        if live and not live.inline:
            self._slow.put(batch)
        else:
            begun = now()
            self._finish(batch, self._compute(batch, live, live.model if live else None), begun)

    def _wait_to_join(self) -> None:
        """The others answer with what this process has yet to load, which its calls wait for, but not for ever."""
        waited = now() - JOIN_S
        while self._ready and self._ready[0].queued < waited:
            self._leave(self._ready.popleft(), self._nothing_live())
        if self._ready:
            self._again(AGAIN_S)

    def _again(self, after_s: float) -> None:
        self._round_is_due = True
        loop = asyncio.get_running_loop()
        if after_s:
            loop.call_later(after_s, self._round)
        else:
            loop.call_soon(self._round)

    def _compute(self, jobs: Sequence[Job], live: LiveModel | None, model: OnnxModel | None) -> Sequence[Outcome]:
        if live is None or model is None:
            return [self._nothing_live()] * len(jobs)
        return compute(jobs, live, model, self._top_k, self._counts)

    def _finish(self, jobs: Sequence[Job], outcomes: Sequence[Outcome], begun: float) -> None:
        ended = now()
        self._admission.computed(sum(len(job.sent) for job in jobs), begun, ended)
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._end(job, outcome, begun, ended)

    def _end(self, job: Job, outcome: Outcome, begun: float, ended: float) -> None:
        """Tell a call what it gets, which was computed from ``begun`` to ``ended``."""
        self._counts.stage("queue", begun - job.queued)
        if isinstance(outcome, Answers):
            self._counts.predicted(outcome, ended - job.call.begun)
            self._admission.leave(len(job.sent), job.size)
            self._counts.waiting(self._admission.images)
            job.done(outcome)
            if self._log:
                self._log.note(outcome, job.call.request_id, job.sent)
            self._second.offer(job, outcome, ended - job.call.begun, busy=self._admission.images > 0)
        else:
            self._leave(job, outcome)

    def _leave(self, job: Job, error: Exception) -> None:
        """Tell a call that was counted in why it gets no answer."""
        self._admission.leave(len(job.sent), job.size)
        self._counts.waiting(self._admission.images)
        self._refused(job, error)

    def _refused(self, job: Job, error: Exception) -> None:
        match error:
            case Overloaded():
                self._counts.refused("overload")
            case DeadlineExceeded():
                self._counts.refused("deadline")
            case ClientGone():
                self._counts.refused("gone")
            case NothingLive():
                self._counts.refused("no_model")
            case InvalidInput():
                pass  # told by the status of its answer
            case _:
                self._counts.failed("champion")
        job.done(error)

    def _nothing_live(self) -> NothingLive:
        return NothingLive(nothing_live(self._participant.board, self._model))
