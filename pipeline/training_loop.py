"""The loop of a training run: from where it stands to the end of its last epoch.

- **Nothing depends on time.** The schedule counts steps; order, augmentation and dropout are functions of the seed and
  the step. When a checkpoint is saved makes no difference to the weights, so they can be saved by the clock.
- The best epoch is chosen on the validation split (``is_best``), without one it is the last.
- A checkpoint between epochs that an absent store refuses is given up, and training goes on; one that ends an epoch
  is needed, and ends the run when the store stays away. Run again, it goes on from the last one.
- **Several ranks do the same steps** (``ranks``): each computes a part of each batch, and all know the same position
  and weights. What depends on a clock or a signal is agreed upon after each step. The rank with the lease writes.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline import augment, checkpoints, exactness
from pipeline.artifacts import EpochMetrics, TrainConfig
from pipeline.checkpoints import Checkpoint, Position, Tensors
from pipeline.errors import StoreUnavailable, TrainingDiverged, TrainingStopped
from pipeline.examples import Batch, Examples
from pipeline.learner import STEP_PIXELS, Learner, Plan
from pipeline.leases import Lease
from pipeline.progress import OnProgress, Progress
from pipeline.ranks import ALONE, Ranks
from pipeline.store import Store

log = logging.getLogger(__name__)

SAVE_EVERY_S = 30.0
REPORT_EVERY_S = 0.5
JUDGED_AT_ONCE = 1024
"""Validation images per batch at most."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a training run is written down, and who listens.

    Attributes:
        store: the checkpoints zone.
        lease: the right to write there; None where another rank has it.
        run: the training run's id.
        on_progress: told at least once a second, or once a step.
        should_stop: asked at each step.
        save_every_s: seconds between checkpoints within an epoch.
    """

    store: Store
    lease: Lease | None
    run: str
    on_progress: OnProgress
    should_stop: Callable[[], bool]
    save_every_s: float = SAVE_EVERY_S

    @property
    def fence(self) -> int:
        """The lease's, or 0 for who writes nothing."""
        return self.lease.fence if self.lease else 0


class Training:
    """A training run under way: a learner, where it stands, and the two splits that it sees."""

    def __init__(
        self,
        desk: Desk,
        learner: Learner,
        plan: Plan,
        config: TrainConfig,
        *,
        training: Examples,
        validation: Examples,
        ranks: Ranks = ALONE,
    ) -> None:
        self.position = Position()
        self.learner = learner
        self.environment = (
            exactness.environment(
                learner.device, learner.precision, processes=ranks.world, images_at_once=learner.images_at_once
            )
            | training.facts
        )
        self._desk = desk
        self._ranks = ranks
        self._config = config
        self._training = training
        self._validation = validation
        self._plan = plan
        self._sums = torch.zeros(2, device=learner.device)  # loss and right predictions of the epoch under way
        self._sides = augment.first_sides(plan.images, config.seed) if config.flip else None
        self._saved_at = time.monotonic()
        self._reported_at = -math.inf

    def run(self) -> None:
        """From the newest readable checkpoint, or from the beginning, to the end."""
        self._resume()
        while len(self.position.history) < self._plan.epochs:
            self._take_steps()
            self._close_epoch()

    def _resume(self) -> None:
        found = self._newest()
        if found is None:
            return
        checkpoint, tensors = found
        doubts = exactness.doubts_of(checkpoint.environment, self.environment)
        self.position = checkpoint.position.model_copy(update={"exact": checkpoint.position.exact and not doubts})
        self.learner.restore(tensors, checkpoint.settings)
        self._sums.copy_(torch.tensor([self.position.loss_sum, float(self.position.correct)]))
        log.info("training run %s goes on after step %d of %d", self._desk.run, self.position.step, self._plan.steps)
        if doubts:
            log.warning("it cannot be promised that it ends as without the interruption: %s", "; ".join(doubts))

    def _newest(self) -> tuple[Checkpoint, Tensors] | None:
        """The newest readable checkpoint: for all ranks the one that the first finds, whatever an orphan writes."""
        store, run = self._desk.store, self._desk.run
        if self._ranks.first:
            found = checkpoints.newest(store, run)
            self._ranks.say(checkpoints.manifest_key(run, found[0].fence, found[0].position.step) if found else "")
            return found
        key = self._ranks.listen()
        return checkpoints.load(store, key) if key else None

    def _take_steps(self) -> None:
        """The steps that the epoch under way still needs."""
        epoch = len(self.position.history)
        done = self.position.step - epoch * self._plan.batches
        began = time.perf_counter()
        for batch in self._training.batches(self._config.seed, epoch, self._plan.batches, done):
            if batch is not None:
                self._step(batch, began)
            stop, tell, save = self._ranks.agree(self._signs())
            if batch is not None:
                self._watch(due=tell)
            if stop:
                self._stop()
            if save:
                self._save_in_passing()
            if batch is not None:
                began = time.perf_counter()

    def _signs(self) -> tuple[bool, bool, bool]:
        """Whether somebody asks to stop, and by the first rank's clock, whether it is time to tell, and to save."""
        now, first = time.monotonic(), self._ranks.first
        tell = first and now - self._reported_at >= REPORT_EVERY_S
        save = first and now - self._saved_at >= self._desk.save_every_s
        return self._desk.should_stop(), tell, save

    def _step(self, batch: Batch, began: float) -> None:
        step, index = self.position.step, batch.index
        pixels = augment.augmented(
            batch.pixels,
            batch.at,
            mirror=None if self._sides is None else augment.mirrored(self._sides[index], step // self._plan.batches),
            shift=self._config.shift,
            generator=augment.generator_at(self._config.seed, "shift", step),
            of=batch.of,
            part=batch.part,
        )
        pixels, labels = pixels.to(self.learner.device), self._training.labels[index.to(self.learner.device)]
        self._training.release()
        self._sums += self.learner.learn(pixels, labels, self._plan.rate(step), step, of=batch.of)
        now = {"step": step + 1, "images": self.position.images + (batch.of or len(index))}
        seconds = self.position.seconds + time.perf_counter() - began
        self.position = self.position.model_copy(update=now | {"seconds": seconds})

    def _watch(self, *, due: bool) -> None:
        """Look at the loss: at each step where that costs nothing, else as often as somebody is told."""
        if not due and self.learner.device.type != "cpu":
            return
        loss = self._sums[0].item() / self.position.images
        if not math.isfinite(loss):
            raise self._diverged("the loss")
        if due:
            self._reported_at = time.monotonic()
            speed = self.position.images / max(1e-9, self.position.seconds)
            epoch = f"epoch {len(self.position.history) + 1} of {self._plan.epochs}"
            note = f"{epoch}, loss {loss:.3f}, {speed:,.0f} images/s"
            self._desk.on_progress(Progress("training", self.position.step, self._plan.steps, "steps", note))

    def _close_epoch(self) -> None:
        """Judge the weights, add a line to the history, and save."""
        self._refuse_nan()
        metrics = self._metrics(*self._judged())
        history = (*self.position.history, metrics)
        best = {}
        if is_best(metrics, self.position.history, len(self._validation.labels)):
            key = checkpoints.manifest_key(self._desk.run, self._desk.fence, self.position.step)
            best = {"best": key, "best_epoch": metrics.epoch}
        afresh = {"images": 0, "seconds": 0.0, "history": history}
        self.position = self.position.model_copy(update=afresh | best)
        self._sums.zero_()
        self._save()
        self._desk.on_progress(
            Progress("training", self.position.step, self._plan.steps, "steps", _summary(metrics, self._plan.epochs))
        )

    def _judged(self) -> tuple[float | None, float | None]:
        """Loss and accuracy on the validation split; None without one."""
        count = len(self._validation.labels)
        if not count:
            return None, None
        sums = torch.zeros(2, device=self.learner.device)
        for batch in self._validation.in_turn(JUDGED_AT_ONCE, STEP_PIXELS):
            if batch is not None:
                index, pixels = (part.to(self.learner.device) for part in batch)
                sums += self.learner.judge(pixels, self._validation.labels[index])
                self._validation.release()
            if any(self._ranks.agree([self._desk.should_stop()])):
                self._stop()
        loss, accuracy = (self._ranks.summed(sums) / count).tolist()
        return loss, accuracy

    def _metrics(self, validation_loss: float | None, validation_accuracy: float | None) -> EpochMetrics:
        images, seconds = self.position.images, self.position.seconds
        loss, accuracy = (self._sums / images).tolist()
        return EpochMetrics(
            epoch=len(self.position.history) + 1,
            step=self.position.step,
            train_loss=loss,
            train_accuracy=accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=self._plan.rate(self.position.step - 1),
            images_per_s=images / max(1e-9, seconds),
            seconds=seconds,
        )

    def _stop(self) -> None:
        self._save()
        self._ranks.agree([True])  # nobody leaves before the checkpoint is stored: torchrun would end the others
        raise TrainingStopped(
            f"Training run {self._desk.run} was asked to stop after step {self.position.step:,} of "
            f"{self._plan.steps:,}; its checkpoint is stored, and the same command goes on from there."
        )

    def _save_in_passing(self) -> None:
        try:
            self._save()
        except StoreUnavailable as error:
            log.warning("training goes on without the checkpoint of step %d: %s", self.position.step, error)
            self._saved_at = time.monotonic()

    def _save(self) -> None:
        self._refuse_nan()
        if self._desk.lease is None:
            return
        loss, correct = self._sums.tolist()
        self.position = self.position.model_copy(update={"loss_sum": loss, "correct": int(correct)})
        checkpoint = Checkpoint(
            run=self._desk.run,
            fence=self._desk.lease.fence,
            position=self.position,
            settings=self.learner.settings(),
            environment=self.environment,
        )
        tensors = self.learner.tensors()
        key = checkpoints.save(self._desk.store, checkpoint, tensors, may_write=self._desk.lease.check)
        checkpoints.prune(self._desk.store, self._desk.run, newest=key, best=self.position.best)
        self._saved_at = time.monotonic()

    def _refuse_nan(self) -> None:
        tensors = (tensor for group in self.learner.tensors().values() for tensor in group.values())
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise self._diverged("a weight")

    def _diverged(self, what: str) -> TrainingDiverged:
        step = max(0, self.position.step - 1)
        return TrainingDiverged(
            f"Training diverged: {what} became NaN or infinite in epoch {len(self.position.history) + 1}, by step "
            f"{step + 1:,} of {self._plan.steps:,} at a learning rate of {self._plan.rate(step):.3g}; "
            f"try a learning_rate of {self._plan.learning_rate / 4:.2g}."
        )


def is_best(new: EpochMetrics, before: Sequence[EpochMetrics], images: int) -> bool:
    """Whether an epoch's weights are the ones to keep so far.

    They are, unless an earlier epoch's validation accuracy is higher by more than chance explains: by two standard
    errors over that many ``images``, and one image. A later epoch's weights have seen a lower learning rate, and the
    highest of many accuracies on few images is mostly the luckiest.
    """
    if new.validation_accuracy is None:
        return True
    highest = max((line.validation_accuracy or 0.0 for line in before), default=0.0)
    share = (highest * images + 1) / (images + 2)  # never 0 or 1, whose standard error would be none
    tolerance = 2 * math.sqrt(share * (1 - share) / images) + 1 / images
    return new.validation_accuracy >= highest - tolerance


def _summary(metrics: EpochMetrics, epochs: int) -> str:
    right = metrics.train_accuracy if metrics.validation_accuracy is None else metrics.validation_accuracy
    return f"epoch {metrics.epoch} of {epochs}: loss {metrics.train_loss:.3f}, accuracy {right:.3f}"
