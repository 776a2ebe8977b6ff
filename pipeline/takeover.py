"""Containers of a new version take over from those of the old one, without a request that fails.

Candidates start beside what is live, prove themselves by their own addresses, and only then does the alias move. What
fails before the gateway answers with the new version leaves nothing behind: nobody has touched the old containers yet.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import httpx

from pipeline import docker_target
from pipeline.artifacts import ModelVersion
from pipeline.docker_target import Project
from pipeline.errors import DeployFailed
from pipeline.inference_server import Server
from pipeline.replicas import POLL_S, STATUS_TIMEOUT, Prove, Replicas, wait_until_all
from pipeline.serving_containers import PATTERN, Blueprint, named, outlived

GATEWAY_TIMEOUT_S = 20.0
"""How long the gateway may take to find the new containers; it looks every half second."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A version whose containers take requests.

    Attributes:
        generation: of the alias that points at it.
        names: of its containers.
    """

    version: ModelVersion
    generation: int
    names: list[str]


def take_over(
    project: Project,
    version: ModelVersion,
    generation: int,
    gateway: Server,
    *,
    prove: Prove,
    move_alias: Callable[[], int],
    still_wanted: Callable[[], object],
    timeout_s: float,
) -> TakenOver:
    """Let containers of ``version``, as many as compose was told, take requests beside all others of the model.

    Args:
        project: the compose project.
        version: to be live.
        generation: of the alias, when it was decided that ``version`` should be live.
        gateway: in front of all containers.
        prove: asks a container.
        move_alias: called once all have proven themselves; the alias's generation from then on.
        still_wanted: called again and again after that; raises where somebody else moved the alias.
        timeout_s: how long the containers may take until they have proven themselves, in seconds.

    Raises:
        InvalidSettings: the project is not as it has to be.
        DeployFailed: a container ended or did not prove itself, or the gateway does not find it.
    """
    plan = docker_target.plan(project, version)
    names = named(project.name, version, plan)
    before = {each.name for each in docker_target.serving(project, version.model) if each.takes_requests}
    entered: list[str] = []
    try:
        docker_target.start(project, version, plan, generation)
        _wait(project, names, plan.port, version, gateway.headers, prove=prove, timeout_s=timeout_s)
        generation = move_alias()
        _enter(project, names, plan, entered)
        _wait(project, names, plan.port, version, gateway.headers, prove=lambda _: None, timeout_s=GATEWAY_TIMEOUT_S)
        _wait_for_gateway(gateway, version, still_wanted)
    except BaseException:
        _clear(project, version.model, [name for name in names if name not in before], entered)
        raise
    return TakenOver(version, generation, names)


def retire(project: Project, done: TakenOver) -> None:
    """Remove the model's other containers; each that takes requests finishes those that it has."""
    found = docker_target.serving(project, done.version.model)
    now = datetime.now(UTC)
    docker_target.remove(project, outlived(found, done.names, done.version.version, done.generation, now))


def _wait(
    project: Project,
    names: list[str],
    port: int,
    version: ModelVersion,
    headers: Mapping[str, str],
    *,
    prove: Prove,
    timeout_s: float,
) -> None:
    """Return once each container answers with the version, and has proven itself."""
    url = f"http://{PATTERN}:{port}"
    addresses = partial(_addresses, project, names)
    with Replicas(url, addresses, headers) as containers:
        wait_until_all(partial(containers.ask, version.model), version.version, timeout_s, prove=prove)


def _addresses(project: Project, names: list[str], host: str) -> list[str]:
    del host  # all of them have it, once they are let in
    return [docker_target.running(project, name).addresses[0] for name in names]


def _enter(project: Project, names: list[str], plan: Blueprint, entered: list[str]) -> None:
    """Let the gateway find the containers; those that this very call let in are put down in ``entered``."""
    for name in names:
        if not docker_target.running(project, name).takes_requests:
            entered.append(name)
            docker_target.let_in(project, name, plan.networks)


def _wait_for_gateway(gateway: Server, version: ModelVersion, still_wanted: Callable[[], object]) -> None:
    """Return once the gateway has answered with the version, which it can only from a new container."""
    deadline = time.monotonic() + GATEWAY_TIMEOUT_S
    with httpx.Client(base_url=gateway.url, headers=gateway.headers, timeout=STATUS_TIMEOUT, trust_env=False) as client:
        while (said := _said(client, version.model)) != version.version:
            still_wanted()
            if time.monotonic() > deadline:
                raise DeployFailed(f"the gateway at {gateway.url} does not let it be reached; it answers with {said}")
            time.sleep(POLL_S)


def _said(client: httpx.Client, model: str) -> str:
    """The version that the gateway answers with, or what it answers instead."""
    try:
        answer = client.get(f"/v2/models/{model}", headers={"Connection": "close"})
        return str(answer.json()["version"]) if answer.is_success else f"status {answer.status_code}"
    except (httpx.TransportError, ValueError, KeyError) as error:
        return f"nothing usable ({error or type(error).__name__})"


def _clear(project: Project, model: str, names: list[str], entered: list[str]) -> None:
    """Remove what this call started; not what another call of the same version has let in meanwhile."""
    found = (each for each in docker_target.serving(project, model) if each.name in names)
    docker_target.remove(project, [each for each in found if each.name in entered or not each.takes_requests])
