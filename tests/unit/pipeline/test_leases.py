"""Leases: one holder at a time, taken over only from the dead or the silent, and never lost to an outage."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psutil
import pytest
from obstore.store import MemoryStore

from pipeline import leases, pids
from pipeline.errors import Corrupted, LeaseHeld, LeaseLost, StoreUnavailable
from pipeline.leases import LeaseState
from pipeline.progress import Progress
from pipeline.store import Store

KEY = "0123/lease.json"


@pytest.fixture
def store() -> Store:
    """An empty zone in memory."""
    return Store(MemoryStore(), "memory://zone")


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


def test_fences_rise_and_a_release_frees_at_once(store: Store) -> None:
    """Each holding has a higher fence than the one before, and a released lease is not waited for."""
    began = time.monotonic()
    fences = []
    for _ in range(3):
        with leases.acquire(store, KEY, "training run 0123") as lease:
            lease.check()
            fences.append(lease.fence)
    assert fences == [1, 2, 3]
    assert time.monotonic() - began < 5
    assert lease_state(store).ttl_s == 0


def test_a_lease_that_ended_is_gone(store: Store) -> None:
    """A holder that ends its lease leaves none behind, and the next one begins anew."""
    with leases.acquire(store, KEY, "training run 0123") as lease:
        lease.end()
    assert store.head(KEY) is None
    with leases.acquire(store, KEY, "training run 0123") as lease:
        assert lease.fence == 1


def test_a_lease_that_ends_is_never_free_before_it_is_gone(store: Store) -> None:
    """Whoever waits for a lease that ends begins after its removal, with a lease of its own that nobody removes."""
    for _ in range(20):
        first = leases.acquire(store, KEY, "training run 0123", ttl_s=2)
        with ThreadPoolExecutor(1) as pool:
            with first:
                waiting = pool.submit(leases.acquire, store, KEY, "training run 0123", ttl_s=2)
                first.end()
            with waiting.result() as second:
                second.check()
                assert lease_state(store).holder == second._state.holder  # noqa: SLF001 - who is meant
                second.end()


def test_a_successor_keeps_what_another_ended(store: Store) -> None:
    """A holder that was succeeded removes nothing, whatever it had meant to do at its end."""
    with leases.acquire(store, KEY, "training run 0123", ttl_s=0.3) as lease:
        lease.end()
        write_lease(store, fence=lease.fence + 1)
    assert lease_state(store).holder == "other"


def test_one_of_many_gets_the_lease(store: Store) -> None:
    """Of eight threads that want a lease at once, one has it at a time, and each in the end."""
    inside = 0
    most = 0

    def work(_: int) -> int:
        nonlocal inside, most
        with leases.acquire(store, KEY, "training run 0123", ttl_s=2) as lease:
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
    with leases.acquire(store, KEY, "training run 0123", ttl_s=1):
        with pytest.raises(LeaseHeld, match=f"process {os.getpid()} on "):
            leases.acquire(store, KEY, "training run 0123", wait_s=1.5, on_progress=heard.append)
        assert f"waiting for process {os.getpid()}" in heard[0].stage


def test_renewal_keeps_the_lease(store: Store) -> None:
    """A holder that works for longer than the time to live still holds, with the same fence."""
    with leases.acquire(store, KEY, "training run 0123", ttl_s=0.6) as lease:
        with pytest.raises(LeaseHeld):
            leases.acquire(store, KEY, "training run 0123", wait_s=1.5)
        lease.check()
        assert lease_state(store).fence == lease.fence == 1


def test_a_silent_holder_elsewhere_is_succeeded_after_its_ttl(store: Store) -> None:
    """A lease that another machine left is taken when it has not changed for its whole ttl, and not before."""
    write_lease(store, ttl_s=1.0)
    began = time.monotonic()
    with leases.acquire(store, KEY, "training run 0123") as lease:
        assert lease.fence == 5
    assert 1.0 <= time.monotonic() - began < 3


def test_a_dead_process_of_this_machine_is_succeeded_at_once(store: Store) -> None:
    """A lease whose holder was killed here is taken without waiting, even while the dead is a zombie."""
    code = "import sys, time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with leases.acquire(store, KEY, "training run 0123"):
            own = lease_state(store)
        started = pids.created(process.pid)
        held = write_lease(store, host=own.host, pid=process.pid, process_started=started)
        assert not leases.is_dead(held)
        process.kill()
        deadline = time.monotonic() + 5
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        with leases.acquire(store, KEY, "training run 0123", wait_s=0) as lease:
            assert lease.fence == 5
    assert leases.is_dead(held)


def test_a_recycled_pid_is_not_the_holder(store: Store) -> None:
    """A process with the holder's pid that started at another time does not keep the lease alive."""
    with leases.acquire(store, KEY, "training run 0123"):
        own = lease_state(store)
    assert not leases.is_dead(own)
    assert leases.is_dead(own.model_copy(update={"process_started": own.process_started - 5}))
    assert not leases.is_dead(own.model_copy(update={"process_started": 0.0, "host": "elsewhere"}))


def test_a_successor_ends_the_orphan(store: Store) -> None:
    """A holder whose lease was taken over learns it, from its own renewals, before it may write again."""
    with leases.acquire(store, KEY, "training run 0123", ttl_s=0.3) as lease:
        write_lease(store, fence=lease.fence + 1)
        time.sleep(0.5)
        with pytest.raises(LeaseLost, match="Process 1 on gpu-7"):
            lease.check()
    assert lease_state(store).holder == "other"  # nothing was released in the other's name


def test_a_removed_lease_is_lost(store: Store) -> None:
    """A holder whose lease.json is deleted stops."""
    with leases.acquire(store, KEY, "training run 0123", ttl_s=0.3) as lease:
        store.delete([KEY])
        time.sleep(0.5)
        with pytest.raises(LeaseLost, match="was removed"):
            lease.check()


def test_a_lease_of_something_else_is_refused(store: Store) -> None:
    """A lease.json that cannot be read is an error that says so."""
    store.put(KEY, b"[]")
    with pytest.raises(Corrupted, match="is not a lease"):
        leases.acquire(store, KEY, "training run 0123")


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
    store = Outage(MemoryStore(), "memory://checkpoints")
    with leases.acquire(store, KEY, "training run 0123", ttl_s=0.3) as lease:
        store.away = True
        time.sleep(1.0)
        with pytest.raises(StoreUnavailable):
            lease.check()
        store.away = False
        lease.check()
        assert lease.fence == 1


def test_a_lease_that_cannot_be_released_does_not_hide_the_result() -> None:
    """When the store is away at the end, the block still ends normally; the lease runs out by itself."""
    store = Outage(MemoryStore(), "memory://checkpoints")
    with leases.acquire(store, KEY, "training run 0123", ttl_s=0.5):
        store.away = True
    store.away = False
    assert lease_state(store).ttl_s == 0.5
    with leases.acquire(store, KEY, "training run 0123") as lease:
        assert lease.fence == 2


def test_no_thread_is_left(store: Store) -> None:
    """After the block, nothing renews the lease any more."""
    with leases.acquire(store, KEY, "training run 0123", ttl_s=0.3):
        pass
    time.sleep(0.3)
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]
    assert lease_state(store).ttl_s == 0
