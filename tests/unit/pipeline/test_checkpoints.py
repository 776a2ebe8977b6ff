import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline import checkpoints
from pipeline.artifacts import DatasetVersion, PixelSpec, TrainConfig, TrainingRun
from pipeline.checkpoints import Checkpoint, Position
from pipeline.errors import Corrupted, LeaseLost
from pipeline.store import Store

RUN = "0123456789abcdef"


@pytest.fixture
def store() -> Store:
    """An empty checkpoints zone in memory."""
    return new_store()


def new_store() -> Store:
    """An empty checkpoints zone in memory."""
    return Store(MemoryStore(), "memory://checkpoints")


def tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Weights and momentum, one of them not in plain memory order."""
    random = torch.Generator().manual_seed(seed)
    kernel = torch.randn(4, 3, 3, 3, generator=random).to(memory_format=torch.channels_last)
    weights = {"stem.weight": kernel, "seen": torch.tensor(7 + seed)}
    return {"weights": weights, "optimizer": {"0.momentum_buffer": torch.randn(4, 3, 3, 3, generator=random)}}


def save(store: Store, step: int, *, fence: int = 1, best: str = "", may_write: Callable[[], None] = bool) -> str:
    """Write a checkpoint whose tensors depend on its step; its manifest's key."""
    checkpoint = Checkpoint(
        run=RUN,
        fence=fence,
        position=Position(step=step, loss_sum=0.1 + 0.2, best=best),
        settings={"scaler": {"scale": 65536.0, "growth": 2}},
        environment={"torch": "2"},
    )
    return checkpoints.save(store, checkpoint, tensors(step), may_write=may_write)


def steps(store: Store) -> list[str]:
    """Names of the folders that hold anything."""
    return sorted({found.key.split("/")[2] for found in store.listing(RUN)})


def finished(key: str) -> TrainingRun:
    """A finished run with that best checkpoint."""
    pixels = PixelSpec(height=28, width=28, channels=1)
    dataset = DatasetVersion(dataset="cats", version="a" * 16, classes=("a", "b"), pixels=pixels, counts={})
    return TrainingRun(
        id=RUN,
        dataset=dataset,
        config=TrainConfig(),
        checkpoint=key,
        history=(),
        exact=True,
        environment={},
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_what_is_saved_comes_back(store: Store) -> None:
    """Tensors come back bit for bit, numbers to the last digit."""
    key = save(store, 12)
    assert key == f"{RUN}/checkpoints/000001-000000012/checkpoint.json"
    checkpoint, loaded = checkpoints.load(store, key)
    assert checkpoint.position == Position(step=12, loss_sum=0.1 + 0.2)
    assert checkpoint.settings == {"scaler": {"scale": 65536.0, "growth": 2}}
    written = tensors(12)
    assert {group: set(members) for group, members in loaded.items()} == {
        group: set(members) for group, members in written.items()
    }
    assert all(torch.equal(loaded[group][name], written[group][name]) for group in written for name in written[group])


def test_weights_of_a_finished_run(store: Store) -> None:
    """A finished run's weights are its best checkpoint's, under the names that the model knows, without momentum."""
    weights = checkpoints.load_weights(store, finished(save(store, 3)))
    assert set(weights) == {"stem.weight", "seen"}
    assert torch.equal(weights["stem.weight"], tensors(3)["weights"]["stem.weight"])


def test_newest_goes_by_fence_then_step(store: Store) -> None:
    """A successor's checkpoint counts more than a later step that an orphan still wrote."""
    assert checkpoints.newest(store, RUN) is None
    save(store, 5)
    save(store, 90)
    save(store, 20, fence=2)
    found = checkpoints.newest(store, RUN)
    assert found is not None
    assert (found[0].fence, found[0].position.step) == (2, 20)


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_a_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _empty])
@pytest.mark.parametrize("name", [checkpoints.MANIFEST, checkpoints.STATE])
def test_a_damaged_checkpoint_is_passed_over(
    store: Store, name: str, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A truncated, altered or emptied file is noticed, said in the log, and the checkpoint before it is used."""
    save(store, 1)
    key = save(store, 2).replace(checkpoints.MANIFEST, name)
    data = store.get(key)
    store.put(
        key, damage(data) if name == checkpoints.STATE or damage != _flip_a_bit else data.replace(b": 2,", b": 3,")
    )
    found = checkpoints.newest(store, RUN)
    assert found is not None
    assert found[0].position.step == 1
    assert "000001-000000002" in caplog.text
    assert "The checkpoint before it is used." in caplog.text


@pytest.mark.parametrize("name", [checkpoints.MANIFEST, checkpoints.STATE])
def test_an_incomplete_checkpoint_does_not_count(store: Store, name: str) -> None:
    """Half of a checkpoint, as a killed writer or a killed deletion leaves it, is passed over."""
    save(store, 1)
    store.delete([save(store, 2).replace(checkpoints.MANIFEST, name)])
    found = checkpoints.newest(store, RUN)
    assert found is not None
    assert found[0].position.step == 1


def test_a_checkpoint_whose_best_is_gone_is_passed_over(store: Store) -> None:
    """Going on from a checkpoint whose best weights cannot be read would end in a result without weights."""
    best = save(store, 1)
    save(store, 2, best=best)
    store.put(best.replace(checkpoints.MANIFEST, checkpoints.STATE), b"?")
    assert checkpoints.newest(store, RUN) is None


def test_altered_weights_are_not_loaded(store: Store) -> None:
    """A finished run whose weights were altered is refused, and the message names the object."""
    key = save(store, 3)
    state = key.replace(checkpoints.MANIFEST, checkpoints.STATE)
    store.put(state, _flip_a_bit(store.get(state)))
    with pytest.raises(Corrupted, match=r"000001-000000003/state\.safetensors"):
        checkpoints.load_weights(store, finished(key))


def test_every_field_is_sealed(store: Store) -> None:
    """No field of a manifest can be altered without notice."""
    key = save(store, 3)
    written = json.loads(store.get(key))
    for name, value in {"fence": 2, "settings": {}, "environment": {}, "run": "f" * 16}.items():
        store.put(key, json.dumps(written | {name: value}).encode())
        with pytest.raises(Corrupted, match="was altered"):
            checkpoints.load(store, key)


@pytest.mark.parametrize("allowed", [0, 1])
def test_nothing_is_written_without_the_right_to(store: Store, allowed: int) -> None:
    """A writer that may not write any more leaves no complete checkpoint, before or between the two writes."""
    asked = 0

    def may_write() -> None:
        nonlocal asked
        asked += 1
        if asked > allowed:
            raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        save(store, 1, may_write=may_write)
    assert len(list(store.listing(RUN))) == allowed
    assert checkpoints.newest(store, RUN) is None


@settings(max_examples=40)
@given(written=st.lists(st.integers(1, 30), min_size=1, max_size=8, unique=True).map(sorted), data=st.data())
def test_pruning_keeps_the_newest_two_and_the_best(written: list[int], data: st.DataObject) -> None:
    """After each save, exactly the newest two and the best are left, and the newest can be resumed."""
    store = new_store()
    best = ""
    done: list[int] = []
    for step in written:
        best = save(store, step, best=best) if data.draw(st.booleans()) or not best else best
        key = save(store, step, best=best)
        checkpoints.prune(store, RUN, newest=key, best=best)
        done.append(step)
        best_step = int(best.split("/")[2].split("-")[1])
        assert steps(store) == [f"000001-{each:09d}" for each in sorted({*done[-2:], best_step})]
        assert checkpoints.newest(store, RUN) is not None


def test_pruning_clears_what_a_killed_writer_left(store: Store) -> None:
    """A state without a manifest, older than the newest, is deleted; what a successor wrote is not touched."""
    store.put(f"{RUN}/checkpoints/000001-000000005/{checkpoints.STATE}", b"half")
    save(store, 9)
    newest = save(store, 12, fence=2)
    save(store, 1, fence=3)
    checkpoints.prune(store, RUN, newest=newest, best=newest)
    assert steps(store) == ["000001-000000009", "000002-000000012", "000003-000000001"]
