"""The serving containers of a compose project, by the Docker Engine's API: started, let into the traffic, removed.

- The engine is the record of what is there: nothing is remembered elsewhere, and a deployment that was killed is found
  by its containers' labels.
- **Only proven containers are found by the gateway.** An address under the name that it asks for (``serving``) is what
  makes a container live; a candidate is on the same networks without it. Docker gives a name only with a connection,
  so that a candidate is taken off its networks for a moment, before it has any client.
- A container that takes requests is always told to stop (SIGTERM) and given the time that compose gives it; it says
  that it is not ready any more, finishes what is under way, and ends.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
from docker.api import APIClient
from docker.errors import APIError, DockerException, NotFound

from pipeline.artifacts import ModelVersion
from pipeline.errors import DeployFailed, InvalidSettings, LocalServiceFailed
from pipeline.serving_containers import (
    COMPOSE,
    PATTERN,
    ROLE,
    Blueprint,
    Container,
    blueprint,
    described,
    is_as_made,
    labels,
    named,
    variables,
)
from pipeline.settings import PREFIX, SERVING_PREFIX, Settings

TIMEOUT_S = 90
"""For an answer of the engine; longer than it waits for a container to end."""
OVERRIDE = "docker-compose.docker.yml"
CONFLICT = 409
LINE = 300
"""Characters of a log's last line that are quoted."""


@dataclass(frozen=True, slots=True)
class Project:
    """One compose project on an engine."""

    engine: APIClient
    name: str


@contextmanager
def opened(settings: Settings) -> Iterator[Project]:
    """The compose project that the settings name; what the engine refuses inside is raised as one sentence.

    Raises:
        InvalidSettings: no project is named, or this process may not talk to the engine.
        LocalServiceFailed: there is no engine, or it did not do what it was asked for.
    """
    if not settings.docker_project:
        raise InvalidSettings(
            f"{PREFIX}DOCKER_PROJECT is not set: it names the compose project whose serving containers are replaced; "
            f"{OVERRIDE} sets it."
        )
    engine = _connected()
    try:
        yield Project(engine, settings.docker_project)
    except APIError as error:
        raise LocalServiceFailed(
            f"The Docker engine refused: {str(error.explanation or error).rstrip('.')}."
        ) from error
    except (DockerException, OSError) as error:
        raise LocalServiceFailed(f"The Docker engine stopped answering: {error}.") from error
    finally:
        engine.close()


def plan(project: Project, version: ModelVersion) -> Blueprint:
    """How the containers of ``version`` are made in this project.

    Raises:
        InvalidSettings: the project has no pattern, or serves another model.
    """
    wanted = [f"{COMPOSE}.project={project.name}", f"{COMPOSE}.service={PATTERN}", f"{COMPOSE}.oneoff=False"]
    patterns = _inspected(project, wanted)
    if not patterns:
        raise InvalidSettings(
            f"Compose project {project.name!r} has no container of service {PATTERN!r} to make others after: start it "
            f"with `docker compose -f docker-compose.yml -f {OVERRIDE} up`."
        )
    model = variables(patterns[0]).get(f"{SERVING_PREFIX}MODEL")
    if model != version.model:
        raise InvalidSettings(
            f"Compose project {project.name!r} serves model {model!r} and not {version.model!r}, because its "
            f"{SERVING_PREFIX}MODEL says so."
        )
    return blueprint(patterns, version)


def serving(project: Project, model: str) -> list[Container]:
    """All containers that were made for a model, whatever has become of them."""
    wanted = [f"{ROLE}=serving", f"safelight.model={model}", f"{COMPOSE}.project={project.name}"]
    return [described(each) for each in _inspected(project, wanted)]


def start(project: Project, version: ModelVersion, plan: Blueprint, generation: int) -> list[str]:
    """Have the containers of a blueprint run, those that run already included; their names.

    Raises:
        InvalidSettings: their image is gone.
    """
    found = {each.name: each for each in serving(project, version.model)}
    names = named(project.name, version, plan)
    for number, name in enumerate(names, 1):
        if name in found and not is_as_made(found[name], plan):
            remove(project, [found.pop(name)])
        if name not in found:
            _create(project, name, plan, labels(project.name, version, plan, number, generation))
        project.engine.start(name)
    return names


def running(project: Project, name: str) -> Container:
    """A container that runs, on its networks.

    Raises:
        DeployFailed: it has ended, with the last line that it said, or is gone.
    """
    try:
        found = described(project.engine.inspect_container(name))
    except NotFound as error:
        raise DeployFailed(f"container {name} was removed by somebody else") from error
    if found.state != "running" or not found.addresses:
        said = project.engine.logs(name, tail=1).decode(errors="replace").strip()[:LINE]
        raise DeployFailed(f"container {name} ended ({found.ending}); the last that it said: {said or 'nothing'}")
    return found


def let_in(project: Project, name: str, networks: Iterable[str]) -> None:
    """Let the gateway find a container; from now on the engine keeps it running."""
    for network in networks:
        project.engine.disconnect_container_from_network(name, network)
        project.engine.connect_container_to_network(name, network, aliases=[PATTERN])
    project.engine.update_container(name, restart_policy={"Name": "unless-stopped"})


def remove(project: Project, found: Iterable[Container]) -> None:
    """Remove containers, all at the same time; each that takes requests first finishes those that it has."""

    def one(container: Container) -> None:
        try:
            if container.takes_requests:
                project.engine.stop(container.name)
            project.engine.remove_container(container.name, force=True, v=True)
        except NotFound:
            return  # somebody else was quicker
        except APIError as error:
            if error.status_code != CONFLICT:  # somebody else is removing it
                raise

    with ThreadPoolExecutor(16, "remove") as threads:
        list(threads.map(one, found))


def _connected() -> APIClient:
    try:
        return docker.from_env(timeout=TIMEOUT_S).api
    except (DockerException, OSError) as error:
        if "Permission denied" in str(error):
            raise InvalidSettings(
                "This process may not use the Docker engine's socket: it needs the socket's group, which "
                f"{OVERRIDE} takes from STACK_DOCKER_GID (`stat -c %g /var/run/docker.sock` says which)."
            ) from error
        raise LocalServiceFailed(
            f"No Docker engine answers: mount its socket as {OVERRIDE} does, see that it runs, or set "
            f"{PREFIX}DEPLOY_TARGET=follow ({error})."
        ) from error


def _inspected(project: Project, wanted: list[str]) -> list[dict[str, Any]]:
    """What the engine knows of all containers with these labels, but for those that vanish meanwhile."""
    found = []
    for each in project.engine.containers(all=True, filters={"label": wanted}):
        try:
            found.append(project.engine.inspect_container(each["Id"]))
        except NotFound:
            continue
    return found


def _create(project: Project, name: str, plan: Blueprint, marks: dict[str, str]) -> None:
    """Create a container; one of this name that somebody else made at the same moment will do."""
    first, *others = plan.networks
    config = plan.config | {"Labels": marks, "NetworkingConfig": {"EndpointsConfig": {first: {}}}}
    try:
        project.engine.create_container_from_config(config, name)
        for network in others:
            project.engine.connect_container_to_network(name, network)
    except NotFound as error:
        raise InvalidSettings(
            f"The engine does not have what service {PATTERN!r} was made of ({str(error.explanation).rstrip('.')}): "
            "build the images, then start the stack again."
        ) from error
    except APIError as error:
        if error.status_code != CONFLICT:
            raise
