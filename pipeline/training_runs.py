"""A training run: what it is, where its result is, and who may work on it.

- **Identity.** A run's id is the digest of all that decides its weights, so that the same wish finds the same run.
- **Result.** ``<run>/result.json`` is written once; whoever comes second gets what the first one wrote.
- **Lease.** ``<run>/lease.json`` names the process that may write. It is created and changed by compare-and-swap only.
  Each take-over raises the fence, a number that is part of every checkpoint's key, so that a late write of an orphan
  can never replace what its successor wrote.
- **No clock is compared with another machine's.** A holder counts from its last renewal, a waiter from when it last
  saw the lease change, each on its own monotonic clock; the holder starts to count earlier, so it gives up earlier.
- **An outage of the store is not the loss of the lease.** Nobody can take it meanwhile; afterwards the holder renews it
  if it is still its own, however late.
"""

import logging
import os
import secrets
import socket
import threading
import time
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from pydantic import ValidationError

from pipeline.artifacts import (
    TRAINING_FORMAT,
    DatasetVersion,
    Record,
    TrainConfig,
    TrainingRun,
    digest_of,
    utc_now,
)
from pipeline.errors import Conflict, Corrupted, LeaseHeld, LeaseLost, NotFound, ObjectMissing, StoreError
from pipeline.progress import OnProgress, Progress, silent
from pipeline.store import Store

log = logging.getLogger(__name__)

TTL_S = 30.0
"""Seconds without a renewal after which another process may take a lease over."""


def run_id(dataset: DatasetVersion, config: TrainConfig, starting_weights_sha256: str | None, nonce: str = "") -> str:
    """16 hexadecimal digits of the digest of all that decides the weights.

    Starting weights count by their bytes, not by where they lie; ``nonce`` tells repetitions of one wish apart.
    """
    wish = {
        "dataset": dataset.dataset,
        "version": dataset.version,
        "config": config.model_dump(mode="json", exclude={"starting_weights"}),
        "starting_weights": starting_weights_sha256,
        "format": TRAINING_FORMAT,
        "nonce": nonce,
    }
    return digest_of(wish)[:16]


def find(checkpoints: Store, run: str) -> TrainingRun:
    """The finished training run of that id.

    Raises:
        NotFound: there is none, or it is not finished.
    """
    data = checkpoints.get_if_present(_result_key(run))
    if data is None:
        raise NotFound(f"There is no finished training run {run}; start or resume it with `safelight train`.")
    return _read_result(checkpoints, run, data)


def is_finished(checkpoints: Store, run: str) -> bool:
    """Whether the training run of that id has its result."""
    return checkpoints.head(_result_key(run)) is not None


def latest(checkpoints: Store, dataset: str) -> TrainingRun:
    """The finished training run of a dataset (any version) that finished last.

    Raises:
        NotFound: none is finished.
    """
    results = (found for found in checkpoints.listing() if found.key.endswith("/result.json"))
    runs = [_read_result(checkpoints, at.key, data) for at, data in checkpoints.read_many(results) if data is not None]
    ours = [run for run in runs if run.dataset.dataset == dataset]
    if not ours:
        raise NotFound(f"No training run of dataset {dataset} is finished; start one with `safelight train {dataset}`.")
    return max(ours, key=lambda run: (run.finished_at, run.id))


def finish(checkpoints: Store, run: TrainingRun) -> TrainingRun:
    """Write a run's result, unless it has one; the result that counts from now on."""
    return _read_result(checkpoints, run.id, checkpoints.write_once(_result_key(run.id), run.to_json()))


def _result_key(run: str) -> str:
    return f"{run}/result.json"


def _read_result(checkpoints: Store, name: str, data: bytes) -> TrainingRun:
    try:
        return TrainingRun.from_json(data)
    except ValidationError as error:
        raise Corrupted(f"The result of training run {name} in {checkpoints.url} cannot be read: {error}.") from error


class LeaseState(Record):
    """What ``lease.json`` holds.

    Attributes:
        holder: random name of this holding; a process that takes the lease twice has two.
        host: the machine (and its boot, and its process namespace) in which ``pid`` means something.
        hostname: the same for people.
        pid: the holder's process.
        process_started: when that process was created, so that a recycled pid is not taken for it.
        fence: number of take-overs; part of every checkpoint's key.
        nonce: new with each renewal, so that no two states have equal bytes.
        renewed_at: for people; no decision rests on it.
        ttl_s: how long without change the lease holds; 0 once it is released.
    """

    holder: str
    host: str
    hostname: str
    pid: int
    process_started: float
    fence: int
    nonce: str
    renewed_at: datetime
    ttl_s: float


class Lease:
    """The right to write to a training run, renewed by a thread for as long as the ``with`` block lasts."""

    def __init__(self, store: Store, key: str, state: LeaseState, asked: float) -> None:
        self._store = store
        self._key = key
        self._state = state
        self._renewed = asked
        self._lost = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def fence(self) -> int:
        """This holding's number; higher than that of any earlier holder."""
        return self._state.fence

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        try:
            self._renew(ttl_s=0)
        except (LeaseLost, StoreError) as failure:
            log.warning("the lease was not released: %s", failure)

    def check(self) -> None:
        """Return only while this process may write; called before each write.

        Raises:
            LeaseLost: another process took over.
            StoreError: the lease is so old that the store had to be asked, and it did not answer.
        """
        if self._lost:
            raise LeaseLost(self._lost)
        if time.monotonic() - self._renewed > self._state.ttl_s / 2:
            self._renew(self._state.ttl_s)

    def _keep(self) -> None:
        while not self._ended.wait(self._state.ttl_s / 3):
            try:
                self._renew(self._state.ttl_s)
            except LeaseLost:
                return  # check() raises it where it matters
            except StoreError as error:
                log.warning("the lease was not renewed, trying again: %s", error)

    def _renew(self, ttl_s: float) -> None:
        with self._lock:
            while not self._lost:
                if ttl_s and self._ended.is_set():
                    return  # released meanwhile
                asked = time.monotonic()
                found, etag = _read_lease(self._store, self._key)
                if found is None or found.holder != self._state.holder:
                    self._lost = _taken(self._key, found)
                elif _took(self._store, self._key, _renewal(found, ttl_s), etag):
                    self._renewed = asked
                    return
        raise LeaseLost(self._lost)


def acquire(
    store: Store, run: str, *, ttl_s: float = TTL_S, wait_s: float | None = None, on_progress: OnProgress = silent
) -> Lease:
    """Take the lease of a training run; to be used as a context manager.

    Where another process holds it: taken at once if that process ran on this machine and is provably dead, else when
    the lease has not changed for its whole time to live.

    Args:
        store: the checkpoints zone.
        run: the training run's id.
        ttl_s: time to live of the new lease, in seconds.
        wait_s: how long to wait for the holder; None: as long as it renews.
        on_progress: told about once a second whom this process waits for; may raise to stop waiting.

    Raises:
        LeaseHeld: ``wait_s`` is over.
    """
    key = f"{run}/lease.json"
    began = changed = time.monotonic()
    seen = ""
    while True:
        asked = time.monotonic()
        held, etag = _read_lease(store, key)
        if held is not None and held.nonce != seen:
            seen, changed = held.nonce, time.monotonic()  # after the answer: the holder may have renewed meanwhile
        if held is None or asked - changed >= held.ttl_s or is_dead(held):
            claim = _claim(held.fence + 1 if held else 1, ttl_s)
            if _took(store, key, claim, etag):
                return Lease(store, key, claim, asked)
        else:
            _wait(run, held, asked - began, wait_s, on_progress)


def is_dead(held: LeaseState) -> bool:
    """Whether the holder is a process of this machine that provably no longer runs."""
    if held.host != _host():
        return False
    try:
        os.kill(held.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's: whether it is the holder cannot be known
        return False
    return process_started(held.pid) != held.process_started


def _took(store: Store, key: str, claim: LeaseState, etag: str | None) -> bool:
    try:
        store.compare_and_swap(key, claim.to_json(), etag=etag)
    except Conflict:
        return False
    return True


def _wait(run: str, held: LeaseState, waited: float, wait_s: float | None, on_progress: OnProgress) -> None:
    who = f"process {held.pid} on {held.hostname}"
    if wait_s is not None and waited >= wait_s:
        raise LeaseHeld(f"Training run {run} is being worked on by {who}: wait for it, or stop it, and run again.")
    on_progress(Progress(f"waiting for {who}, which works on this training run", int(waited), unit="s"))
    time.sleep(min(1.0, held.ttl_s / 10))


def _claim(fence: int, ttl_s: float) -> LeaseState:
    return LeaseState(
        holder=secrets.token_hex(8),
        host=_host(),
        hostname=socket.gethostname(),
        pid=os.getpid(),
        process_started=process_started(os.getpid()) or 0.0,
        fence=fence,
        ttl_s=ttl_s,
        nonce=secrets.token_hex(8),
        renewed_at=utc_now(),
    )


def _renewal(held: LeaseState, ttl_s: float) -> LeaseState:
    return held.model_copy(update={"nonce": secrets.token_hex(8), "renewed_at": utc_now(), "ttl_s": ttl_s})


def _read_lease(store: Store, key: str) -> tuple[LeaseState | None, str | None]:
    try:
        data, etag = store.get_with_etag(key)
        return LeaseState.from_json(data), etag
    except ObjectMissing:
        return None, None
    except ValidationError as error:
        raise Corrupted(f"{store.url}/{key} is not a lease of this program; remove it if nothing trains.") from error


def _taken(key: str, by: LeaseState | None) -> str:
    if by is None:
        return f"{key} was removed: this process stops, because it can no longer know that it is alone."
    return f"Process {by.pid} on {by.hostname} took this training run over: this process stops without writing."


def _host() -> str:
    """This machine, this boot of it, and this process namespace: where a pid means the same process."""
    return digest_of([socket.gethostname(), *_boot()])[:16]


def _boot() -> list[str]:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return [boot.read_text(encoding="ascii").strip(), str(namespace.readlink())]
    except OSError:  # not Linux
        return [str(psutil.boot_time())]


def process_started(pid: int) -> float | None:
    """When a process was created, None if it no longer runs: seconds since boot on Linux, since 1970 elsewhere.

    Linux counts from boot, so that setting the clock does not make a living process look like another one.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        created = process.create_time()
    except psutil.NoSuchProcess:
        return None
    return round(created - psutil.boot_time(), 2) if psutil.LINUX else created
