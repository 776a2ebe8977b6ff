"""A model version goes live on a Deployment: pinned, followed replica by replica, asked through the Service, or undone.

- **What may not be asked is known before anything is changed**: the Deployment, its pods and its revisions are read
  first, and what cannot work (paused, no replica, another model) is refused.
- **Each new replica proves itself as soon as it answers**, not once all have been replaced: the first wrong answer
  undoes the rollout while former replicas still take requests. The Service comes last, then the alias.
- **Undone is a patch of the Deployment**, followed until the former revision is live again. A pin that is not ours any
  more was decided by somebody else, and is left.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from pipeline import kubernetes_target, revisions
from pipeline.artifacts import ModelVersion
from pipeline.errors import Conflict, DeployFailed, InvalidSettings, SafelightError
from pipeline.inference_server import Server
from pipeline.kubernetes_target import Target
from pipeline.replicas import DOES_NOT_ANSWER, Prove, Replica, Replicas, Resolve, Rounds, wait_until_all
from pipeline.revisions import Former, Object

ROUND_S = 0.5
UNREACHABLE_S = 10.0
"""For so long no ready pod answers at its own address before this process is taken to be outside of their network."""
ATTEMPTS = 20
"""At a patch that loses against another write: a Deployment's status alone is written many times in a rollout."""


def roll_out(
    target: Target,
    version: ModelVersion,
    service: Server,
    *,
    prove: Prove,
    move_alias: Callable[[], object],
    trusted: bool,
    timeout_s: float,
    resolve: Resolve,
) -> int:
    """Have the Deployment answer with ``version``, and nothing else; how many replicas do.

    Args:
        target: the Deployment.
        version: to be live.
        service: in front of its pods.
        prove: asks a server.
        move_alias: called once everything has proven itself.
        trusted: the version is live for all that is known: where it is pinned already, a failure is not its fault.
        timeout_s: how long a replica that is ready may take to prove itself, in seconds. How long a rollout may take
            is for the Deployment to say (``progressDeadlineSeconds``).
        resolve: the addresses of a host.

    Raises:
        InvalidSettings: the Deployment is not as it has to be, or this process may not do what is needed.
        DeployFailed: the rollout did not come forward, or a replica did not prove itself.
        Conflict: somebody else pinned another version, or moved the alias.
        ClusterUnavailable: the API was away for longer than the deployment's patience.
    """
    found = kubernetes_target.read(target)
    _refuse_unusable(target, found, version)
    kubernetes_target.pods(target, found)
    former = _former(target, found, version, trusted=trusted)
    pinned = _pin(target, found, version)
    try:
        replicas = _follow(target, pinned, version, prove, timeout_s, service.headers)
        grace = pinned["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        with Replicas(service.url, resolve, service.headers) as servers:
            wait_until_all(
                partial(servers.ask, version.model),
                version.version,
                timeout_s + grace,  # the name of a headless Service stands for pods that are on their way out, too
                prove=prove,
                still_wanted=lambda: _refuse_moved(target, kubernetes_target.read(target), version),
            )
        move_alias()
    except SafelightError as error:
        undone = _undone(target, former, version, timeout_s)
        raise type(error)(f"{str(error).rstrip('.')}; {undone}.") from error
    except BaseException:
        with suppress(SafelightError):  # what ends this process does not wait for a sentence
            _undo(target, former, version)
        raise
    return replicas


def _refuse_unusable(target: Target, found: Object, version: ModelVersion) -> None:
    template = found["spec"]["template"]
    if revisions.container(template) is None:
        raise InvalidSettings(f"{target.words} has no container {revisions.CONTAINER!r} to pin a version in.")
    model = revisions.variable(template, revisions.MODEL)
    if model not in {None, version.model}:
        raise InvalidSettings(
            f"{target.words} serves model {model!r} and not {version.model!r}, because its {revisions.MODEL} says so."
        )
    if found["spec"].get("paused"):
        raise InvalidSettings(
            f"{target.words} is paused, so that nothing would be rolled out: `kubectl -n {target.namespace} rollout "
            f"resume deployment/{target.name}` ends that."
        )
    if not found["spec"].get("replicas", 1):
        raise InvalidSettings(
            f"{target.words} is scaled to 0 replicas, so that nothing could prove itself: scale it up, then deploy."
        )


def _former(target: Target, found: Object, version: ModelVersion, *, trusted: bool) -> Former | None:
    """What to go back to; None where that would be no better."""
    sets = kubernetes_target.replica_sets(target, found)
    if revisions.pin(found["spec"]["template"]) != version.version:
        return revisions.of_deployment(found)
    # it is pinned already: by a deployment that was killed, or long ago
    return None if trusted else revisions.before(found, sets, version.version)


def _pin(target: Target, found: Object, version: ModelVersion) -> Object:
    """Pin the version in the Deployment as it was read; what it is then.

    Raises:
        Conflict: somebody else pinned another one meanwhile.
    """
    first = revisions.pin(found["spec"]["template"])
    for _ in range(ATTEMPTS):
        now = revisions.pin(found["spec"]["template"])
        if now == version.version:
            return found
        if now != first:
            break
        cause = revisions.pinned_by(version.version, version.model)
        try:
            return kubernetes_target.patch(target, revisions.pinning(found, version.version, cause))
        except Conflict:  # mostly by a write of its status
            found = kubernetes_target.read(target)
    raise Conflict(f"Somebody else changed {target.words} at the same moment; it is at {_named(now)} now.")


def _follow(  # noqa: PLR0917 - private, and called once
    target: Target,
    pinned: Object,
    version: ModelVersion,
    prove: Prove,
    timeout_s: float,
    headers: Mapping[str, str],
) -> int:
    """Return once every replica is one of the version and has proven itself, as far as it can be reached."""
    course, rounds = _Course(target, timeout_s), Rounds(version.version, prove)
    at: list[str] = []
    url = f"http://{target.name}:{revisions.port(pinned['spec']['template'])}"
    with Replicas(url, lambda _: at, headers) as replicas:
        while True:
            found = kubernetes_target.read(target)
            _refuse_moved(target, found, version)
            pods = revisions.of_version(kubernetes_target.pods(target, found), version.version)
            at[:] = revisions.addresses(pods)
            hindrances = rounds.look(replicas.ask(version.model))
            if course.is_over(found, pods, hindrances):
                return len(pods)
            time.sleep(ROUND_S)


class _Course:
    """How a rollout has gone so far, and when it is given up."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._counts: tuple[object, ...] = ()
        self._moved = time.monotonic()
        self._rolled_out: float | None = None
        self._in_trouble: dict[str, float] = {}

    def is_over(self, found: Object, pods: Sequence[Object], hindrances: Mapping[Replica, str]) -> bool:
        """Whether the rollout is done, and everything that can be reached has proven itself.

        Raises:
            DeployFailed: it will not be done any more.
        """
        now = time.monotonic()
        self._refuse_trouble(pods, now)
        if not revisions.is_rolled_out(found):
            self._rolled_out = None
            self._refuse_stuck(found, pods, now)
            return False
        if not pods:
            raise DeployFailed(f"{self._target.words} was scaled to 0 replicas, so that nothing could prove itself")
        self._rolled_out = self._rolled_out or now
        waited = now - self._rolled_out
        if len(hindrances) == len(pods) and set(hindrances.values()) == {DOES_NOT_ANSWER}:
            return waited > UNREACHABLE_S  # ready to Kubernetes: this process is elsewhere, and asks the Service alone
        if hindrances and waited > self._timeout_s:
            raise DeployFailed("; ".join(sorted(f"{replica.name} {why}" for replica, why in hindrances.items())))
        return not hindrances

    def _refuse_trouble(self, pods: Sequence[Object], now: float) -> None:
        """Give up on a pod that will not start, rather than wait for the deadline."""
        troubles = {each.what: each for each in revisions.troubles(pods)}
        self._in_trouble = {name: self._in_trouble.get(name, now) for name in troubles}
        for name, trouble in troubles.items():
            if trouble.patience_s is not None and now - self._in_trouble[name] >= trouble.patience_s:
                raise DeployFailed(name)

    def _refuse_stuck(self, found: Object, pods: Sequence[Object], now: float) -> None:
        if revisions.counts(found) != self._counts:
            self._counts, self._moved = revisions.counts(found), now
        deadline = found["spec"].get("progressDeadlineSeconds", 600)
        if revisions.timed_out(found) or now - self._moved > deadline + self._timeout_s:
            raise DeployFailed(
                f"{self._target.words} did not come forward for {deadline} s: {revisions.hindrance(found, pods)}"
            )


def _refuse_moved(target: Target, found: Object, version: ModelVersion) -> None:
    """Raise Conflict where the version is not pinned any more."""
    now = revisions.pin(found["spec"]["template"])
    if now != version.version:
        raise Conflict(f"Somebody else set {target.words} to {_named(now)} meanwhile.")


def _undone(target: Target, former: Former | None, version: ModelVersion, timeout_s: float) -> str:
    """Go back, and wait until that is live; what has become of it, as a clause."""
    if former is None:
        return f"{target.words} stays at {version.version}, because it had that version before, and knows no better one"
    where = _named(revisions.pin(former.template))
    try:
        if not _undo(target, former, version):
            return f"{target.words} is left as somebody else set it"
        deadline = time.monotonic() + timeout_s
        while not revisions.is_rolled_out(found := kubernetes_target.read(target)):
            if time.monotonic() > deadline:
                live = revisions.of_version(kubernetes_target.pods(target, found), revisions.pin(former.template))
                return f"{target.words} is on its way back to {where}, but {revisions.hindrance(found, live)}"
            time.sleep(ROUND_S)
    except SafelightError as error:
        return (
            f"and {target.words} could not be taken back to {where} ({str(error).rstrip('.')}): `kubectl -n "
            f"{target.namespace} rollout undo deployment/{target.name}` does that"
        )
    return f"{target.words} is back at {where}, in all {found['spec'].get('replicas', 1)} replicas"


def _undo(target: Target, former: Former | None, version: ModelVersion) -> bool:
    """Set the Deployment to what it was; whether it was still at the version."""
    if former is None:
        return False
    for attempt in range(ATTEMPTS):
        found = kubernetes_target.read(target)
        now = revisions.pin(found["spec"]["template"])
        if now != version.version:
            # a patch whose answer was lost, and which was repeated, lost against itself
            return attempt > 0 and now == revisions.pin(former.template)
        with suppress(Conflict):
            kubernetes_target.patch(target, revisions.undoing(found, former))
            return True
    raise Conflict(f"{target.words} was changed again and again by somebody else")


def _named(version: str | None) -> str:
    return f"version {version}" if version else "what the alias says"
