"""Training that is killed, stopped, put to sleep and started twice, against a real object store."""

import random
import signal
import threading
import time
from contextlib import AbstractContextManager

import numpy as np
import pytest
import small_training as small
import synthetic
import trainings
from gate import Gate
from trainings import Process, read_until, result_of

from pipeline import checkpoints, prepare, train, training_runs
from pipeline.artifacts import DatasetVersion, PrepareConfig, TrainConfig, TrainingRun
from pipeline.images import encode_png
from pipeline.settings import Settings
from pipeline.zones import Zones

CONFIG = TrainConfig(epochs=12, batch_size=16, learning_rate=0.2, shift=1)
KILLS = 6


@pytest.fixture
def dataset(zones: Zones) -> DatasetVersion:
    """A prepared dataset of 240 small images in three classes, stored in this test's zones."""
    labels = np.arange(240) % 3
    pictures = enumerate(small.pictures(labels))
    list(zones.images.write_many((f"pictures/{labels[at]}/{at}.png", encode_png(pixels)) for at, pixels in pictures))
    return prepare.prepare(zones, "pictures", PrepareConfig(size=small.SIDE)).version


def training(settings: Settings, **options: object) -> AbstractContextManager[Process]:
    """A process that trains on the dataset."""
    return trainings.training(settings, CONFIG, options)


def uninterrupted(zones: Zones, dataset: DatasetVersion) -> tuple[TrainingRun, Zones]:
    """The same wish trained in one go in this process, its checkpoints in memory."""
    elsewhere = Zones(zones.images, zones.datasets, synthetic.memory_store(), zones.models, zones.predictions)
    return train.train(elsewhere, dataset, CONFIG, device="cpu"), elsewhere


def assert_same(zones: Zones, run: TrainingRun, elsewhere: Zones, expected: TrainingRun) -> None:
    """Best weights, and everything in the newest checkpoint, are the same bit for bit, and so is the history."""
    assert run.id == expected.id
    assert run.exact
    assert run.checkpoint.rpartition("-")[2] == expected.checkpoint.rpartition("-")[2]
    stored = [checkpoints.load_weights(each.checkpoints, run_) for each, run_ in ((zones, run), (elsewhere, expected))]
    assert small.equal(*stored)
    newest = [checkpoints.newest(each.checkpoints, run.id) for each in (zones, elsewhere)]
    assert newest[0] is not None
    assert newest[1] is not None
    for group in ("weights", "optimizer"):
        assert small.equal(dict(newest[0][1][group]), dict(newest[1][1][group]))
    timeless = {"images_per_s", "seconds"}
    assert [line.model_dump(exclude=timeless) for line in run.history] == [
        line.model_dump(exclude=timeless) for line in expected.history
    ]


def test_killed_at_random_moments(zones: Zones, zone_settings: Settings, dataset: DatasetVersion) -> None:
    """Killed with SIGKILL six times, most of the time while saving, a run ends with the very same weights."""
    seed = random.randrange(2**32)
    print(f"kill moments: seed {seed}")  # noqa: T201 - shown when it fails
    moments = random.Random(seed)
    expected, elsewhere = uninterrupted(zones, dataset)
    for _ in range(KILLS):
        with training(zone_settings, save_every_s=0) as process:
            read_until(process, "progress: training")
            time.sleep(moments.uniform(0, 0.5))
            assert process.poll() is None, "it finished before it could be killed: give it more to do"
            process.kill()
    with training(zone_settings) as process:
        run = result_of(process)
    assert_same(zones, run, elsewhere, expected)
    fence = checkpoints.newest(zones.checkpoints, run.id)
    assert fence is not None
    assert fence[0].fence == KILLS + 1


def test_sigterm_leaves_within_ten_seconds(zones: Zones, zone_settings: Settings, dataset: DatasetVersion) -> None:
    """SIGTERM ends training with a checkpoint and a sentence, and the resumed run is the same bit for bit."""
    expected, elsewhere = uninterrupted(zones, dataset)
    with training(zone_settings) as process:
        read_until(process, "progress: training")
        began = time.monotonic()
        process.terminate()
        said = read_until(process, "TrainingStopped")
        assert process.wait(timeout=10) == 1
    assert time.monotonic() - began < 10
    assert "the same command goes on from there" in said
    with training(zone_settings) as process:
        read_until(process, "log: training run")
        run = result_of(process)
    assert_same(zones, run, elsewhere, expected)


def test_an_orphan_that_wakes_up_completes_nothing(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion
) -> None:
    """Stopped with SIGSTOP and succeeded by another process, a process that wakes up completes nothing."""
    expected, elsewhere = uninterrupted(zones, dataset)
    with training(zone_settings, save_every_s=0, lease_ttl_s=2) as orphan:
        read_until(orphan, "progress: training")
        orphan.send_signal(signal.SIGSTOP)
        with training(zone_settings) as successor:
            read_until(successor, f"progress: waiting for process {orphan.pid} on")
            run = result_of(successor)
        before = {found.key: found.etag for found in zones.checkpoints.listing(run.id)}
        orphan.send_signal(signal.SIGCONT)
        read_until(orphan, "LeaseLost: ")
        assert orphan.wait(timeout=30) == 1
    after = {found.key: found.etag for found in zones.checkpoints.listing(run.id)}
    # A request that was under way when it fell asleep may still arrive: without a manifest it means nothing.
    late = {key for key in after.keys() - before.keys() if "/000001-" in key and key.endswith(checkpoints.STATE)}
    assert {key: etag for key, etag in after.items() if key not in late} == before
    assert_same(zones, run, elsewhere, expected)


def test_two_at_once_train_once(zones: Zones, zone_settings: Settings, dataset: DatasetVersion) -> None:
    """Of two processes with one wish the second waits, and both report the one result."""
    with training(zone_settings) as first:
        read_until(first, "progress: training")
        first.send_signal(signal.SIGSTOP)
        with training(zone_settings) as second:
            read_until(second, f"progress: waiting for process {first.pid} on")
            first.send_signal(signal.SIGCONT)
            runs = result_of(first), result_of(second)
    assert runs[0] == runs[1] == training_runs.latest(zones.checkpoints, dataset.dataset)


def test_an_outage_longer_than_the_lease_costs_time_only(
    zones: Zones, zone_settings: Settings, dataset: DatasetVersion
) -> None:
    """With the store away for three times the lease's ttl, training waits, keeps its lease and ends the same."""
    expected, elsewhere = uninterrupted(zones, dataset)
    with Gate(zone_settings.s3_endpoint or "") as gate:
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        behind = zone_settings.model_copy(update={"s3_endpoint": gate.url})
        with training(behind, save_every_s=0, lease_ttl_s=2) as process:
            read_until(process, "progress: training")
            gate.shut()
            time.sleep(6)
            assert process.poll() is None
            gate.open.set()
            run = result_of(process)
        gate.shutdown()
    assert_same(zones, run, elsewhere, expected)
    newest = checkpoints.newest(zones.checkpoints, run.id)
    assert newest is not None
    assert newest[0].fence == 1
