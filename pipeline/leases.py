"""Leases: the right to work on something in the store, held by one process at a time.

- A lease is an object that names its holder. It is created and changed by compare-and-swap only, and outlives its
  holders: each take-over raises its **fence**, so that what an orphan wrote can be told from what its successor wrote.
- **No clock is compared with another machine's.** A holder counts from its last renewal, a waiter from when it last
  saw the lease change, each on its own monotonic clock; the holder starts to count earlier, so it gives up earlier.
- **An outage of the store is not the loss of the lease.** Nobody can take it meanwhile; afterwards the holder renews it
  if it is still its own, however late.
- Training runs are worked on under a lease; so is the moment in which a dataset version or a model version becomes
  complete, because ``garbage`` removes what nothing refers to under the same lease.
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

from pipeline import pids
from pipeline.artifacts import Record, digest_of, utc_now
from pipeline.errors import Conflict, Corrupted, LeaseHeld, LeaseLost, ObjectMissing, StoreError
from pipeline.progress import OnProgress, Progress, silent
from pipeline.store import Store

log = logging.getLogger(__name__)

TTL_S = 30.0
"""Seconds without a renewal after which another process may take a lease over."""
SAY_EVERY_S = 5


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
    """The right to work on something, renewed by a thread for as long as the ``with`` block lasts."""

    def __init__(self, store: Store, key: str, what: str, state: LeaseState, asked: float) -> None:
        self._store = store
        self._key = key
        self._what = what
        self._state = state
        self._renewed = asked
        self._lost = ""
        self._over = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def fence(self) -> int:
        """This holding's number; higher than that of any earlier holder."""
        return self._state.fence

    @property
    def key(self) -> str:
        """Where it is stored."""
        return self._key

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        try:
            if self._over:
                self._remove()
            else:
                self._renew(ttl_s=0)
        except (LeaseLost, StoreError) as failure:
            log.warning("the lease was not released: %s", failure)

    def end(self) -> None:
        """Remove the lease at the end of the block, because whoever came later would find nothing left to be done."""
        self._over = True

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

    def _remove(self) -> None:
        """Remove the lease while it is still held: released before, it could be a successor's by then."""
        self._renew(self._state.ttl_s, last=True)
        self._store.delete([self._key])

    def _renew(self, ttl_s: float, *, last: bool = False) -> None:
        with self._lock:
            while not self._lost:
                if ttl_s and self._ended.is_set() and not last:
                    return  # released meanwhile
                asked = time.monotonic()
                found, etag = _read_lease(self._store, self._key)
                if found is None or found.holder != self._state.holder:
                    self._lost = _taken(self._key, self._what, found)
                elif _took(self._store, self._key, _renewal(found, ttl_s), etag):
                    self._renewed = asked
                    return
        raise LeaseLost(self._lost)


def acquire(
    store: Store,
    key: str,
    what: str,
    *,
    ttl_s: float = TTL_S,
    wait_s: float | None = None,
    on_progress: OnProgress = silent,
) -> Lease:
    """Take a lease; to be used as a context manager.

    Where another process holds it: taken at once if that process ran on this machine and is provably dead, else when
    the lease has not changed for its whole time to live.

    Args:
        store: the zone that the lease is in.
        key: of the lease.
        what: it is on, for people, as in "training run 0123".
        ttl_s: time to live of the new lease, in seconds.
        wait_s: how long to wait for the holder; None: as long as it renews.
        on_progress: told about once a second whom this process waits for; may raise to stop waiting.

    Raises:
        LeaseHeld: ``wait_s`` is over.
    """
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
                return Lease(store, key, what, claim, asked)
        else:
            _wait(what, held, asked - began, wait_s, on_progress)


def say(progress: Progress) -> None:
    """Tell the log now and then whom this process waits for."""
    if progress.done % SAY_EVERY_S == SAY_EVERY_S - 1:
        log.warning("%s", progress.stage)


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
    return pids.created(held.pid) != held.process_started


def _took(store: Store, key: str, claim: LeaseState, etag: str | None) -> bool:
    try:
        store.compare_and_swap(key, claim.to_json(), etag=etag)
    except Conflict:
        return False
    return True


def _wait(what: str, held: LeaseState, waited: float, wait_s: float | None, on_progress: OnProgress) -> None:
    who = f"process {held.pid} on {held.hostname}"
    if wait_s is not None and waited >= wait_s:
        raise LeaseHeld(f"{_capital(what)} is being worked on by {who}: wait for it, or stop it, and run again.")
    on_progress(Progress(f"waiting for {who}, which works on {what}", int(waited), unit="s"))
    time.sleep(min(1.0, held.ttl_s / 10))


def _claim(fence: int, ttl_s: float) -> LeaseState:
    return LeaseState(
        holder=secrets.token_hex(8),
        host=_host(),
        hostname=socket.gethostname(),
        pid=os.getpid(),
        process_started=pids.created(os.getpid()) or 0.0,
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
        raise Corrupted(
            f"{store.url}/{key} is not a lease of this program; remove it if nothing works there."
        ) from error


def _taken(key: str, what: str, by: LeaseState | None) -> str:
    if by is None:
        return f"The lease {key} was removed, as it is when all is done: this process stops without writing."
    return f"Process {by.pid} on {by.hostname} took {what} over: this process stops without writing."


def _capital(what: str) -> str:
    return what[:1].upper() + what[1:]


def _host() -> str:
    """This machine, this boot of it, and this process namespace: where a pid means the same process."""
    return digest_of([socket.gethostname(), *_boot()])[:16]


def _boot() -> list[str]:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return [boot.read_text(encoding="ascii").strip(), str(namespace.readlink())]
    except OSError:  # not Linux
        return [str(psutil.boot_time())]
