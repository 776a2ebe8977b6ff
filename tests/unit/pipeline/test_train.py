import os
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import small_training as small
import synthetic
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import checkpoints, prepare, starting_point, train, training_runs
from pipeline.artifacts import DatasetVersion, PrepareConfig, TrainConfig
from pipeline.errors import InvalidInput, TrainingStopped
from pipeline.images import encode_png
from pipeline.progress import Progress
from pipeline.zones import Zones

CONFIG = TrainConfig(epochs=2, batch_size=16, learning_rate=0.2)


@pytest.fixture
def zones() -> Zones:
    """Empty zones in memory."""
    return Zones(*(synthetic.memory_store() for _ in range(5)))


@pytest.fixture
def dataset(zones: Zones) -> DatasetVersion:
    """A prepared dataset of 80 small images in two classes."""
    labels = np.arange(80) % 2
    for number, picture in enumerate(small.pictures(labels)):
        zones.images.put(f"pictures/{'ab'[labels[number]]}/{number}.png", encode_png(picture))
    return prepare.prepare(zones, "pictures", PrepareConfig(size=small.SIDE)).version


def test_a_prepared_dataset_is_trained(zones: Zones, dataset: DatasetVersion) -> None:
    """From what preparation stored to a finished run that is found again, with weights, history and surroundings."""
    run = train.train(zones, dataset, CONFIG, device="cpu")
    assert run == training_runs.find(zones.checkpoints, run.id) == training_runs.latest(zones.checkpoints, "pictures")
    assert run.exact
    assert [line.epoch for line in run.history] == [1, 2]
    assert run.environment["torch"] == torch.__version__
    assert run.environment["threads"] == str(torch.get_num_threads())
    weights = checkpoints.load_weights(zones.checkpoints, run)
    assert weights["network.head.weight"].shape[0] == 2


def test_without_a_validation_split(zones: Zones, dataset: DatasetVersion) -> None:
    """A dataset prepared without held-out images is trained too, and its last epoch is the result."""
    version = prepare.prepare(zones, dataset.dataset, PrepareConfig(size=small.SIDE, validation_share=0)).version
    run = train.train(zones, version, CONFIG, device="cpu")
    assert run.history[-1].validation_accuracy is None
    assert f"-{run.history[-1].step:09d}/" in run.checkpoint


def test_a_finished_run_is_found_without_work(zones: Zones, dataset: DatasetVersion) -> None:
    """The same wish again returns what was trained, and reports no progress because nothing is done."""
    heard: list[Progress] = []
    first = train.train(zones, dataset, CONFIG, device="cpu")
    assert train.train(zones, dataset, CONFIG, device="cpu", on_progress=heard.append) == first
    assert not heard


def test_fresh_trains_anew(zones: Zones, dataset: DatasetVersion) -> None:
    """``fresh`` makes another run of the same wish, with equal weights; without it the first one is found."""
    first = train.train(zones, dataset, CONFIG, device="cpu")
    second = train.train(zones, dataset, CONFIG, device="cpu", fresh=True)
    third = train.train(zones, dataset, CONFIG, device="cpu", fresh=True)
    assert len({first.id, second.id, third.id}) == 3
    assert train.train(zones, dataset, CONFIG, device="cpu").id == first.id
    weights = [checkpoints.load_weights(zones.checkpoints, run) for run in (first, second)]
    assert small.equal(*weights)


def test_a_named_repetition_is_found_again(zones: Zones, dataset: DatasetVersion) -> None:
    """A fresh run that was given a name is another run than the wish's own, and the same one when asked for again."""
    first = train.train(zones, dataset, CONFIG, device="cpu")
    second = train.train(zones, dataset, CONFIG, device="cpu", fresh="a flow run")
    assert second.id != first.id
    assert train.train(zones, dataset, CONFIG, device="cpu", fresh="a flow run") == second


def test_fresh_resumes_what_was_interrupted(zones: Zones, dataset: DatasetVersion) -> None:
    """A fresh run that was stopped is gone on with when it is asked for again, not begun once more."""
    train.train(zones, dataset, CONFIG, device="cpu")
    asked = iter([False] * 3)
    with pytest.raises(TrainingStopped) as stopped:
        train.train(zones, dataset, CONFIG, device="cpu", fresh=True, should_stop=lambda: next(asked, True))
    resumed = train.train(zones, dataset, CONFIG, device="cpu", fresh=True)
    assert resumed.id in str(stopped.value)


def test_weights_do_not_depend_on_where_the_pixels_lie(zones: Zones, dataset: DatasetVersion, tmp_path: Path) -> None:
    """Pixels that memory shall not hold train the very same weights, also in a run that is interrupted and resumed."""
    resident = train.train(zones, dataset, CONFIG, device="cpu")
    asked = iter([False] * 5)
    with pytest.raises(TrainingStopped):
        train.train(
            zones,
            dataset,
            CONFIG,
            device="cpu",
            memory_mb=0,
            scratch=tmp_path,
            fresh=True,
            should_stop=lambda: next(asked, True),
        )
    mapped = train.train(zones, dataset, CONFIG, device="cpu", memory_mb=0, scratch=tmp_path, fresh=True)
    assert mapped.id != resident.id
    assert mapped.exact
    weights = [checkpoints.load_weights(zones.checkpoints, run) for run in (resident, mapped)]
    assert small.equal(*weights)
    assert [line.train_loss for line in mapped.history] == [line.train_loss for line in resident.history]


def test_stopped_before_it_begins(zones: Zones, dataset: DatasetVersion) -> None:
    """Asked to stop while the images are still being loaded, it leaves at once, in a sentence."""
    with pytest.raises(TrainingStopped, match="before it began"):
        train.train(zones, dataset, CONFIG, device="cpu", should_stop=lambda: True)


def test_sigterm_is_asked_for_politely() -> None:
    """Within the block SIGTERM makes ``should_stop`` true instead of ending the process; after it all is as before."""
    before = signal.getsignal(signal.SIGTERM)
    with train.stop_on_sigterm() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
    assert signal.getsignal(signal.SIGTERM) == before


def test_starting_weights_from_a_file_or_the_store(zones: Zones, dataset: DatasetVersion, tmp_path: Path) -> None:
    """Weights from a path and the same bytes under a key are one wish, another than starting afresh."""
    first = train.train(zones, dataset, CONFIG, device="cpu")
    data = safetensors.torch.save(checkpoints.load_weights(zones.checkpoints, first))
    (tmp_path / "weights.safetensors").write_bytes(data)
    zones.checkpoints.put("started/weights.safetensors", data)
    runs = [
        train.train(zones, dataset, CONFIG.model_copy(update={"starting_weights": source}), device="cpu")
        for source in (str(tmp_path / "weights.safetensors"), "started/weights.safetensors")
    ]
    assert runs[0].id == runs[1].id != first.id
    assert runs[0].history[0].train_loss < first.history[0].train_loss


@pytest.mark.parametrize(
    ("content", "said"), [(None, "is neither a file nor a key"), (b"\x80\x04pickle", "is not a .safetensors file")]
)
def test_wrong_starting_weights(
    zones: Zones, dataset: DatasetVersion, tmp_path: Path, content: bytes | None, said: str
) -> None:
    """A missing file, or one in another format, is refused in a sentence that names it."""
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=f"starting_weights: .*weights.pt {said}"):
        train.train(zones, dataset, CONFIG.model_copy(update={"starting_weights": str(path)}), device="cpu")


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]), images=st.integers(1, 20))
def test_statistics(seed: int, channels: int, images: int) -> None:
    """Mean and deviation are those of the pixels scaled to 0..1, channel by channel, in any order of the images."""
    pixels = np.random.default_rng(seed).integers(0, 256, (images, 7, 5, channels), dtype=np.uint8)
    mean, std = starting_point.statistics(torch.from_numpy(pixels))
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, (pixels / 255).std((0, 1, 2)), atol=1e-6)
    again = starting_point.statistics(torch.from_numpy(pixels[::-1].copy()))
    assert torch.equal(mean, again[0])
    assert torch.equal(std, again[1])
