"""Make a model version live and prove it over HTTP; if it does not prove itself, make the old one live again.

- **Live means that the alias points at it.** Under target ``follow`` every replica follows the alias by itself; this
  step moves it where promotion has not, waits until all of them say that they have followed, and asks each what any
  client would ask. Under target ``docker`` containers of the new version prove themselves beside the old ones first;
  then the alias moves, and then they take over. Under target ``kubernetes`` a Deployment is pinned to the version, and
  rolled out while each new replica proves itself; the alias moves last, once the Service has answered too.
- **The proof is the evaluation's own predictions** (``proof``), from every replica.
- **A version that fails is taken off the alias** again, unless it had proven itself before (``alias_move``).
- Killed at any point and repeated, it goes on: each part looks first whether it is done.
- Deployments by containers take turns, under a lease: two of one version would otherwise build on, and clear away, each
  other's. Whoever waited deploys only if the alias still says what it said before.
- **With a canary** the version first gets a share of the requests, and the alias moves once it has proven itself on
  that (``canary``). Ramps of a model take turns as well; what is live at once needs no turn, and ends a ramp.
- Which server is asked, and how one is started on this machine, is in ``inference_server``; how its replicas are found,
  in ``replicas``; how containers take over, in ``takeover``; how a Deployment is rolled out, in ``rollout``.
"""

from collections.abc import Callable
from functools import partial

import httpx

from pipeline import (
    alias_move,
    aliases,
    canary,
    docker_target,
    inference_server,
    leases,
    proof,
    registry,
    takeover,
)
from pipeline.alias_move import Alias, AliasMove
from pipeline.aliases import CHALLENGER, CHAMPION, AliasState
from pipeline.artifacts import CanaryConfig, CanaryStep, Deployment, ModelVersion
from pipeline.canary_step import OnStep
from pipeline.errors import ClusterUnavailable, Conflict, DeployFailed, InvalidSettings, LocalServiceFailed
from pipeline.inference_server import Server
from pipeline.progress import OnProgress, silent
from pipeline.registry import ModelManifest
from pipeline.replicas import BACK_TIMEOUT_S, Prove, Replicas, Resolve, addresses, wait_until_all
from pipeline.settings import PREFIX, Settings
from pipeline.store import Store
from pipeline.takeover import TakenOver
from pipeline.zones import Zones

Record = Callable[[str, int], Deployment]
"""Remembers that the version has proven itself at a URL, in so many replicas."""
READY_TIMEOUT_S = 60.0
TURN_TTL_S = 15.0
"""Seconds without a sign of life after which another deployment by containers no longer waits for one."""


def deploy(
    zones: Zones,
    settings: Settings,
    version: ModelVersion,
    *,
    ramp: CanaryConfig | None = None,
    timeout_s: float = READY_TIMEOUT_S,
    on_progress: OnProgress = silent,
    on_step: OnStep = lambda _: None,
    still_wanted: Callable[[], object] = lambda: None,
    resolve: Resolve = addresses,
) -> Deployment:
    """Make ``version`` the one that every replica of the inference server answers with.

    Args:
        zones: the opened zones.
        settings: say where the server is, or where to start one.
        version: to make live.
        ramp: how it gets there by a canary; None: at once. Where nothing is live there is nothing to compare it with,
            and it goes live at once too.
        timeout_s: how long the replicas may take to follow the alias, in seconds.
        on_progress: told of every smoke image, and of whom it waits for.
        on_step: told of each step of a canary that came to an end.
        still_wanted: called in each round of a canary; raises where nobody wants it to go on now. It keeps its share.
        resolve: the addresses of a host.

    Raises:
        InvalidSettings: the server's URL is not one, or the compose project is not as it has to be.
        NotFound: there is no such version.
        DeployFailed: the version did not prove itself; the alias is back where it was.
        CanaryHeld: there were too few requests to judge a canary by; it keeps its share, and the alias stays.
        Conflict: somebody else moved the alias at the same moment.
        LocalServiceFailed: it is live, but containers of the old version could not be removed.
    """
    _refuse_bad_url(settings)
    _refuse_pinned(settings, ramp)
    manifest = registry.read_manifest(zones.models, version.model, version.version)
    questions = proof.smoke_set(zones, manifest)
    steps: list[CanaryStep] = []

    def prove(client: httpx.Client) -> str | None:
        return proof.prove(client, questions, manifest, on_progress)

    def record(url: str, replicas: int) -> Deployment:
        asked, target = len(questions), settings.deploy_target
        done = Deployment(
            model_version=version, url=url, smoke_images=asked, replicas=replicas, target=target, canary=tuple(steps)
        )
        return alias_move.remember(zones.models, manifest, done)

    def note(step: CanaryStep) -> None:
        steps.append(step)
        on_step(step)

    def follow(before: Alias) -> Deployment:
        if ramp and before and before[0].version not in (None, manifest.version):
            climb = partial(canary.ramp_up, zones, settings, manifest, ramp, timeout_s=timeout_s, resolve=resolve)
            before = climb(before, on_progress=on_progress, on_step=note, still_wanted=still_wanted)
        alias = AliasMove(zones.models, manifest, before)
        return record(*_by_following(settings, manifest, alias, prove, timeout_s, resolve))

    def by_docker(before: Alias) -> Deployment:
        return _by_docker(settings, manifest, AliasMove(zones.models, manifest, before), prove, record, timeout_s)

    def by_kubernetes(before: Alias) -> Deployment:
        alias = AliasMove(zones.models, manifest, before)
        return record(*_by_kubernetes(settings, manifest, alias, prove, timeout_s, resolve))

    if settings.deploy_target == "follow" and ramp is None:
        return follow(aliases.read_alias(zones.models, manifest.model, CHAMPION))
    ways = {"follow": follow, "docker": by_docker, "kubernetes": by_kubernetes}
    return _in_turn(zones.models, manifest, ways[settings.deploy_target], on_progress)


def target(models: Store, model: str, version: str | None, *, by_canary: bool) -> ModelVersion:
    """The version to deploy: the named one; else the champion, or the challenger of a canary that goes on or begins.

    Raises:
        NotFound: there is no such version.
    """
    if version is None and by_canary:
        found = aliases.read_alias(models, model, CHAMPION)
        version = found[0].canary.challenger if found and found[0].canary else CHALLENGER
    return aliases.resolve(models, model, version or CHAMPION)


def summary(deployment: Deployment) -> str:
    """A deployment in a line for a person."""
    live = deployment.model_version
    replicas = f", all {deployment.replicas} replicas of it" if deployment.replicas > 1 else ""
    return f"{live.model} {live.version} answers at {deployment.url}{replicas}."


def _by_following(  # noqa: PLR0917 - private, and called once
    settings: Settings,
    manifest: ModelManifest,
    alias: AliasMove,
    prove: Prove,
    timeout_s: float,
    resolve: Resolve,
) -> tuple[str, int]:
    """Move the alias and wait until all replicas have followed: the server's URL, and how many there are."""
    alias.point()
    server = None
    try:
        server = inference_server.up(settings, manifest.model)
        with Replicas(server.url, resolve, server.headers) as replicas:
            found = wait_until_all(
                partial(replicas.ask, manifest.model),
                manifest.version,
                timeout_s,
                prove=prove,
                still_wanted=alias.refuse_moved,
            )
    except (DeployFailed, LocalServiceFailed) as error:
        failed = f"{_failed(manifest, error)}{f' (log: {server.log})' if server else ''}"
        sentence, back = alias.take_back(error)
        if back is not None and server is not None:
            sentence += _went_back(server, manifest.model, back.version, resolve)
        raise DeployFailed(f"{failed}; {sentence}.") from error
    return server.url, found


def _in_turn(
    models: Store,
    manifest: ModelManifest,
    deploy: Callable[[Alias], Deployment],
    on_progress: OnProgress,
) -> Deployment:
    """Wait until no other deployment of the model is under way, and deploy from what the alias said before that.

    Raises:
        Conflict: meanwhile somebody else made another version live, or ended the version's canary.
    """
    before = aliases.read_alias(models, manifest.model, CHAMPION)
    key, what = f"{manifest.model}/deploying.json", f"the deployment of model {manifest.model}"
    with leases.acquire(models, key, what, ttl_s=TURN_TTL_S, on_progress=on_progress) as lease:
        lease.end()  # nothing is left to be said once this block is over
        now = aliases.read_alias(models, manifest.model, CHAMPION)
        if now != before and not (now and manifest.version in _wanted(now[0])):
            raise Conflict(f"Alias {CHAMPION!r} of model {manifest.model!r} was moved by somebody else meanwhile.")
        return deploy(now)


def _by_docker(  # noqa: PLR0917 - private, and called once
    settings: Settings,
    manifest: ModelManifest,
    alias: AliasMove,
    prove: Prove,
    record: Record,
    timeout_s: float,
) -> Deployment:
    """Let containers of the version take over, then remove those that they have taken over from."""
    try:
        with docker_target.opened(settings) as project:
            done = takeover.take_over(
                project,
                ModelVersion(model=manifest.model, version=manifest.version),
                alias.generation_before,
                Server(str(settings.inference_url), "of the gateway", settings.inference_headers),
                prove=prove,
                move_alias=alias.move,
                still_wanted=alias.refuse_moved,
                timeout_s=timeout_s,
            )
    except (DeployFailed, LocalServiceFailed) as error:
        sentence, _ = alias.take_back(error)
        raise DeployFailed(f"{_failed(manifest, error)}; {sentence}, and what was live has stayed so.") from error
    deployment = record(str(settings.inference_url), len(done.names))
    _retire(settings, done)
    return deployment


def _by_kubernetes(  # noqa: PLR0917 - private, and called once
    settings: Settings, manifest: ModelManifest, alias: AliasMove, prove: Prove, timeout_s: float, resolve: Resolve
) -> tuple[str, int]:
    """Roll the version out on a Deployment, then move the alias: the Service's URL, and how many replicas there are."""
    # Half a second and 30 MiB, for who deploys to a cluster alone.
    from pipeline import kubernetes_target, rollout  # noqa: PLC0415

    try:
        with kubernetes_target.opened(settings, timeout_s) as target:
            replicas = rollout.roll_out(
                target,
                ModelVersion(model=manifest.model, version=manifest.version),
                Server(str(settings.inference_url), "of the Service", settings.inference_headers),
                prove=prove,
                move_alias=alias.move,
                trusted=alias.stood and alias.proven,
                timeout_s=timeout_s,
                resolve=resolve,
            )
    except (DeployFailed, ClusterUnavailable) as error:
        raise DeployFailed(f"{_failed(manifest, error)}; {alias.take_back(error)[0]}.") from error
    return str(settings.inference_url), replicas


def _retire(settings: Settings, done: TakenOver) -> None:
    """Remove what has been taken over from; where that fails, the version is live nevertheless."""
    try:
        with docker_target.opened(settings) as project:
            takeover.retire(project, done)
    except LocalServiceFailed as error:
        raise LocalServiceFailed(
            f"Version {done.version.version} of model {done.version.model!r} is live, but older containers may still "
            f"answer, because they could not be removed; repeat the deployment. {error}"
        ) from error


def _refuse_bad_url(settings: Settings) -> None:
    url, needed = settings.inference_url, {"docker": "gateway", "kubernetes": "Service"}.get(settings.deploy_target)
    if url is None and needed:
        raise InvalidSettings(
            f"{PREFIX}INFERENCE_URL is not set: under target {settings.deploy_target} it is the {needed}'s URL."
        )
    try:
        is_one = url is None or (httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host))
    except httpx.InvalidURL:
        is_one = False
    if not is_one:
        raise InvalidSettings(f"{PREFIX}INFERENCE_URL: {url!r} is not the URL of a server, as http://host:8080.")


def _refuse_pinned(settings: Settings, ramp: CanaryConfig | None) -> None:
    if ramp is not None and settings.deploy_target != "follow":
        raise InvalidSettings(
            f"{PREFIX}DEPLOY_TARGET={settings.deploy_target}: its containers have one version each, so none can answer "
            "a share of the requests with another one; deploy without a canary, or under target follow."
        )


def _wanted(state: AliasState) -> set[str | None]:
    """The version that an alias points at, and the one that is on its way there."""
    return {state.version, state.canary.challenger if state.canary else None}


def _failed(manifest: ModelManifest, error: Exception) -> str:
    return f"Version {manifest.version} of model {manifest.model!r} did not go live: {str(error).rstrip('.')}"


def _went_back(server: Server, model: str, version: str | None, resolve: Resolve) -> str:
    """Wait until every replica has the old version again; a clause that says so, or what hinders it."""
    try:
        with Replicas(server.url, resolve, server.headers) as replicas:
            found = wait_until_all(partial(replicas.ask, model), version, BACK_TIMEOUT_S)
    except DeployFailed as error:
        return f", but {error}"
    return ", and so does the server" if found == 1 else f", and so do all {found} replicas"
