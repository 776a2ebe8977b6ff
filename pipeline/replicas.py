"""The replicas of an inference server: found by name, each asked at its own address, until all have followed.

- **A name is looked up anew in every round**, since replicas come and go: one that has left DNS is not waited for, and
  a new one is asked too. So the URL must name the replicas, not a gateway in front of them: at its one address now this
  replica answers, now that one. A gateway that gives itself away (``Via``) is refused.
- **One that has proven itself must still be there in a last round, in which nothing happens**; one that was started
  again in between is asked anew.
- **Addresses of two families are mostly the same replicas twice** (localhost is 127.0.0.1 and ::1): a family in which
  nobody answers is left out where another one answers.
- Replicas are asked directly, never through a proxy, and by the name's own Host header and certificate.
"""

import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from pipeline.errors import DeployFailed
from pipeline.settings import PREFIX

FAILURE_GRACE_S = 3.0
"""How long a replica may say that it cannot load the version before that is believed; it tries again meanwhile."""
BACK_TIMEOUT_S = 5.0
"""How long the replicas may take to go back to the old version before a failed deployment says that they have not."""
POLL_S = 0.1
ASKED_AT_ONCE = 16
STATUS_TIMEOUT = httpx.Timeout(5.0, connect=2.0)
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
ONLY_JUST = "has only just proven itself"
DOES_NOT_ANSWER = "does not answer"

Resolve = Callable[[str], Sequence[str]]
"""The addresses of a host; none while its name does not resolve."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One address behind the URL; ``name`` is what to call it in a sentence."""

    address: str
    name: str
    client: httpx.Client = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Status:
    """What a replica says of a model.

    Attributes:
        versions: what its processes answer with: one version (None for nothing), or several while they differ.
        live_since: when the replica began to answer with it; another time means that it was started again.
        refused: the version that it could not load, if any.
        reason: why not; or why it serves nothing newer.
    """

    versions: frozenset[str | None]
    live_since: str | None = None
    refused: str | None = None
    reason: str = ""


Answer = TypeVar("Answer")
Said = Mapping[Replica, Status | None]
"""What each replica said; None of one that does not answer."""
Prove = Callable[[httpx.Client], str | None]
"""Asks a replica; why it could not be asked just now, None if it has proven itself."""


class Replicas:
    """The replicas behind one URL; a context that keeps a client for each address."""

    def __init__(self, url: str, resolve: Resolve, headers: Mapping[str, str] | None = None) -> None:
        """Nothing is looked up yet; ``headers`` go with every request."""
        self.url = url
        self._headers = headers
        self._resolve = resolve
        self._known: dict[str, Replica] = {}
        self._open = ExitStack()
        self._threads = self._open.enter_context(ThreadPoolExecutor(ASKED_AT_ONCE, "replicas"))

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close all connections."""
        self._open.close()

    def ask(self, model: str) -> Said:
        """What each replica that there is at the moment says of ``model``.

        Raises:
            DeployFailed: one of them serves another model, or is no inference server of ours.
        """
        return self.each(lambda replica: _status(replica, model))

    def each(self, question: Callable[[Replica], Answer | None]) -> dict[Replica, Answer | None]:
        """What each replica that there is at the moment answers to a question; None of one that does not answer."""
        host = httpx.URL(self.url).host
        found = [self._at(address, host) for address in self._resolve(host)]
        return counted(dict(zip(found, self._threads.map(question, found), strict=True)))

    def _at(self, address: str, host: str) -> Replica:
        if address not in self._known:
            name = self.url if address == host else f"{self.url} ({address})"
            transport = _ToAddress(address)
            client = httpx.Client(base_url=self.url, headers=self._headers, transport=transport, timeout=TIMEOUT)
            self._known[address] = Replica(address, f"the server at {name}", self._open.enter_context(client))
        return self._known[address]


def addresses(host: str) -> list[str]:
    """Every address of a host as the system's resolver knows it now, sorted; none while the name does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(each[4][0]) for each in found})


def wait_until_all(
    ask: Callable[[], Said],
    version: str | None,
    timeout_s: float,
    *,
    prove: Prove = lambda _: None,
    still_wanted: Callable[[], object] = lambda: None,
) -> int:
    """Return, with their number, once every replica answers with ``version`` and has proven itself.

    Args:
        ask: what each replica that there is says.
        version: that must be live; None: nothing must be.
        timeout_s: how long to wait, in seconds. A round that is under way then is completed.
        prove: asks a replica that has followed.
        still_wanted: called in each round; raises where there is nothing to wait for any more.

    Raises:
        DeployFailed: a replica cannot load the version, answers otherwise, or is not one of ours; or not all of them
            followed in time, or there was none.
    """
    deadline = time.monotonic() + timeout_s
    rounds = Rounds(version, prove)
    while True:
        still_wanted()
        said = ask()
        hindrances = rounds.look(said)
        if said and not hindrances:
            return len(said)
        if time.monotonic() > deadline and set(hindrances.values()) != {ONLY_JUST}:
            raise DeployFailed(_sentence(said, hindrances))
        time.sleep(POLL_S)


class Rounds:
    """What the rounds so far have found out about each replica."""

    def __init__(self, version: str | None, prove: Prove) -> None:
        """``version``: that must be live; ``prove`` asks a replica that has it."""
        self._version = version
        self._prove = prove
        self._proven: dict[Replica, str | None] = {}
        self._refusing: dict[Replica, float] = {}

    def look(self, said: Said) -> dict[Replica, str]:
        """Why each replica is not done yet; empty once a round found nothing to do."""
        found = ((replica, self._hindrance(replica, status)) for replica, status in said.items())
        return {replica: why for replica, why in found if why}

    def _hindrance(self, replica: Replica, status: Status | None) -> str | None:
        if status is None or status.versions != {self._version}:
            self._refuse_stubborn(replica, status)
            return fault(status)
        self._refusing.pop(replica, None)
        if replica in self._proven and self._proven[replica] == status.live_since:
            return None
        try:
            hindered = self._prove(replica.client)
        except DeployFailed as error:
            raise DeployFailed(f"{replica.name}: {error}") from error
        if hindered is None:
            self._proven[replica] = status.live_since
        return hindered or ONLY_JUST

    def _refuse_stubborn(self, replica: Replica, status: Status | None) -> None:
        """Give up on a replica that has been saying for some time that it cannot load the version."""
        now = time.monotonic()
        if status is None or self._version is None or status.refused != self._version:
            self._refusing.pop(replica, None)
        elif now - self._refusing.setdefault(replica, now) > FAILURE_GRACE_S:
            raise DeployFailed(f"{replica.name} {fault(status)}")


def counted(said: Mapping[Replica, Answer | None]) -> dict[Replica, Answer | None]:
    """Without the addresses of a family in which nobody answers, where somebody of the other one does."""
    answering = {_family(replica) for replica, answer in said.items() if answer is not None}
    return {replica: answer for replica, answer in said.items() if not answering or _family(replica) in answering}


def fault(status: Status | None) -> str:
    """Why a replica has not followed, as far as it says so."""
    if status is None:
        return DOES_NOT_ANSWER
    if status.reason:
        return f"did not load the version; it says: {status.reason}"
    at = ", ".join(sorted(version or "no version" for version in status.versions))
    return f"did not follow the alias in time; it is at {at}"


class _ToAddress(httpx.HTTPTransport):
    """Connects to one address, whatever the host's name resolves to; Host header and certificate stay the name's.

    Each request has a connection of its own, so that the processes behind an address share them.
    """

    def __init__(self, address: str) -> None:
        super().__init__(limits=httpx.Limits(max_keepalive_connections=0))
        self._address = address

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        request.url = request.url.copy_with(host=self._address)
        return super().handle_request(request)


def _status(replica: Replica, model: str) -> Status | None:
    """What a replica says; None while it does not answer."""
    try:
        answer = replica.client.get(f"/v2/models/{model}", timeout=STATUS_TIMEOUT)
    except httpx.TransportError:
        return None
    refuse_unusable(replica, answer)
    try:
        said = answer.json()
    except ValueError:
        said = None
    if not isinstance(said, dict) or not ({"version", "swap_error"} <= said.keys() or "detail" in said):
        raise DeployFailed(f"{replica.name} is not a Safelight inference server")
    if not answer.is_success:
        raise DeployFailed(f"{replica.name} refuses: {said['detail']}")
    return read_status(said)


def refuse_unusable(replica: Replica, answer: httpx.Response) -> None:
    """Raise DeployFailed where an answer came through a gateway that says so, or asks for a key."""
    if "via" in answer.headers:
        raise DeployFailed(
            f"{replica.name} is a gateway, behind which replicas hide: let {PREFIX}INFERENCE_URL name the replicas"
        )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise DeployFailed(f"{replica.name} asks for a key: set {PREFIX}INFERENCE_API_KEY to one that is good there")


def read_status(said: Mapping[str, Any]) -> Status:
    """The answer of ``/v2/models/{name}``, in the words that count here."""
    error = said["swap_error"] or {}
    return Status(
        versions=frozenset({said["version"], *(each["version"] for each in said.get("processes") or ())}),
        live_since=said.get("live_since"),
        refused=error.get("version"),
        reason=error.get("reason", ""),
    )


def _family(replica: Replica) -> int:
    return ipaddress.ip_address(replica.address.partition("%")[0]).version


def _sentence(said: Said, hindrances: Mapping[Replica, str]) -> str:
    """Why not all replicas are where they should be."""
    if not said:
        return (
            f"no replica was found, because the host of {PREFIX}INFERENCE_URL has no address: see that a server of "
            "that name runs, on a network that this process is on"
        )
    found = [f"{replica.name} {why}" for replica, why in sorted(hindrances.items(), key=lambda each: each[0].address)]
    return (f"{len(found)} of {len(said)} replicas did not go along: " if len(said) > 1 else "") + "; ".join(found)
