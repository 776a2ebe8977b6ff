import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline import training_runs
from pipeline.artifacts import DatasetVersion, PixelSpec, TrainConfig, TrainingRun
from pipeline.errors import Corrupted, LeaseHeld, LeaseLost, NotFound, StoreUnavailable
from pipeline.progress import Progress
from pipeline.store import Store
from pipeline.training_runs import LeaseState

RUN = "0123456789abcdef"
KEY = f"{RUN}/lease.json"


@pytest.fixture
def store() -> Store:
    """An empty checkpoints zone in memory."""
    return Store(MemoryStore(), "memory://checkpoints", patience_s=0)


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


def lease_state(store: Store) -> LeaseState:
    """What the store says about the lease."""
    return LeaseState.from_json(store.get(KEY))


def write_lease(store: Store, **changes: object) -> LeaseState:
    """Put a lease of another machine's process."""
    state = LeaseState(
        holder="other",
        host="elsewhere",
        hostname="gpu-7",
        pid=1,
        process_started=1.0,
        fence=4,
        nonce="n",
        renewed_at=datetime(2026, 1, 1, tzinfo=UTC),
        ttl_s=30.0,
    ).model_copy(update=changes)
    store.put(KEY, state.to_json())
    return state


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
    write_lease(store)
    with pytest.raises(NotFound, match=r"safelight train"):
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


def test_fences_rise_and_a_release_frees_at_once(store: Store) -> None:
    """Each holding has a higher fence than the one before, and a released lease is not waited for."""
    began = time.monotonic()
    fences = []
    for _ in range(3):
        with training_runs.acquire(store, RUN) as lease:
            lease.check()
            fences.append(lease.fence)
    assert fences == [1, 2, 3]
    assert time.monotonic() - began < 5
    assert lease_state(store).ttl_s == 0


def test_one_of_many_gets_the_lease(store: Store) -> None:
    """Of eight threads that want a lease at once, one has it at a time, and each in the end."""
    inside = 0
    most = 0

    def work(_: int) -> int:
        nonlocal inside, most
        with training_runs.acquire(store, RUN, ttl_s=2) as lease:
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            lease.check()
            inside -= 1
            return lease.fence

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(1, 9))
    assert most == 1


def test_a_living_holder_is_waited_for_and_named(store: Store) -> None:
    """Whoever waits hears for whom, and gives up after wait_s."""
    heard: list[Progress] = []
    with training_runs.acquire(store, RUN, ttl_s=1):
        with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on "):
            training_runs.acquire(store, RUN, wait_s=1.5, on_progress=heard.append)
        assert f"waiting for process {os.getpid()}" in heard[0].stage


def test_renewal_keeps_the_lease(store: Store) -> None:
    """A holder that works for longer than the time to live still holds, with the same fence."""
    with training_runs.acquire(store, RUN, ttl_s=0.6) as lease:
        with pytest.raises(LeaseHeld):
            training_runs.acquire(store, RUN, wait_s=1.5)
        lease.check()
        assert lease_state(store).fence == lease.fence == 1


def test_a_silent_holder_elsewhere_is_succeeded_after_its_ttl(store: Store) -> None:
    """A lease that another machine left is taken when it has not changed for its whole ttl, and not before."""
    write_lease(store, ttl_s=1.0)
    began = time.monotonic()
    with training_runs.acquire(store, RUN) as lease:
        assert lease.fence == 5
    assert 1.0 <= time.monotonic() - began < 3


def test_a_dead_process_of_this_machine_is_succeeded_at_once(store: Store) -> None:
    """A lease whose holder was killed here is taken without waiting, even while the dead is a zombie."""
    code = "import sys, time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with training_runs.acquire(store, RUN):
            own = lease_state(store)
        started = training_runs.process_started(process.pid)
        held = write_lease(store, host=own.host, pid=process.pid, process_started=started)
        assert not training_runs.is_dead(held)
        process.kill()
        deadline = time.monotonic() + 5
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        with training_runs.acquire(store, RUN, wait_s=0) as lease:
            assert lease.fence == 5
    assert training_runs.is_dead(held)


def test_a_recycled_pid_is_not_the_holder(store: Store) -> None:
    """A process with the holder's pid that started at another time does not keep the lease alive."""
    with training_runs.acquire(store, RUN):
        own = lease_state(store)
    assert not training_runs.is_dead(own)
    assert training_runs.is_dead(own.model_copy(update={"process_started": own.process_started - 5}))
    assert not training_runs.is_dead(own.model_copy(update={"process_started": 0.0, "host": "elsewhere"}))


def test_a_successor_ends_the_orphan(store: Store) -> None:
    """A holder whose lease was taken over learns it, from its own renewals, before it may write again."""
    with training_runs.acquire(store, RUN, ttl_s=0.3) as lease:
        write_lease(store, fence=lease.fence + 1)
        time.sleep(0.5)
        with pytest.raises(LeaseLost, match="Process 1 on gpu-7"):
            lease.check()
    assert lease_state(store).holder == "other"  # nothing was released in the other's name


def test_a_removed_lease_is_lost(store: Store) -> None:
    """A holder whose lease.json is deleted stops."""
    with training_runs.acquire(store, RUN, ttl_s=0.3) as lease:
        store.delete([KEY])
        time.sleep(0.5)
        with pytest.raises(LeaseLost, match="was removed"):
            lease.check()


def test_a_lease_of_something_else_is_refused(store: Store) -> None:
    """A lease.json that cannot be read is an error that says so."""
    store.put(KEY, b"[]")
    with pytest.raises(Corrupted, match="is not a lease"):
        training_runs.acquire(store, RUN)


class Outage(Store):
    """A store that does not answer while ``away`` is set."""

    away = False

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The bytes, unless the store is away."""
        if self.away:
            raise StoreUnavailable("away")
        return super().get_with_etag(key)


def test_an_outage_longer_than_the_ttl_does_not_lose_the_lease() -> None:
    """When the store comes back and nobody took the lease, the holder goes on with the same fence."""
    store = Outage(MemoryStore(), "memory://checkpoints", patience_s=0)
    with training_runs.acquire(store, RUN, ttl_s=0.3) as lease:
        store.away = True
        time.sleep(1.0)
        with pytest.raises(StoreUnavailable):
            lease.check()
        store.away = False
        lease.check()
        assert lease.fence == 1


def test_a_lease_that_cannot_be_released_does_not_hide_the_result() -> None:
    """When the store is away at the end, the block still ends normally; the lease runs out by itself."""
    store = Outage(MemoryStore(), "memory://checkpoints", patience_s=0)
    with training_runs.acquire(store, RUN, ttl_s=0.5):
        store.away = True
    store.away = False
    assert lease_state(store).ttl_s == 0.5
    with training_runs.acquire(store, RUN) as lease:
        assert lease.fence == 2


def test_no_thread_is_left(store: Store) -> None:
    """After the block, nothing renews the lease any more."""
    with training_runs.acquire(store, RUN, ttl_s=0.3):
        pass
    time.sleep(0.3)
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]
    assert lease_state(store).ttl_s == 0


@given(st.builds(TrainConfig, seed=st.integers(0, 2**32 - 1), flip=st.booleans(), weight_decay=st.floats(0, 1)))
def test_run_id_survives_storage(config: TrainConfig) -> None:
    """A configuration that was stored and read again is the same wish."""
    again = TrainConfig.from_json(config.to_json())
    assert training_runs.run_id(dataset(), config, None) == training_runs.run_id(dataset(), again, None)
