"""Dataset version and configuration → trained weights; killed at any moment, it goes on where it was.

- **Bit for bit** on the CPU: a resumed run ends with the very weights of an uninterrupted one, given the same machine
  type, library versions and number of threads. These are recorded; where they differ, or on a GPU, a resumed run goes
  on and its result says that it is not exact.
- The training split lies on the device as uint8 in the model's own layout; a batch is one indexing. A split that memory
  shall not hold lies in a local file instead, in the same order, and the weights come out the same. What no disk holds
  is streamed (``streamed``), in an order of its own.
- The test split is never read here.
- **Several ranks** (``ranks``) train as one: the first holds the lease, says which run it is, and writes; the others
  follow. A run is the same whoever trains it: its id knows nothing of ranks, and another number of them may go on with
  it, though not bit for bit.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline import augment, checkpoints, leases, model, training_runs
from pipeline.artifacts import DatasetVersion, Split, TrainConfig, TrainingRun, utc_now
from pipeline.datasets import LoadedSplit
from pipeline.errors import InvalidInput, TrainingStopped
from pipeline.examples import MINIMUM_PART, Examples, Resident
from pipeline.learner import Learner, able, choose_device, keep_freed_memory, plan
from pipeline.leases import Lease
from pipeline.pixel_places import PLACED, placed_splits
from pipeline.progress import OnProgress, Progress, silent
from pipeline.ranks import ALONE, Ranks
from pipeline.shared_examples import Shared
from pipeline.starting_point import StartingWeights, read_starting_weights, sample_of, statistics
from pipeline.store import Store
from pipeline.streamed import Streamed
from pipeline.training_loop import SAVE_EVERY_S, Desk, Training
from pipeline.zones import Zones

WAIT, BEGIN, FINISHED = "wait", "begin", "finished"
"""What the first rank says to the others, the last two with the training run's id."""


@dataclass(frozen=True, slots=True)
class Room:
    """What this process trains with.

    Attributes:
        device: where it computes.
        group: the ranks that it is one of.
        images_at_once: how many images of a step it computes together; None: all of them.
        memory_mb: how much memory the pixels of a split may take, in MiB.
        disk_mb: how much disk they may take beyond that, in MiB; None: what is free.
        scratch: folder for it; None: the system's own.
    """

    device: torch.device
    group: Ranks = ALONE
    images_at_once: int | None = None
    memory_mb: int = 4096
    disk_mb: int | None = None
    scratch: Path | None = None


def never() -> bool:
    """Do not stop: the default of ``train``."""
    return False


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """A ``should_stop`` that is true once this process got SIGTERM; for the main thread, which alone gets signals."""
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        yield lambda: bool(got)
    finally:
        signal.signal(signal.SIGTERM, before)


def train(
    zones: Zones,
    dataset: DatasetVersion,
    config: TrainConfig,
    *,
    device: str = "auto",
    memory_mb: int = 4096,
    disk_mb: int | None = None,
    scratch: Path | None = None,
    images_at_once: int | None = None,
    fresh: bool | str = False,
    group: Ranks = ALONE,
    on_progress: OnProgress = silent,
    should_stop: Callable[[], bool] = never,
    save_every_s: float = SAVE_EVERY_S,
    lease_ttl_s: float = leases.TTL_S,
) -> TrainingRun:
    """Train, or go on, or find what was trained already.

    Args:
        zones: reads datasets and checkpoints, writes checkpoints.
        dataset: what to train on.
        config: how.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        memory_mb: how much memory the pixels of a split may take, in MiB; more lie in a file in ``scratch``.
        disk_mb: how much disk they may take there, in MiB; more are streamed from the store. By default what is free.
        scratch: a folder of this machine; by default the system's own.
        images_at_once: how many images of a batch are computed together, for less memory; by default all.
        fresh: train anew where the same wish was fulfilled before. An unfinished run is still resumed: its weights will
            be those that it would have had without the interruption. A text names the repetition: whoever asks for that
            one again finds it, also when it is finished.
        group: the ranks that train together; each calls this with the same arguments.
        on_progress: told at least once a second, or once a step where steps are longer.
        should_stop: asked at each step.
        save_every_s: seconds between checkpoints within an epoch; each epoch ends with one anyway.
        lease_ttl_s: seconds of silence after which another process may take over.

    Returns:
        The finished run; ``checkpoints.load_weights`` reads its best weights.

    Raises:
        InvalidInput: the starting weights, the device or the number of images will not do.
        TrainingStopped: ``should_stop`` said so; a checkpoint holds where training stood.
        TrainingDiverged: the loss became NaN or infinite.
        LeaseLost: another process took over meanwhile.
        RuntimeError: another rank ended, or did not answer; ``ranks.joined`` makes a sentence of it.
        StoreError: the store stayed away for longer than it is waited for.
    """
    room = Room(group.device(choose_device(device)), group, images_at_once, memory_mb, disk_mb, scratch)
    store = zones.checkpoints
    if not group.first:
        return _follow(zones, dataset, config, room, should_stop)
    starting = read_starting_weights(store, config.starting_weights)
    run = _wanted_run(store, dataset, config, starting.sha256 if starting else None, fresh=fresh)
    if training_runs.is_finished(store, run):
        group.say(f"{FINISHED} {run}")
        return training_runs.find(store, run)
    report = _stoppable(on_progress, should_stop, run)
    with training_runs.acquire(store, run, ttl_s=lease_ttl_s, on_progress=_saying(group, report)) as lease:
        if training_runs.is_finished(store, run):
            lease.end()
            group.say(f"{FINISHED} {run}")
            return training_runs.find(store, run)
        group.say(f"{BEGIN} {run}")
        desk = Desk(store, lease, run, on_progress, should_stop, save_every_s)
        training = _trained(zones, desk, dataset, config, room, starting=starting)
        result = _finish(desk, lease, dataset, config, training)
        group.say(f"{FINISHED} {run}")
        return result


def _follow(
    zones: Zones, dataset: DatasetVersion, config: TrainConfig, room: Room, should_stop: Callable[[], bool]
) -> TrainingRun:
    """Any rank but the first: do what that one says."""
    while (said := room.group.listen()) == WAIT:
        pass
    word, _, run = said.partition(" ")
    if word == BEGIN:
        _trained(zones, Desk(zones.checkpoints, None, run, silent, should_stop), dataset, config, room)
        room.group.listen()  # until the result is written
    return training_runs.find(zones.checkpoints, run)


def _saying(group: Ranks, on_progress: OnProgress) -> OnProgress:
    """``on_progress`` of the first rank, while it waits for the lease and the others for what it says."""

    def report(progress: Progress) -> None:
        on_progress(progress)
        group.say(WAIT)

    return report


def _trained(
    zones: Zones,
    desk: Desk,
    dataset: DatasetVersion,
    config: TrainConfig,
    room: Room,
    *,
    starting: StartingWeights | None = None,
) -> Training:
    """Read this rank's images, and train from where the run stands to its end."""
    places = placed_splits(
        zones.datasets,
        dataset,
        memory_mb=room.memory_mb,
        disk_mb=room.disk_mb,
        scratch=room.scratch,
        group=room.group,
        on_progress=_stoppable(desk.on_progress, desk.should_stop, desk.run),
    )
    with places as splits, torch.random.fork_rng(_gpus(room)):
        try:
            training = begin(
                *(desk, dataset, config, splits),
                starting=starting,
                device=room.device,
                group=room.group,
                images_at_once=room.images_at_once,
            )
            training.run()
        except torch.OutOfMemoryError as error:
            raise InvalidInput(
                "Training does not fit into the memory of the GPU: set SAFELIGHT_TRAINING_IMAGES_AT_ONCE to a part "
                "of the batch, lower batch_size, or prepare smaller images."
            ) from error
    return training


def _gpus(room: Room) -> list[int]:
    """Those whose random numbers this process draws: one of several ranks has its own alone."""
    if room.group.several:
        return [] if room.device.index is None else [room.device.index]
    return list(range(torch.cuda.device_count()))


def _wanted_run(
    store: Store, dataset: DatasetVersion, config: TrainConfig, weights_sha256: str | None, *, fresh: bool | str
) -> str:
    """The run to work on: the wish's own, the repetition of that name, or the first one that is not finished."""
    if isinstance(fresh, str):
        return training_runs.run_id(dataset, config, weights_sha256, nonce=fresh)
    run = training_runs.run_id(dataset, config, weights_sha256)
    repetition = 0
    while fresh and training_runs.is_finished(store, run):
        repetition += 1
        run = training_runs.run_id(dataset, config, weights_sha256, nonce=str(repetition))
    return run


def _stoppable(on_progress: OnProgress, should_stop: Callable[[], bool], run: str) -> OnProgress:
    """``on_progress``, which also ends what has no step to be asked at: waiting and loading."""

    def report(progress: Progress) -> None:
        on_progress(progress)
        if should_stop():
            raise TrainingStopped(f"Training run {run} was asked to stop before it began; the same command starts it.")

    return report


def begin(
    desk: Desk,
    dataset: DatasetVersion,
    config: TrainConfig,
    splits: Mapping[Split, LoadedSplit | Streamed],
    *,
    starting: StartingWeights | None = None,
    device: torch.device,
    group: Ranks = ALONE,
    images_at_once: int | None = None,
) -> Training:
    """A training run before its first step; fresh weights depend on the seed alone.

    It sets torch's global generators, which the caller keeps from others (``torch.random.fork_rng``), and how this
    process keeps the memory that it frees.
    """
    keep_freed_memory()
    work = plan(config, len(splits["train"].labels), dataset.pixels)
    if work.images // work.batches < MINIMUM_PART * group.world:
        raise InvalidInput(
            f"{group.world} processes are too many for batches of {work.images // work.batches} images, of which each "
            f"needs {MINIMUM_PART}: start fewer, or choose a larger batch_size."
        )
    torch.manual_seed(augment.seed_of(config.seed, "weights"))
    net = model.build(config.architecture, len(dataset.classes), dataset.pixels, config.width)
    few = torch.from_numpy(splits["train"].sample(2))
    if starting is not None:
        model.load_starting_weights(net, starting.tensors, starting.source)
    elif config.starting_weights is None:
        model.set_normalisation(net, *statistics(torch.from_numpy(sample_of(splits["train"], group)), group))
    learner = Learner(net, config, able(net, device, few), ranks=group, images_at_once=images_at_once)
    learner.settle(few)
    training, validation = (_on(learner.device, splits[split], group, work.epochs) for split in PLACED)
    return Training(desk, learner, work, config, training=training, validation=validation, ranks=group)


def _on(device: torch.device, loaded: LoadedSplit | Streamed, group: Ranks, epochs: int) -> Examples:
    if isinstance(loaded, Streamed):
        return loaded.on(device, epochs)
    pixels, labels = torch.from_numpy(loaded.pixels), torch.from_numpy(loaded.labels).to(device)
    # What memory shall not hold goes to the device batch by batch.
    held = pixels if loaded.file else pixels.to(device)
    if loaded.places is None:
        return Resident(held, labels, loaded.release)
    return Shared(held, labels, torch.from_numpy(loaded.places), group, loaded.release)


def _finish(desk: Desk, lease: Lease, dataset: DatasetVersion, config: TrainConfig, training: Training) -> TrainingRun:
    """Write the result, once the best checkpoint has been read back."""
    position = training.position
    checkpoints.load(desk.store, position.best)
    lease.check()
    result = TrainingRun(
        id=desk.run,
        dataset=dataset,
        config=config,
        checkpoint=position.best,
        history=position.history,
        exact=position.exact,
        environment=training.environment,
        finished_at=utc_now(),
    )
    finished = training_runs.finish(desk.store, result)
    lease.end()
    return finished
