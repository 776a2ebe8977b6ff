"""A split that is streamed from the store: what comes, in which order, and how it is checked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_training as small
import synthetic
import torch

from pipeline import datasets, prepare, shards
from pipeline.artifacts import DatasetVersion, PrepareConfig, Split, TrainConfig
from pipeline.errors import Corrupted, InvalidInput, TrainingStopped
from pipeline.images import encode_png
from pipeline.ranks import ALONE, Ranks
from pipeline.shard_window import slots_for
from pipeline.split_layout import layout_of, read_images
from pipeline.streamed import Streamed
from pipeline.train import never
from pipeline.training_loop import Training
from pipeline.zones import Zones

CPU = torch.device("cpu")
IMAGES = 400
COUNT = 9
CONFIG = TrainConfig(epochs=2, batch_size=32, learning_rate=0.2, shift=1)
Seen = list[tuple[int, bytes]]


@pytest.fixture
def zones() -> Zones:
    """Empty zones in memory."""
    return synthetic.memory_zones()


@pytest.fixture
def version(zones: Zones, monkeypatch: pytest.MonkeyPatch) -> DatasetVersion:
    """Images in four classes and some forty shards, each of one class, as keys are sorted; a few are in colour."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * small.SIDE**2)
    labels = np.arange(IMAGES) % 4
    for number, (label, pixels) in enumerate(zip(labels, small.pictures(labels), strict=True)):
        zones.images.put(f"pictures/{label}/{number}.png", encode_png(pixels))
    for number in range(5):
        zones.images.put(f"pictures/0/rgb-{number}.png", synthetic.png(number, small.SIDE, small.SIDE, 3))
    return prepare.prepare(zones, "pictures", PrepareConfig(size=small.SIDE)).version


@contextmanager
def opened(
    zones: Zones,
    version: DatasetVersion,
    folder: Path,
    *,
    slots: int = slots_for(2),
    split: Split = "train",
    group: Ranks = ALONE,
    epochs: int = 3,
) -> Iterator[Streamed]:
    """A split that is streamed through room for so many shards."""
    layout = layout_of(zones.datasets, version, split)
    room = slots * int(layout.sizes.max()) * int(np.prod(datasets.shape_of(version)))
    with Streamed(zones.datasets, layout, folder, disk_bytes=room, group=group) as examples:
        yield examples.on(CPU, epochs)


def drawn(examples: Streamed, epoch: int = 0, done: int = 0, seed: int = 0) -> list[Seen]:
    """The batches of an epoch: number and pixels of each image."""
    batches: list[Seen] = []
    for batch in examples.batches(seed, epoch, COUNT, done):
        if batch is not None:
            pixels = batch.pixels[batch.at].numpy()
            batches.append([(index, one.tobytes()) for index, one in zip(batch.index.tolist(), pixels, strict=True)])
        examples.release()
    return batches


def known(zones: Zones, version: DatasetVersion, split: Split = "train") -> list[tuple[int, bytes]]:
    """Label and pixels of every image of a split, sorted."""
    loaded = datasets.load_split(zones.datasets, version, split)
    return sorted((int(label), one.tobytes()) for label, one in zip(loaded.labels, loaded.pixels, strict=True))


def test_each_epoch_has_every_image_once_with_its_label(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Images and labels are those of the split, in another order in each epoch, in batches of nearly one size."""
    with opened(zones, version, tmp_path) as examples:
        epochs = [drawn(examples, epoch) for epoch in range(3)]
        labels = examples.labels.tolist()
    assert len(labels) == version.counts["train"]
    for batches in epochs:
        sizes = {len(batch) for batch in batches}
        assert len(batches) == COUNT
        assert max(sizes) - min(sizes) <= 1
        seen = [image for batch in batches for image in batch]
        assert sorted((labels[index], pixels) for index, pixels in seen) == known(zones, version)
        assert sorted(index for index, _ in seen) == list(range(len(labels)))
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_follows_from_seed_epoch_and_step(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Whatever was read before, however much room there is beyond the window, a batch is the same; seeds differ."""
    with opened(zones, version, tmp_path) as examples:
        whole = [drawn(examples, epoch) for epoch in range(3)]
    for epoch, done in ((0, 0), (0, 4), (1, 0), (1, COUNT - 1), (2, 5)):
        with opened(zones, version, tmp_path) as resumed:
            assert drawn(resumed, epoch, done) == whole[epoch][done:]
            assert epoch == 2 or drawn(resumed, epoch + 1) == whole[epoch + 1]
    with opened(zones, version, tmp_path) as examples:
        assert drawn(examples, 0, seed=1) != whole[0]


def test_more_room_is_no_other_order_unless_the_window_widens(
    zones: Zones, version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the window's bound reached, room changes how often shards are fetched and nothing else."""
    monkeypatch.setattr("pipeline.streamed.WINDOW", 4)
    found, fetched, facts = [], [], []
    for slots in (slots_for(2), slots_for(2) + 20):
        with opened(zones, version, tmp_path, slots=slots) as examples:
            found.append([drawn(examples, epoch) for epoch in range(3)])
            fetched.append(examples.fetched)
            facts.append(examples.facts)
    assert found[0] == found[1]
    assert facts[0] == facts[1]
    assert fetched[0] > fetched[1]


def test_a_narrower_window_is_said(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """What the order depends on is told, so that a run that is resumed with less room knows."""
    facts = []
    for slots in (slots_for(2), slots_for(3)):
        with opened(zones, version, tmp_path, slots=slots) as examples:
            facts.append(examples.facts["order"])
    assert facts[0].startswith("4 shards mixed")
    assert facts[1].startswith("6 shards mixed")


def test_several_processes_share_an_epoch(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Each of three reads about a third of the shards, and together they have every image once."""
    together, fetched = [], []
    for rank in range(3):
        with opened(zones, version, tmp_path, group=Ranks(rank, 3), epochs=1) as examples:
            together += [image for batch in drawn(examples) for image in batch]
            fetched.append(examples.fetched)
            total = len(examples.labels)
    assert sorted(index for index, _ in together) == list(range(total))
    shards_in_all = len(list(zones.datasets.listing("pictures/shards")))
    assert sum(fetched) <= shards_in_all
    assert max(fetched) - min(fetched) <= 1


def test_judged_images_come_in_turn(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Read in turn, all images come in the same order every time, no more at once than asked for."""
    with opened(zones, version, tmp_path, slots=slots_for(1)) as examples:
        rounds = []
        for _ in range(3):
            parts = [part for part in examples.in_turn(6, 1 << 20) if part is not None]
            assert max(len(index) for index, _ in parts) <= 6
            labels = torch.cat([examples.labels[index] for index, _ in parts]).tolist()
            pixels = torch.cat([each for _, each in parts]).numpy()
            rounds.append([(label, one.tobytes()) for label, one in zip(labels, pixels, strict=True)])
    assert sorted(rounds[0]) == known(zones, version)
    assert rounds[0] == rounds[1] == rounds[2]


def test_the_room_is_a_file_without_a_name_within_its_bound(
    zones: Zones, version: DatasetVersion, tmp_path: Path
) -> None:
    """Nothing can be seen in the folder, before, meanwhile and after."""
    with opened(zones, version, tmp_path) as examples:
        drawn(examples)
        assert not list(tmp_path.iterdir())
        assert examples.half == 2


def test_a_sample_is_of_many_shards(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Statistics are measured on images of all classes, the same ones every time."""
    with opened(zones, version, tmp_path) as examples:
        sample = examples.sample(100)
        assert np.array_equal(sample, examples.sample(100))
        assert 60 <= len(sample) <= 100
        every = {pixels: label for label, pixels in known(zones, version)}
        assert len({every[one.tobytes()] for one in sample}) == 4


def test_an_altered_shard_is_noticed(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """One changed byte in a shard is Corrupted before an image of it is used; a shard that is gone is, too."""
    stored = sorted(found.key for found in zones.datasets.listing("pictures/shards"))
    for key in stored[::2]:
        data = bytearray(zones.datasets.get(key))
        data[-5] ^= 1
        zones.datasets.put(key, bytes(data))
    with pytest.raises(Corrupted, match="was altered"), opened(zones, version, tmp_path) as examples:
        drawn(examples)
    zones.datasets.delete(stored)
    with pytest.raises(Corrupted, match="is gone"), opened(zones, version, tmp_path) as examples:
        drawn(examples)


def test_an_index_that_points_elsewhere_is_noticed(zones: Zones, version: DatasetVersion) -> None:
    """Rows that hold other images than the index says are Corrupted."""
    layout = layout_of(zones.datasets, version, "train")
    swapped = layout.rows.copy()
    swapped[:2] = swapped[[1, 0]]
    assert layout.starts[1] >= 2
    with pytest.raises(Corrupted, match="holds other images"):
        read_images(zones.datasets, replace(layout, rows=swapped), 0)


def test_too_little_room_is_one_sentence(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """A person learns how much disk is needed at least, and which setting says so."""
    layout = layout_of(zones.datasets, version, "train")
    with pytest.raises(InvalidInput, match=r"^0 MiB of disk are too few .* SAFELIGHT_TRAINING_DISK_MB to 1 or more"):
        Streamed(zones.datasets, layout, tmp_path, disk_bytes=100)


def test_a_run_stopped_at_each_step_ends_the_same(zones: Zones, version: DatasetVersion, tmp_path: Path) -> None:
    """Trained in pieces of a few steps, each with everything opened anew, it has the weights of one in one piece."""
    store = synthetic.memory_store()

    def trained(run: str, should_stop: Callable[[], bool]) -> Training:
        with opened(zones, version, tmp_path) as train, opened(zones, version, tmp_path, split="validation") as held:
            data = {"train": train, "validation": held}
            return small.run_once(store, CONFIG, data, run=run, version=version, should_stop=should_stop)

    whole = trained("whole", never)
    pieces = 0
    resumed = None
    while resumed is None:
        asked = iter([False] * (2 + pieces))  # more each time: judging asks as well, and begins anew
        pieces += 1
        with suppress(TrainingStopped):
            resumed = trained("pieces", lambda asked=asked: next(asked, True))
    assert pieces > 5
    assert resumed.position.exact
    assert resumed.environment["order"].startswith("4 shards mixed")
    assert small.equal(small.weights_of(whole), small.weights_of(resumed))


def test_a_run_resumed_with_another_window_says_that_it_is_not_exact(
    zones: Zones, version: DatasetVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With room for a wider window the order is another one: training goes on, and result and log say so."""
    store = synthetic.memory_store()
    held = datasets.load_split(zones.datasets, version, "validation")
    asked = iter([False] * 3)

    def trained(slots: int, should_stop: Callable[[], bool]) -> Training:
        with opened(zones, version, tmp_path, slots=slots) as train:
            data = {"train": train, "validation": held}
            return small.run_once(store, CONFIG, data, run="wider", version=version, should_stop=should_stop)

    with pytest.raises(TrainingStopped):
        trained(slots_for(2), lambda: next(asked, True))
    resumed = trained(slots_for(4), never)
    assert not resumed.position.exact
    assert "order was 4 shards mixed" in caplog.text
    assert len(resumed.position.history) == CONFIG.epochs
