"""Training on more images than memory and disk may hold, from a real object store, killed and cut off."""

import json
import random
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import small_training as small
import synthetic
import torch
import trainings
from environs import environ
from gate import Gate
from trainings import Process, read_until, result_of

from pipeline import checkpoints, datasets, garbage, prepare, shards, train
from pipeline.artifacts import DatasetVersion, PrepareConfig, TrainConfig, TrainingRun
from pipeline.images import encode_png
from pipeline.settings import Settings
from pipeline.shard_window import slots_for
from pipeline.split_layout import layout_of
from pipeline.streamed import Streamed
from pipeline.unreferenced import Limits
from pipeline.zones import Zones, open_zones

RANK = Path(__file__).parents[1] / "streaming_rank.py"
SIDE = 32
IMAGES = 3000
CLASSES = 3
CONFIG = TrainConfig(epochs=4, batch_size=64, learning_rate=0.1, shift=1, width=4)
ROOM = {"memory_mb": 0, "disk_mb": 1}
"""Less than half of the training split, in memory nothing."""
PREPARE = PrepareConfig(size=SIDE)


def put(zones: Zones, numbers: range) -> None:
    """Put noisy pictures, as bright as their class is high; keys are sorted by class, and so are shards."""
    for _ in zones.images.write_many(_made(number) for number in numbers):
        pass


def _made(number: int) -> tuple[str, bytes]:
    label = number % CLASSES
    noise = np.random.default_rng(number).integers(0, 200, (SIDE, SIDE, 1))
    return f"pictures/{label}/{number}.png", encode_png((noise + 27 * label).astype(np.uint8))


@pytest.fixture(scope="module")
def settings(shared_zone_settings: Settings) -> Settings:
    """Where the dataset is, for all tests of this file; each has checkpoints of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 64 * SIDE**2)  # of small shards a small dataset has many
        zones = open_zones(shared_zone_settings)
        put(zones, range(IMAGES))
        prepare.prepare(zones, "pictures", PREPARE)
    return shared_zone_settings


@pytest.fixture
def own(settings: Settings, zone_settings: Settings) -> Settings:
    """The dataset with a checkpoints zone of this test's own."""
    return settings.model_copy(update={"checkpoints_url": f"{zone_settings.store_url}/checkpoints"})


@pytest.fixture(scope="module")
def version(settings: Settings) -> DatasetVersion:
    """The version that is trained on: some 2.2 MiB of training images in nearly fifty shards."""
    return datasets.latest(open_zones(settings).datasets, "pictures")


@pytest.fixture(scope="module")
def expected(
    settings: Settings, version: DatasetVersion, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingRun, dict[str, torch.Tensor]]:
    """The run in one piece, streamed in this process, and its weights."""
    zones = open_zones(settings)
    elsewhere = Zones(zones.images, zones.datasets, synthetic.memory_store(), zones.models, zones.predictions)
    run = train.train(elsewhere, version, CONFIG, device="cpu", scratch=tmp_path_factory.mktemp("scratch"), **ROOM)
    return run, checkpoints.load_weights(elsewhere.checkpoints, run)


def training(settings: Settings, scratch: Path, **options: object) -> AbstractContextManager[Process]:
    """A process that trains on the dataset with little room in ``scratch``."""
    where = {"SAFELIGHT_CHECKPOINTS_URL": settings.checkpoints_url or "", "TMPDIR": str(scratch)}
    return trainings.training(settings, CONFIG, ROOM | options, **where)


def assert_same(settings: Settings, run: TrainingRun, expected: tuple[TrainingRun, dict[str, torch.Tensor]]) -> None:
    """Weights and history are those of the run in one piece, bit for bit."""
    assert run.id == expected[0].id
    assert run.exact
    assert small.equal(checkpoints.load_weights(open_zones(settings).checkpoints, run), expected[1])
    assert [line.train_loss for line in run.history] == [line.train_loss for line in expected[0].history]
    assert run.environment["order"] == expected[0].environment["order"]


def disk_of(process: Process, folder: Path) -> int:
    """Bytes of disk that a process's files in a folder take, those without a name included."""
    taken = {}
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            if str(link.readlink()).startswith(str(folder)):
                taken[link.stat().st_ino] = link.stat().st_blocks * 512
    return sum(taken.values())


def test_it_fits_neither_into_memory_nor_onto_the_disk(version: DatasetVersion) -> None:
    """What the tests below train on is more than twice of what they may keep, and is learned all the same."""
    assert version.counts["train"] * SIDE**2 > 2 * (ROOM["disk_mb"] << 20)


def test_killed_within_an_epoch_and_resumed_it_ends_the_same(
    own: Settings, expected: tuple[TrainingRun, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """Killed twice at random moments, within its disk all the time, a streamed run has the very same weights."""
    seed = random.randrange(2**32)
    print(f"kill moments: seed {seed}")  # noqa: T201 - shown when it fails
    moments = random.Random(seed)
    disk = 0
    for _ in range(2):
        with training(own, tmp_path, save_every_s=0) as process:
            read_until(process, "progress: training")
            time.sleep(moments.uniform(0, 0.5))
            disk = max(disk, disk_of(process, tmp_path))
            assert process.poll() is None, "it finished before it could be killed: give it more to do"
            process.kill()
    with training(own, tmp_path) as process:
        run = result_of(process)
    assert_same(own, run, expected)
    assert not list(tmp_path.iterdir())
    if Path("/proc/self/fd").exists():
        assert 0 < disk <= ROOM["disk_mb"] << 20


def test_what_is_learned_is_what_all_at_hand_would_teach(
    settings: Settings, version: DatasetVersion, expected: tuple[TrainingRun, dict[str, torch.Tensor]]
) -> None:
    """From shards of one class each, training learns as well as from images in any order."""
    zones = open_zones(settings)
    elsewhere = Zones(zones.images, zones.datasets, synthetic.memory_store(), zones.models, zones.predictions)
    resident = train.train(elsewhere, version, CONFIG, device="cpu")
    reached = [max(line.validation_accuracy or 0 for line in run.history) for run in (expected[0], resident)]
    assert reached[0] > 0.9
    assert reached[0] > reached[1] - 0.05
    assert "order" not in resident.environment


def test_an_outage_within_an_epoch_costs_time_only(
    own: Settings, expected: tuple[TrainingRun, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """With the store away in the middle of an epoch, training waits for the images and ends the same."""
    with Gate(own.s3_endpoint or "") as gate:
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        behind = own.model_copy(update={"s3_endpoint": gate.url})
        with training(behind, tmp_path) as process:
            read_until(process, "progress: training")
            gate.shut()
            time.sleep(3)
            assert process.poll() is None
            gate.open.set()
            run = result_of(process)
        gate.shutdown()
    assert_same(own, run, expected)


def test_two_processes_stream_a_share_each(own: Settings, tmp_path: Path) -> None:
    """Two ranks that have half the room each train on every image together, each from shards of its own."""
    wish = {"result": f"{tmp_path}/", "config": CONFIG.model_dump(mode="json")} | ROOM
    more = {"SAFELIGHT_CHECKPOINTS_URL": own.checkpoints_url or "", "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RANK), json.dumps(wish)]
    told = environ(own, **more)
    ended = subprocess.run([sys.executable, *command], env=told, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    runs = [TrainingRun.model_validate_json((tmp_path / str(rank)).read_bytes()) for rank in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].environment["order"].split()[1:3] == ["shards", "mixed,"]
    assert max(line.validation_accuracy or 0 for line in runs[0].history) > 0.9


def test_an_altered_shard_ends_it_in_a_sentence(zones: Zones, settings: Settings, tmp_path: Path) -> None:
    """One altered byte in one shard is noticed when its turn comes, before any of its images is learned from."""
    stored = open_zones(settings).datasets
    key = sorted(found.key for found in stored.listing("pictures/shards"))[7]
    right = stored.get(key)
    try:
        stored.put(key, right[:-1] + bytes([right[-1] ^ 1]))
        with training(settings.model_copy(update={"checkpoints_url": zones.checkpoints.url}), tmp_path) as process:
            said = read_until(process, "Corrupted: ")
    finally:
        stored.put(key, right)
    assert key in said
    assert "was altered" in said


def test_preparing_and_collecting_garbage_beside_it_changes_nothing(
    zones: Zones, zone_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a version is streamed, newer ones are prepared and garbage goes: its images come as if nothing happened."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 16 * SIDE**2)
    put(zones, range(400))
    version = prepare.prepare(zones, "pictures", PREPARE).version
    seen: list[list[bytes]] = []
    for disturbed in (False, True):
        layout = layout_of(zones.datasets, version, "train")
        room = slots_for(2) * int(layout.sizes.max()) * SIDE**2
        with Streamed(zones.datasets, layout, tmp_path, disk_bytes=room) as examples:
            batches = (batch for batch in examples.batches(0, 0, 20, 0) if batch is not None)
            images = [next(batches).pixels.numpy().tobytes()]
            if disturbed:
                put(zones, range(400, 440))
                zones.images.delete([f"pictures/0/{number}.png" for number in range(0, 300, 3)])
                prepare.prepare(zones, "pictures", PREPARE)
                garbage.sweep(zones, zone_settings, Limits(), remove=True)
            seen.append(images + [batch.pixels.numpy().tobytes() for batch in batches])
    assert len(seen[0]) == 20
    assert seen[0] == seen[1]


def test_memory_does_not_grow_with_the_images(settings: Settings, version: DatasetVersion, tmp_path: Path) -> None:
    """Reading every image twice takes less memory than half of them would."""
    zones = open_zones(settings)
    layout = layout_of(zones.datasets, version, "train")
    process = psutil.Process()
    with Streamed(zones.datasets, layout, tmp_path, disk_bytes=ROOM["disk_mb"] << 20) as examples:
        grown = []
        for epoch in range(2):
            for batch in examples.batches(0, epoch, 40, 0):
                del batch
                examples.release()
                grown.append(process.memory_info().rss)
    assert max(grown) - grown[0] < 8 << 20
