from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline import training_runs
from pipeline.artifacts import DatasetVersion, PixelSpec, TrainConfig, TrainingRun
from pipeline.errors import Corrupted, NotFound
from pipeline.store import Store

RUN = "0123456789abcdef"


@pytest.fixture
def store() -> Store:
    """An empty checkpoints zone in memory."""
    return Store(MemoryStore(), "memory://checkpoints")


def dataset(name: str = "cats", version: str = "a" * 16) -> DatasetVersion:
    """A dataset version of two classes."""
    pixels = PixelSpec(height=28, width=28, channels=1)
    return DatasetVersion(dataset=name, version=version, classes=("a", "b"), pixels=pixels, counts={"train": 10})


def finished(run: str, name: str = "cats", second: int = 0) -> TrainingRun:
    """A finished training run."""
    return TrainingRun(
        id=run,
        dataset=dataset(name),
        config=TrainConfig(),
        checkpoint=f"{run}/checkpoints/000001-000000010/checkpoint.json",
        history=(),
        exact=True,
        environment={},
        finished_at=datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC),
    )


def test_run_id_is_stable() -> None:
    """The same wish has the same id on every machine and in every release with this training format."""
    assert training_runs.run_id(dataset(), TrainConfig(), None) == training_runs.run_id(dataset(), TrainConfig(), None)
    assert len(training_runs.run_id(dataset(), TrainConfig(), None)) == 16


def test_run_id_depends_on_all_that_decides_the_weights() -> None:
    """Dataset, version, any option, starting weights and nonce each make another run."""
    ids = [
        training_runs.run_id(dataset(), TrainConfig(), None),
        training_runs.run_id(dataset("dogs"), TrainConfig(), None),
        training_runs.run_id(dataset(version="b" * 16), TrainConfig(), None),
        training_runs.run_id(dataset(), TrainConfig(seed=1), None),
        training_runs.run_id(dataset(), TrainConfig(architecture="resnet18"), None),
        training_runs.run_id(dataset(), TrainConfig(), "f" * 64),
        training_runs.run_id(dataset(), TrainConfig(), None, nonce="1"),
    ]
    assert len(set(ids)) == len(ids)


def test_starting_weights_count_by_their_bytes() -> None:
    """The same weights under another path are the same wish."""
    here, there = TrainConfig(starting_weights="a.safetensors"), TrainConfig(starting_weights="b.safetensors")
    assert training_runs.run_id(dataset(), here, "f" * 64) == training_runs.run_id(dataset(), there, "f" * 64)


def test_an_unfinished_run_is_not_found(store: Store) -> None:
    """A run without a result is not found, and the message says what to do."""
    with training_runs.acquire(store, RUN), pytest.raises(NotFound, match=r"safelight train"):
        training_runs.find(store, RUN)
    assert not training_runs.is_finished(store, RUN)


def test_the_first_result_stays(store: Store) -> None:
    """Of two results of one run the first one counts, for both."""
    first = training_runs.finish(store, finished(RUN, second=1))
    second = training_runs.finish(store, finished(RUN, second=2))
    assert first == second == training_runs.find(store, RUN)
    assert training_runs.is_finished(store, RUN)


def test_latest_is_the_one_that_finished_last(store: Store) -> None:
    """The newest finished run of a dataset is found, whatever the ids, and other datasets' runs do not matter."""
    for run, name, second in [("b" * 16, "cats", 1), ("a" * 16, "cats", 3), ("c" * 16, "dogs", 5)]:
        training_runs.finish(store, finished(run, name, second))
    assert training_runs.latest(store, "cats").id == "a" * 16
    with pytest.raises(NotFound, match="birds"):
        training_runs.latest(store, "birds")


def test_an_altered_result_is_refused(store: Store) -> None:
    """A result that is not ours is an error that names it, not a traceback of the parser."""
    store.put(f"{RUN}/result.json", b"{}")
    with pytest.raises(Corrupted, match=RUN):
        training_runs.find(store, RUN)


@given(st.builds(TrainConfig, seed=st.integers(0, 2**32 - 1), flip=st.booleans(), weight_decay=st.floats(0, 1)))
def test_run_id_survives_storage(config: TrainConfig) -> None:
    """A configuration that was stored and read again is the same wish."""
    again = TrainConfig.from_json(config.to_json())
    assert training_runs.run_id(dataset(), config, None) == training_runs.run_id(dataset(), again, None)


def test_a_run_is_named_by_its_id_or_by_its_dataset(store: Store) -> None:
    """An id finds that run, a dataset's name its newest one, and another word is an error that repeats it."""
    for run, second in [("a" * 16, 1), ("b" * 16, 2)]:
        training_runs.finish(store, finished(run, "cats", second))
    assert training_runs.named(store, "a" * 16).id == "a" * 16
    assert training_runs.named(store, "cats").id == "b" * 16
    with pytest.raises(NotFound, match="birds"):
        training_runs.named(store, "birds")
