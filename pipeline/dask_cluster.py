"""A Dask cluster that chunks are given to: reached, found to fit this program, watched while it works.

- **The cluster is somebody else's to run** (``dask scheduler``, ``dask worker``, or ``k8s/components/dask``). A worker
  has an environment of its own, in which it finds its settings and credentials; here only items and results travel.
  Dask pickles both on their way, between processes of one owner; nothing of it is stored.
- **Whoever reaches a scheduler can have any code executed by its workers.** So it belongs into a closed network, or
  behind mutual TLS: ``tls://``, with Dask's own variables (``DASK_DISTRIBUTED__COMM__TLS__…``) for the certificates.
- A worker that dies is Dask's to notice: what it had goes to another one. A chunk that killed worker after worker is
  given up.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

from dask.system import CPU_COUNT
from distributed import Client, KilledWorker, get_worker
from distributed.comm.core import CommClosedError
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

from pipeline.errors import InvalidSettings, WorkersUnavailable
from pipeline.task_runners import Item, Lost, Promise, Runner

log = logging.getLogger(__name__)

R = TypeVar("R")
AnyClient = TypeVar("AnyClient", bound=Client)

CONNECT_S = 5.0
"""For one attempt to reach the scheduler."""
WORKERS_S = 300.0
"""How long a cluster may be without a worker; a new machine for one takes minutes."""
SAY_EVERY_S = 5.0
MUST_MATCH = ("python", "dask", "distributed", "cloudpickle", "msgpack")
"""What client and workers must have in common to understand each other; of Python its minor version."""
TLS_VARIABLES = "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …__CLIENT__CERT and …__CLIENT__KEY"


@contextmanager
def opened(
    address: str,
    submit: Callable[[AnyClient, Item, str], Promise],
    *,
    client: type[AnyClient],
    patience_s: float,
) -> Iterator[Runner[Item, Any]]:
    """The workers of the scheduler at ``address``.

    Args:
        address: ``tcp://host:port`` or ``tls://host:port``.
        submit: an item, under a new key, by a client.
        client: Dask's own, or one that knows what it submits.
        patience_s: how long a scheduler that does not answer is asked again.

    Raises:
        WorkersUnavailable: it stayed away.
        InvalidSettings: it speaks another version, or no TLS, or the certificates are missing.
    """
    with reached(address, client, patience_s) as cluster:
        _refuse_mismatch(address, cluster)
        watch = _Watch(cluster, address)
        yield Runner(
            submit=lambda item: watch.lost_if_closed(lambda: submit(cluster, item, f"chunk-{uuid4()}")),
            result=lambda promise: watch.lost_if_closed(promise.result),
            room=watch.room,
            look=watch.look,
        )


@contextmanager
def reached(address: str, client: type[AnyClient], patience_s: float) -> Iterator[AnyClient]:
    """A client of the scheduler, closed at the end: what it had asked for is forgotten there."""
    _refuse_without_certificate(address)
    found = _asked_again(address, client, patience_s)
    try:
        yield found
    finally:
        found.close()  # type: ignore[no-untyped-call]


def cores_per_thread() -> int:
    """In a worker: how many cores each of its threads has, by the limits of its container."""
    return max(1, CPU_COUNT // get_worker().state.nthreads)


def mismatch(ours: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What keeps this process and others from understanding each other: the first difference, for a person.

    Args:
        ours: ``distributed.versions.get_versions()`` here.
        others: the same of each worker, by its address.
    """
    own = _versions(ours)
    for address, their in others.items():
        for name, version in _versions(their).items():
            if version != own[name]:
                return f"{name} is {version} on {address} and {own[name]} here"
    return None


def _versions(told: Mapping[str, Any]) -> dict[str, str]:
    packages = told["packages"]
    found = {name: str(packages.get(name)) for name in MUST_MATCH}
    return found | {"python": ".".join(found["python"].split(".")[:2])}


def _asked_again(address: str, client: type[AnyClient], patience_s: float) -> AnyClient:
    begun = said = time.monotonic()
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VersionMismatchWarning)  # judged by what matters, in ``mismatch``
                return client(address, timeout=CONNECT_S, set_as_default=False, name="safelight")
        except (ValueError, ImportError) as error:
            raise InvalidSettings(f"SAFELIGHT_TASK_RUNNER: {address} is no use: {_first_line(error)}.") from error
        except (OSError, CommClosedError) as error:
            now = time.monotonic()
            if now - begun >= patience_s:
                raise WorkersUnavailable(
                    f"No Dask scheduler answered at {address} for {patience_s:.0f} s: start it, or correct "
                    f"SAFELIGHT_TASK_RUNNER ({_first_line(error)})."
                ) from error
            if now - said >= SAY_EVERY_S:
                said = now
                log.warning("waiting for the Dask scheduler at %s, for %.0f s so far", address, now - begun)
            time.sleep(min(0.5, patience_s))


def _refuse_without_certificate(address: str) -> None:
    """Before there is a client, which would only fail, and then for seconds not end."""
    try:
        certified = Security().get_connection_args("client").get("ssl_context")  # type: ignore[no-untyped-call]
    except OSError as error:
        raise InvalidSettings(f"SAFELIGHT_TASK_RUNNER: a certificate for {address} is no use: {error}.") from error
    if address.startswith("tls://") and not certified:
        raise InvalidSettings(f"SAFELIGHT_TASK_RUNNER: {address} needs certificates: set {TLS_VARIABLES}.")


def _refuse_mismatch(address: str, cluster: Client) -> None:
    told: Any = cluster.get_versions()
    others = {"the scheduler": told["scheduler"]} | dict(told["workers"])
    if difference := mismatch(told["client"], others):
        raise InvalidSettings(
            f"The Dask cluster at {address} is of another version: {difference}: use one image for all of them."
        )


class _Watch:
    """A cluster while it works for this client."""

    def __init__(self, cluster: Client, address: str) -> None:
        self._cluster = cluster
        self._address = address
        self._idle_since: float | None = None
        self._said = 0.0

    def room(self) -> int:
        """One more chunk than there are threads at work, so that none waits for this process, and two at least."""
        return 1 + max(1, self._threads())

    def look(self) -> None:
        """Say that there is no worker; after ``WORKERS_S`` that is final.

        Raises:
            WorkersUnavailable: nobody came.
            Lost: the scheduler is gone.
        """
        if self._threads():
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since >= WORKERS_S:
            raise WorkersUnavailable(
                f"The Dask scheduler at {self._address} has had no worker for {WORKERS_S:.0f} s: start some "
                f"(dask worker {self._address}), and run this again."
            )
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            log.warning("the Dask scheduler at %s has no worker: waiting for one", self._address)

    def lost_if_closed(self, ask: Callable[[], R]) -> R:
        """What ``ask`` returns.

        Raises:
            Lost: the scheduler is gone, or has forgotten what it was asked for.
            WorkersUnavailable: three workers died of one chunk.
        """
        try:
            return ask()
        except KilledWorker as error:
            raise WorkersUnavailable(
                f"Worker after worker of the Dask scheduler at {self._address} died of the same chunk: give them more "
                "memory, and run this again."
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise Lost(f"The Dask scheduler at {self._address} is gone") from error

    def _threads(self) -> int:
        if self._cluster.status != "running":
            raise Lost(f"The Dask scheduler at {self._address} is gone")
        try:
            return sum(self._cluster.nthreads().values())  # type: ignore[no-untyped-call]
        except OSError as error:
            raise Lost(f"The Dask scheduler at {self._address} is gone") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
