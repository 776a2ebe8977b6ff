"""What the containers of a model version are, and which of them have had their time: values in, values out.

- **A container is made from compose's own.** Compose keeps a container of service ``serving`` that has ended at once:
  the pattern. Image, memory limit, volumes, read-only root and all else that compose was told are copied from it, so
  that they stand in one file; as many such patterns as there are, as many replicas are wanted.
- **It is pinned to one version, and its name tells what it was made from.** Two deployments of the same version arrive
  at the same names, and so at the same containers; one that was made otherwise has another name.
- Compose counts it to the project under a service of its own: ``docker compose ps``, ``logs``, ``stop`` and ``down``
  know it, and ``up`` leaves it alone.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.artifacts import ModelVersion, digest_of
from pipeline.settings import SERVING_PREFIX

PATTERN = "serving"
"""Compose's service that the containers are made after, and the name by which the gateway finds those that are live."""
LIVE = "serving-live"
"""The service that they belong to, which stands in no file."""
ROLE = "safelight.role"
COMPOSE = "com.docker.compose"
LONGEST_DEPLOYMENT_S = 900.0
"""A container that has not gone live for so long belongs to a deployment that was killed."""
KEPT = ("Cmd", "Env", "ExposedPorts", "Healthcheck", "StopSignal", "StopTimeout", "User", "WorkingDir")
"""Of a pattern's configuration. Its entrypoint is what lets it end at once; the image has the right one."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How the containers of one version are made.

    Attributes:
        identity: 12 digits of the digest of all that follows.
        config: what the engine's API takes.
        networks: names of the networks that they are on.
        port: that they listen on.
        replicas: how many are wanted.
    """

    identity: str
    config: dict[str, Any]
    networks: tuple[str, ...]
    port: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Container:
    """A serving container that is there.

    Attributes:
        generation: of the alias when it was made.
        state: as the engine calls it: created, running, restarting, exited, …
        networks: names of those that it is on.
        addresses: on its networks, while it runs.
        takes_requests: the gateway finds it.
        ending: how it ended the last time.
    """

    name: str
    identity: str
    version: str
    generation: int
    created: datetime
    state: str
    networks: tuple[str, ...]
    addresses: tuple[str, ...]
    takes_requests: bool
    ending: str


def blueprint(patterns: Collection[Mapping[str, Any]], version: ModelVersion) -> Blueprint:
    """How containers of ``version`` are made after compose's ``patterns``, as the engine describes them."""
    pattern = min(patterns, key=lambda each: str(each["Name"]))
    config = {name: pattern["Config"][name] for name in KEPT if pattern["Config"].get(name) is not None}
    config["Env"] = _pinned(config["Env"], version.version)
    config["Image"] = pattern["Image"]
    # Nothing is published: the gateway has the only address that the world knows. One that fails is not started again.
    config["HostConfig"] = pattern["HostConfig"] | {"PortBindings": {}, "RestartPolicy": {"Name": "no"}}
    networks = tuple(sorted(pattern["NetworkSettings"]["Networks"]))
    return Blueprint(
        identity=digest_of([config, networks])[:12],
        config=config,
        networks=networks,
        port=int(variables(pattern).get(f"{SERVING_PREFIX}PORT") or 8080),
        replicas=len(patterns),
    )


def variables(inspected: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a container, as the engine describes it."""
    return dict(each.partition("=")[::2] for each in inspected["Config"]["Env"] or ())


def named(project: str, version: ModelVersion, plan: Blueprint) -> list[str]:
    """The names of the containers of a blueprint."""
    return [
        f"{project}-{LIVE}-{version.version.lower()}-{plan.identity}-{number}" for number in range(1, plan.replicas + 1)
    ]


def labels(project: str, version: ModelVersion, plan: Blueprint, number: int, generation: int) -> dict[str, str]:
    """By which we, and compose, know a container again."""
    return {
        ROLE: "serving",
        "safelight.model": version.model,
        "safelight.version": version.version,
        "safelight.identity": plan.identity,
        "safelight.generation": str(generation),
        f"{COMPOSE}.project": project,
        f"{COMPOSE}.service": LIVE,
        f"{COMPOSE}.container-number": str(number),
        f"{COMPOSE}.oneoff": "False",
        f"{COMPOSE}.config-hash": plan.identity,
    }


def is_as_made(each: Container, plan: Blueprint) -> bool:
    """Whether a container of that name needs nothing but, at most, to be started: nothing came in between."""
    return each.networks == plan.networks and each.state in {"created", "running"}


def described(inspected: Mapping[str, Any]) -> Container:
    """A container of ours, as the engine describes it."""
    known = inspected["Config"]["Labels"]
    state = inspected["State"]
    networks = inspected["NetworkSettings"]["Networks"]
    found = [each["IPAddress"] or each["GlobalIPv6Address"] for each in networks.values()]
    return Container(
        name=inspected["Name"].removeprefix("/"),
        identity=known["safelight.identity"],
        version=known["safelight.version"],
        generation=int(known["safelight.generation"]),
        created=datetime.fromisoformat(inspected["Created"].partition(".")[0].removesuffix("Z") + "+00:00"),
        state=state["Status"],
        networks=tuple(sorted(networks)),
        addresses=tuple(sorted(address for address in found if address)),
        takes_requests=any(PATTERN in (each["Aliases"] or ()) for each in networks.values()),
        ending="out of memory" if state["OOMKilled"] else f"status {state['ExitCode']}",
    )


def outlived(
    found: Iterable[Container], kept: Collection[str], version: str, generation: int, now: datetime
) -> list[Container]:
    """Which containers have to go when the containers ``kept`` of ``version`` are live.

    Those made while the alias said something older are a predecessor's, or of a deployment that has lost. One made
    since may still win: it is left, unless its deployment must be dead.

    Args:
        found: all of the model's.
        kept: names.
        version: that the alias points at.
        generation: of the alias.
        now: the time, with its zone.
    """

    def has_to_go(each: Container) -> bool:
        is_stale = not each.takes_requests and (now - each.created).total_seconds() > LONGEST_DEPLOYMENT_S
        return each.version == version or each.generation < generation or is_stale

    return [each for each in found if each.name not in kept and has_to_go(each)]


def _pinned(environ: Iterable[str], version: str) -> list[str]:
    """The environment, with one version in place of an alias."""
    replaced = (f"{SERVING_PREFIX}ALIAS=", f"{SERVING_PREFIX}VERSION=")
    return sorted([*(each for each in environ if not each.startswith(replaced)), f"{SERVING_PREFIX}VERSION={version}"])
