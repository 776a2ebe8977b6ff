"""Training by the real torchrun: several processes that train as one, killed, stopped and started again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import counting_proxy
import numpy as np
import plain_ranks
import pytest
import safetensors.torch
import small_training as small
import synthetic
import torch
import torchrun
from torchrun import Torchrun

from pipeline import checkpoints, datasets, prepare, train
from pipeline.artifacts import DatasetVersion, PrepareConfig, TrainConfig, TrainingRun
from pipeline.images import encode_png
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

IMAGES = 240
CONFIG = TrainConfig(epochs=12, batch_size=24, learning_rate=0.1, shift=1)
WISH = {"dataset": "pictures", "config": CONFIG.model_dump(mode="json")}
TIMELESS = {"images_per_s", "seconds"}

pytestmark = pytest.mark.timeout(900)  # each rank is a process that imports torch, beside others on a busy machine

Start = Callable[..., AbstractContextManager[Torchrun]]


@dataclass(frozen=True)
class Trained:
    """A finished run with its best weights and everything in its newest checkpoint."""

    run: TrainingRun
    best: dict[str, torch.Tensor]
    newest: dict[str, dict[str, torch.Tensor]]

    def same(self, other: "Trained") -> bool:
        """Whether two runs came to the same bits, by the same history."""
        histories = [[line.model_dump(exclude=TIMELESS) for line in each.run.history] for each in (self, other)]
        groups = all(small.equal(self.newest[name], other.newest[name]) for name in ("weights", "optimizer"))
        return self.run.id == other.run.id and histories[0] == histories[1] and groups and self.best_is(other)

    def best_is(self, other: "Trained") -> bool:
        """Whether their best weights are the same bits."""
        return small.equal(self.best, other.best)


def trained(run: TrainingRun, zones: Zones) -> Trained:
    """A finished run as it is stored."""
    newest = checkpoints.newest(zones.checkpoints, run.id)
    assert newest is not None
    groups = {name: dict(group) for name, group in newest[1].items()}
    return Trained(run, checkpoints.load_weights(zones.checkpoints, run), groups)


@pytest.fixture(scope="module")
def prepared(shared_zone_settings: Settings) -> DatasetVersion:
    """A prepared dataset of 240 small images in three classes, for all tests here."""
    labels = np.arange(IMAGES) % 3
    zones = open_zones(shared_zone_settings)
    pictures = enumerate(small.pictures(labels))
    list(zones.images.write_many((f"pictures/{labels[at]}/{at}.png", encode_png(pixels)) for at, pixels in pictures))
    return prepare.prepare(zones, "pictures", PrepareConfig(size=small.SIDE)).version


@pytest.fixture
def here(shared_zone_settings: Settings, zone_settings: Settings, prepared: DatasetVersion) -> Settings:
    """Settings with that dataset and no checkpoints."""
    del prepared
    return shared_zone_settings.model_copy(update={"checkpoints_url": f"{zone_settings.store_url}/checkpoints"})


@pytest.fixture
def stored(here: Settings) -> Zones:
    """Where they are."""
    return open_zones(here)


@pytest.fixture
def start(here: Settings, tmp_path: Path) -> Start:
    """Starts so many ranks that train on it."""
    return lambda ranks, name="ranks", **options: torchrun.started(here, tmp_path / name, ranks, **WISH | options)


@pytest.fixture(scope="module")
def of_two(
    shared_zone_settings: Settings, prepared: DatasetVersion, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """What two ranks train that nothing disturbs."""
    del prepared
    with torchrun.started(shared_zone_settings, tmp_path_factory.mktemp("two"), 2, **WISH) as run:
        return trained(run.result(2), open_zones(shared_zone_settings))


def alone(zones: Zones, dataset: DatasetVersion) -> TrainingRun:
    """The same wish trained by this process, its checkpoints in memory."""
    elsewhere = Zones(zones.images, zones.datasets, synthetic.memory_store(), zones.models, zones.predictions)
    return train.train(elsewhere, dataset, CONFIG, device="cpu")


def wait_for_checkpoint(zones: Zones, ranks: Torchrun, fence: int = 1) -> None:
    """Until the holder of the lease of that number has left a checkpoint to go on from."""
    ends = time.monotonic() + torchrun.PATIENCE_S
    while not [key for key in (found.key for found in zones.checkpoints.listing()) if _of(key, fence)]:
        assert ranks.process.poll() is None, (ranks.folder / "torchrun").read_text()
        assert time.monotonic() < ends, ranks.lines(0)
        time.sleep(0.02)


def _of(key: str, fence: int) -> bool:
    return f"/{fence:06d}-" in key and key.endswith(checkpoints.MANIFEST)


def test_two_ranks_train_what_one_process_trains(of_two: Trained, stored: Zones, prepared: DatasetVersion) -> None:
    """Run, steps and schedule are those of one process, and so is, but for batch statistics, what is learned."""
    expected = alone(stored, prepared)
    run = of_two.run
    assert run.id == expected.id
    assert run.exact
    assert run.environment == expected.environment | {"processes": "2", "threads": "1"}
    assert [(line.step, line.learning_rate) for line in run.history] == [
        (line.step, line.learning_rate) for line in expected.history
    ]
    losses = np.array([[line.train_loss, line.validation_loss] for line in run.history])
    np.testing.assert_allclose(
        losses[-1], [expected.history[-1].train_loss, expected.history[-1].validation_loss], atol=0.1
    )
    assert run.history[-1].validation_accuracy == expected.history[-1].validation_accuracy == 1


def test_batches_stay_those_of_one_process(tmp_path: Path) -> None:
    """Where no batch statistics matter, ranks that accumulate gradients learn what one process does, up to rounding."""
    expected = plain_ranks.trained()
    command = [*torchrun.TORCHRUN, "--nproc-per-node=3", str(Path(plain_ranks.__file__)), str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    found = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    for name, tensor in small.weights_of(expected).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)
    history = json.loads((tmp_path / "history.json").read_text())
    for mine, theirs in zip(history, expected.position.history, strict=True):
        other = theirs.model_dump(exclude=TIMELESS)
        assert {name: mine[name] for name in other} == pytest.approx(other, abs=1e-4)


def test_killed_ranks_are_started_again(start: Start, stored: Zones, tmp_path: Path, here: Settings) -> None:
    """SIGKILL of the last and then of the first of three ranks: they are started again, and end with the same bits."""
    apart = here.model_copy(update={"checkpoints_url": f"{here.checkpoints_url}-undisturbed"})
    with torchrun.started(apart, tmp_path / "undisturbed", 3, **WISH) as ranks:
        expected = trained(ranks.result(3), open_zones(apart))
    with start(3, max_restarts=3, save_every_s=0) as ranks:
        for times, killed in enumerate((2, 0), 1):
            wait_for_checkpoint(stored, ranks, fence=times)
            os.kill(ranks.pid(killed), signal.SIGKILL)
        run = ranks.result(3)
    assert run.exact
    assert trained(run, stored).same(expected)


def test_all_stop_together(of_two: Trained, start: Start, stored: Zones) -> None:
    """SIGTERM of torchrun ends all ranks after the same step with a checkpoint; the same command ends the same."""
    with start(2, "first") as ranks:
        ranks.wait_for(0, "progress: training")
        ranks.process.terminate()
        said = {ranks.wait_for(rank, "TrainingStopped: ") for rank in range(2)}
        assert ranks.process.wait(timeout=torchrun.PATIENCE_S) != 0
    assert len(said) == 1
    assert "the same command goes on from there" in said.pop()
    with start(2, "second") as ranks:
        assert trained(ranks.result(2), stored).same(of_two)


def test_another_number_of_ranks_goes_on(start: Start, stored: Zones, prepared: DatasetVersion) -> None:
    """Killed with all its ranks, a training is gone on with by one process, whose result is not exact."""
    with start(2, save_every_s=0) as ranks:
        wait_for_checkpoint(stored, ranks)
        ranks.kill()
    newest = checkpoints.newest(stored.checkpoints, alone(stored, prepared).id)
    assert newest is not None
    run = train.train(stored, prepared, CONFIG, device="cpu")
    assert run.history[-1].validation_accuracy == 1
    assert not run.exact
    assert run.environment["processes"] == "1"
    assert [line.step for line in run.history] == [line.step for line in alone(stored, prepared).history]


def test_a_silent_rank_is_given_up(start: Start, stored: Zones) -> None:
    """Stopped with SIGSTOP, a rank is waited for only so long; then the other one leaves with a sentence."""
    with start(2, save_every_s=0, silence_s=5) as ranks:
        wait_for_checkpoint(stored, ranks)
        silent = ranks.pid(1)
        os.kill(silent, signal.SIGSTOP)
        said = ranks.wait_for(0, "RankLost: ")
        os.kill(silent, signal.SIGKILL)
        assert ranks.process.wait(timeout=torchrun.PATIENCE_S) != 0
    assert said.startswith("Process 1 of 2 stops, because another one of this training ended or did not answer for 5 s")


def test_the_command_line_speaks_once(here: Settings) -> None:
    """`torchrun … -m pipeline train` prints one result, and says its progress once."""
    options = ("--epochs", "1", "--batch-size", "24", "--json")
    command = [*torchrun.TORCHRUN, "--nproc-per-node=2", "-m", "pipeline", "train", "pictures", *options]
    environ = torchrun.told(here) | {"SAFELIGHT_DEVICE": "cpu"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    run = TrainingRun.model_validate(json.loads(done.stdout))
    assert run.environment["processes"] == "2"
    steps = run.history[-1].step
    assert done.stderr.count(f"training: {steps}/{steps} steps") == 1


def test_each_rank_reads_its_part_over_the_network(zone_settings: Settings) -> None:
    """Of a split in many shards each of four ranks reads about a quarter of the bytes, all hardly more than one."""
    with counting_proxy.counting(zone_settings.s3_endpoint or "") as (url, counts):
        zones = open_zones(zone_settings.model_copy(update={"s3_endpoint": url}))
        noise = ((f"noise/{at % 2}/{at}.png", synthetic.png(at, 128, 128, 3)) for at in range(400))
        list(zones.images.write_many(noise))
        version = prepare.prepare(zones, "noise", PrepareConfig(size=128, test_share=0.1)).version

        def read(part: int, parts: int) -> int:
            counts.clear()
            datasets.load_split(zones.datasets, version, "train", part=part, parts=parts)
            return counts.bytes["GET", "datasets"]

        whole, quarters = read(0, 1), [read(part, 4) for part in range(4)]
    border = 4 << 20
    assert max(quarters) < whole / 4 + border
    assert sum(quarters) < whole + 3 * border
