import random
from collections.abc import Callable

import numpy as np
import pytest
import small_training as small
import synthetic
import torch
from obstore.store import MemoryStore

from pipeline import checkpoints, leases, training_loop, training_runs
from pipeline.artifacts import EpochMetrics, TrainConfig
from pipeline.errors import InvalidInput, LeaseLost, StoreUnavailable, TrainingDiverged, TrainingStopped
from pipeline.progress import Progress
from pipeline.ranks import Ranks
from pipeline.store import Store

RUN = "0123456789abcdef"
CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.2)
STEPS = 12


def stop_after(steps: int) -> Callable[[], bool]:
    """A ``should_stop`` that says yes when it is asked for the ``steps``-th time."""
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def test_it_learns_and_writes_history() -> None:
    """Training tells classes apart that differ in brightness, and notes each epoch."""
    training = small.run_once(synthetic.memory_store(), TrainConfig(epochs=8, batch_size=16, learning_rate=0.2))
    history = training.position.history
    assert [line.epoch for line in history] == list(range(1, 9))
    assert [line.step for line in history] == list(range(4, 33, 4))
    assert history[-1].train_loss < history[0].train_loss
    assert max(line.validation_accuracy or 0 for line in history) > 0.9
    assert all(line.images_per_s > 0 and line.seconds > 0 for line in history)


def test_the_same_run_twice_is_the_same_bit_for_bit() -> None:
    """Without interruption, weights depend on nothing but data and configuration."""
    first, second = (small.run_once(synthetic.memory_store(), CONFIG) for _ in range(2))
    assert small.equal(small.weights_of(first), small.weights_of(second))
    other = small.run_once(synthetic.memory_store(), CONFIG.model_copy(update={"seed": 1}))
    assert not small.equal(small.weights_of(first), small.weights_of(other))


@pytest.mark.parametrize("architecture", ["small_resnet", "mobilenet_v3_small"])
def test_stopped_anywhere_and_resumed_ends_the_same(architecture: str) -> None:
    """Asked to stop at each single step, between epochs or while judging, a run still ends with the same weights."""
    config = TrainConfig.model_validate(CONFIG.model_dump() | {"architecture": architecture, "shift": 1})
    whole = small.run_once(synthetic.memory_store(), config)
    for asked in range(1, STEPS + 4) if architecture == "small_resnet" else [2, 9]:
        store = synthetic.memory_store()
        with pytest.raises(TrainingStopped, match=r"the same command goes on from there"):
            small.run_once(store, config, run=RUN, should_stop=stop_after(asked))
        resumed = small.run_once(store, config, run=RUN)
        assert small.equal(small.weights_of(whole), small.weights_of(resumed)), f"stopped when asked {asked} times"
        assert resumed.position.exact
        assert [line.train_loss for line in resumed.position.history] == [
            line.train_loss for line in whole.position.history
        ]


def test_stopped_again_and_again(request: pytest.FixtureRequest) -> None:
    """A run that gets one to three steps at a time ends as if it had had all its time."""
    seed = random.randrange(2**32)
    print(f"{request.node.name}: seed {seed}")  # noqa: T201 - shown when it fails
    moments = random.Random(seed)
    store = synthetic.memory_store()
    for _ in range(3 * STEPS):
        try:
            resumed = small.run_once(store, CONFIG, run=RUN, should_stop=stop_after(moments.randint(1, 3)))
        except TrainingStopped:
            continue
        break
    assert small.equal(small.weights_of(small.run_once(synthetic.memory_store(), CONFIG)), small.weights_of(resumed))


def test_when_it_saves_does_not_matter() -> None:
    """Saving after every step gives the same weights as saving after epochs alone."""
    rarely = small.run_once(synthetic.memory_store(), CONFIG)
    always = small.run_once(synthetic.memory_store(), CONFIG, save_every_s=0.0)
    assert small.equal(small.weights_of(rarely), small.weights_of(always))


def test_a_damaged_newest_checkpoint_costs_steps_only() -> None:
    """Resumed from the checkpoint before the damaged one, a run still ends with the same weights."""
    whole = small.run_once(synthetic.memory_store(), CONFIG)
    store = synthetic.memory_store()
    with pytest.raises(TrainingStopped):
        small.run_once(store, CONFIG, run=RUN, should_stop=stop_after(9), save_every_s=0.0)
    states = sorted(found.key for found in store.listing(RUN) if found.key.endswith(checkpoints.STATE))
    store.put(states[-1], store.get(states[-1])[:-40])
    assert small.equal(small.weights_of(whole), small.weights_of(small.run_once(store, CONFIG, run=RUN)))


def test_other_surroundings_are_said_to_be_inexact(caplog: pytest.LogCaptureFixture) -> None:
    """Resumed with another number of threads, a run goes on, and result and log say that exactness is gone."""
    store = synthetic.memory_store()
    with pytest.raises(TrainingStopped):
        small.run_once(store, CONFIG, run=RUN, should_stop=stop_after(5))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        resumed = small.run_once(store, CONFIG, run=RUN)
    finally:
        torch.set_num_threads(threads)
    assert not resumed.position.exact
    assert f"threads was {threads} and is {threads + 1}" in caplog.text


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 1], [0] * 99 + [1], list(range(500))])
@pytest.mark.parametrize("batch_size", [2, 1024])
def test_awkward_datasets_train(labels: list[int], batch_size: int) -> None:
    """Two images, an odd one more than whole batches, one image of a class, 500 classes: all train."""
    data = small.splits() | {"train": small.split_of(np.array(labels)), "validation": small.split_of(np.array([0]))}
    config = TrainConfig(epochs=1, batch_size=batch_size, learning_rate=0.01)
    training = small.run_once(synthetic.memory_store(), config, data)
    assert training.position.step >= 1
    assert training.position.history[0].epoch == 1


def test_one_image_is_too_few() -> None:
    """A training split of one image is refused before any work, in a sentence."""
    with pytest.raises(InvalidInput, match="at least two images"):
        small.run_once(synthetic.memory_store(), CONFIG, small.splits(images=1))


def test_without_validation_the_last_epoch_is_the_best() -> None:
    """No validation split: the history says None, and the last checkpoint is the result."""
    training = small.run_once(synthetic.memory_store(), CONFIG, small.splits(held_out=0))
    assert [line.validation_accuracy for line in training.position.history] == [None] * 3
    assert training.position.best_epoch == 3
    assert training.position.best.endswith(f"{STEPS:09d}/checkpoint.json")


def line(accuracy: float | None) -> EpochMetrics:
    """An epoch with that validation accuracy."""
    return EpochMetrics(
        epoch=1,
        step=1,
        train_loss=1,
        train_accuracy=1,
        validation_loss=1,
        validation_accuracy=accuracy,
        learning_rate=1,
        images_per_s=1,
        seconds=1,
    )


@pytest.mark.parametrize(
    ("earlier", "new", "images", "kept"),
    [
        ([], 0.1, 10, True),
        ([None], None, 0, True),
        ([0.5], 0.6, 3000, True),
        ([0.93], 0.928, 3000, True),  # within what chance explains
        ([0.93], 0.92, 3000, False),
        ([0.93, 0.2], 0.5, 3000, False),
        ([0.7], 0.6, 10, True),  # few images decide little
        ([1.0], 0.8, 10, True),
        ([1.0], 0.7, 10, False),
    ],
)
def test_the_best_epoch(earlier: list[float | None], new: float | None, images: int, kept: bool) -> None:
    """A later epoch is kept unless an earlier one was better by more than chance explains."""
    assert training_loop.is_best(line(new), [line(accuracy) for accuracy in earlier], images) == kept


def test_only_the_newest_two_and_the_best_are_left() -> None:
    """After a long run the store holds at most three checkpoints, the best one among them."""
    store = synthetic.memory_store()
    training = small.run_once(store, CONFIG, run=RUN, save_every_s=0.0)
    manifests = [found.key for found in store.listing(RUN) if found.key.endswith(checkpoints.MANIFEST)]
    assert 2 <= len(manifests) <= 3
    assert training.position.best in manifests


@pytest.mark.parametrize("poisoned", ["network.head.weight", "network.stem.0.1.running_mean"])
def test_divergence_is_said_and_never_stored(poisoned: str) -> None:
    """NaN in the loss or in a weight ends training with epoch, step, rate and advice, and no checkpoint holds it."""
    store = synthetic.memory_store()

    def poison(progress: Progress) -> None:
        if progress.done == 4 and "accuracy" in progress.note:
            training.learner.model.state_dict()[poisoned].fill_(torch.nan)

    with training_runs.acquire(store, RUN) as lease, torch.random.fork_rng([]):
        desk = small.desk(lease, store, RUN, on_progress=poison)
        training = small.train.begin(desk, small.dataset(), CONFIG, small.splits(), device=small.CPU)
        with pytest.raises(TrainingDiverged, match=r"in epoch 2, .* of 12 at a learning rate of .* try"):
            training.run()
    found = checkpoints.newest(store, RUN)
    assert found is not None
    assert found[0].position.step == 4
    assert all(tensor.isfinite().all() for group in found[1].values() for tensor in group.values())


class Unreliable(Store):
    """A store that refuses to write the states of certain steps."""

    refused: frozenset[int] = frozenset()

    def put(self, key: str, data: bytes) -> None:
        """Write, unless it is one of those."""
        if any(key.endswith(f"-{step:09d}/{checkpoints.STATE}") for step in self.refused):
            raise StoreUnavailable("away")
        super().put(key, data)


def unreliable(*refused: int) -> Unreliable:
    """A store that refuses to write the states of these steps."""
    store = Unreliable(MemoryStore(), "memory://zone")
    store.refused = frozenset(refused)
    return store


def test_training_survives_a_store_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint within an epoch that cannot be stored is given up, which the log says; the weights are the same."""
    training = small.run_once(unreliable(2, 3, 6), CONFIG, save_every_s=0.0)
    assert caplog.text.count("training goes on without the checkpoint") == 3
    assert small.equal(small.weights_of(training), small.weights_of(small.run_once(synthetic.memory_store(), CONFIG)))


def test_an_epoch_that_cannot_be_stored_ends_the_run_resumably() -> None:
    """When the store is away at an epoch's end the run fails, and goes on from the epoch before when run again."""
    store = unreliable(8)
    with pytest.raises(StoreUnavailable):
        small.run_once(store, CONFIG, run=RUN)
    store.refused = frozenset()
    resumed = small.run_once(store, CONFIG, run=RUN)
    assert small.equal(small.weights_of(resumed), small.weights_of(small.run_once(synthetic.memory_store(), CONFIG)))


def test_an_orphan_writes_nothing() -> None:
    """A process whose lease was taken over leaves the store as it was."""
    store = synthetic.memory_store()

    def take_over(progress: Progress) -> None:
        if progress.done == 8:
            key = f"{RUN}/lease.json"
            state = leases.LeaseState.from_json(store.get(key))
            store.put(key, state.model_copy(update={"holder": "successor", "fence": 2}).to_json())
            lease._renewed = -1e9  # noqa: SLF001 - as after a long sleep

    with training_runs.acquire(store, RUN) as lease, torch.random.fork_rng([]):
        desk = small.desk(lease, store, RUN, on_progress=take_over)
        training = small.train.begin(desk, small.dataset(), CONFIG, small.splits(), device=small.CPU)
        with pytest.raises(LeaseLost):
            training.run()
    found = checkpoints.newest(store, RUN)
    assert found is not None
    assert found[0].position.step == 8


def test_progress_tells_stage_steps_loss_and_speed() -> None:
    """Whoever listens hears the stage, the steps done of all, the loss and the images per second."""
    heard: list[Progress] = []
    small.run_once(synthetic.memory_store(), CONFIG, on_progress=heard.append)
    assert {(progress.stage, progress.total, progress.unit) for progress in heard} == {("training", STEPS, "steps")}
    assert "images/s" in heard[0].note
    assert heard[-1].done == STEPS


def test_more_ranks_than_a_batch_has_images_for() -> None:
    """A batch of which some rank would get a single image, which has no variance, is refused at once."""
    store = synthetic.memory_store()
    with training_runs.acquire(store, RUN) as lease:
        desk = small.desk(lease, store, RUN)
        with pytest.raises(InvalidInput, match="9 processes are too many for batches of 15 images"):
            small.train.begin(*(desk, small.dataset(), CONFIG, small.splits()), device=small.CPU, group=Ranks(0, 9))
