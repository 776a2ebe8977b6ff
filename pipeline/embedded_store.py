"""An object store of this machine for people who have none: one server, from PyPI, started, found and stopped.

Decisions:

- How the server is closed to all but its owner stands in ``seaweedfs``.
- **Found, started and stopped under one lock**, and waited for outside of it, so that a frozen store can be stopped.
  Who waited looks again under the lock: a store that was answering while it was being stopped is not the answer.
- An acknowledged object survives the death of the process, even by SIGKILL, but not surely that of the machine: no
  write is flushed to the disk before its answer.
"""

import fcntl
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline import buckets, processes, seaweedfs
from pipeline.errors import LocalServiceFailed
from pipeline.private_files import locked, private_folder
from pipeline.processes import Service

log = logging.getLogger(__name__)

NAME = "store"
REGION = "us-east-1"
START_TIMEOUT_S = 60.0
SAY_EVERY_S = 3.0
"""Between lines in the log while it is waited for; a look may take two seconds more."""
STOP_TIMEOUT_S = 3.0
"""It leaves in one second as a rule, in ten to thirty when it was busy; killed, it loses nothing either."""
START_ATTEMPTS = 3
SPARE_BYTES = 256 << 20
"""Room that a store should have at its start, beyond the hundredth of the disk that weed never fills."""


@dataclass(frozen=True)
class Connection:
    """How to reach the store.

    Attributes:
        endpoint: ``http://127.0.0.1:port``.
        access_key_id: of the store's one identity, its administrator.
        secret_access_key: of the same; ``repr`` does not show it.
        region: what requests are signed for.
    """

    endpoint: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str = REGION


def up(home: Path, port: int = 8333) -> Connection:
    """Start the store of ``home``, or find it running; it answers when this returns.

    Args:
        home: folder of all local state; the objects lie in ``<home>/store``.
        port: preferred port for S3; a busy one is replaced.

    Raises:
        LocalServiceFailed: no room, no right to write, no server installed, or a server that does not start.
    """
    home = home.absolute()
    with _starting(home):
        service = processes.find(home, NAME)
        if service is None:
            last = processes.recorded(home, NAME)
            return _start(home, port, last.ports if last else {})
    try:
        _wait(home, service)
    except LocalServiceFailed:
        if processes.alive(service):  # frozen, perhaps: never a second server on the same data
            raise
    with _starting(home):  # a stop that was under way is over now
        if processes.find(home, NAME) == service:
            return _connection(home, service)
    return up(home, port)  # it was ending when we found it


def down(home: Path) -> bool:
    """Stop the store of ``home``; False if it was not running. Its objects stay.

    Raises:
        LocalServiceFailed: it cannot be stopped.
    """
    home = home.absolute()
    if processes.find(home, NAME) is None:
        return False
    with _starting(home):
        service = processes.find(home, NAME)
        return service is not None and _stop(home, service)


def status(home: Path) -> Connection | None:
    """How to reach the store of ``home`` if it is running; one that is just starting may not answer yet."""
    service = processes.find(home.absolute(), NAME)
    return None if service is None else _connection(home.absolute(), service)


def refuse_full_disk(folder: Path, total: int, free: int) -> None:
    """Refuse to start where weed would soon leave writes unanswered: it stops below one free hundredth of the disk.

    Args:
        folder: named in the message.
        total: size of its disk, in bytes.
        free: what is left of it, in bytes.

    Raises:
        LocalServiceFailed: too little is left.
    """
    needed = total // 100 + SPARE_BYTES
    if free < needed:
        raise LocalServiceFailed(
            f"The disk of {folder} has {free >> 20} MiB left and the object store needs {needed >> 20} MiB: make room, "
            "or choose another folder with SAFELIGHT_HOME."
        )


def _starting(home: Path) -> AbstractContextManager[None]:
    """Held while a store is looked for, started or stopped, so that nobody sees or stops one that is half started."""
    return locked(home, f"{NAME}-up")


def _start(home: Path, port: int | None, last: Mapping[str, int], attempts: int = START_ATTEMPTS) -> Connection:
    """Start a server, on the ``last`` ports if it can be: whoever waits for one that was killed finds it again."""
    folder = _prepare(home)
    ports = seaweedfs.choose_ports(port, last)
    service = processes.start(
        home, NAME, seaweedfs.command(ports), env=seaweedfs.environ(folder), ports=ports, cwd=folder
    )
    try:
        _wait(home, service)
    except LocalServiceFailed:
        died = not _stop(home, service)
        if not died or attempts == 1:
            raise
        # As a rule another program, or another home's store, took a port between our look and weed's: spare ports now.
        return _start(home, None, {}, attempts - 1)
    return _connection(home, service)


def _stop(home: Path, service: Service) -> bool:
    """Whether it was still running."""
    stopped = processes.stop(home, NAME, STOP_TIMEOUT_S)
    seaweedfs.remove_sockets(service.ports.values())
    return stopped


def _wait(home: Path, service: Service) -> None:
    """Until a signed request is answered; a store that keeps us waiting is named in the log."""
    it = _connection(home, service)
    began = said = time.monotonic()

    def answers() -> bool:
        nonlocal said
        if buckets.answers(it.endpoint, it.access_key_id, it.secret_access_key, it.region):
            return True
        now = time.monotonic()
        if now - said > SAY_EVERY_S:
            said = now
            waited = "The object store at %s (process %d) has not answered for %.0f s; given up after %.0f s."
            log.warning(waited, it.endpoint, service.pid, now - began, START_TIMEOUT_S)
        return False

    processes.wait_until(answers, service, START_TIMEOUT_S)


def _connection(home: Path, service: Service) -> Connection:
    return Connection(f"http://127.0.0.1:{service.ports['s3']}", *seaweedfs.credentials(home / "store"))


def _prepare(home: Path) -> Path:
    """The store's folder, with all that the server reads at its start."""
    folder = private_folder(home / "store")
    data = private_folder(folder / "data")
    usage = shutil.disk_usage(folder)
    refuse_full_disk(folder, usage.total, usage.free)
    _refuse_second_user(data)
    seaweedfs.prepare(folder)
    return folder


def _refuse_second_user(data: Path) -> None:
    """A server that we have no record of (another container with this home) would not outlive a new certificate."""
    index = data / "filerldb2" / "00" / "LOCK"
    if not index.exists():
        return
    # The lock that a server holds on its index; one that was just killed may hold it for a moment yet.
    moment = Retrying(
        retry=retry_if_exception_type(BlockingIOError), stop=stop_after_delay(3), wait=wait_fixed(0.05), reraise=True
    )
    with index.open("rb") as file:
        try:
            moment(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalServiceFailed(
                f"{data} is in use by a server that was started elsewhere, or whose record is lost: stop it first."
            ) from error
