"""A stack whose serving containers are replaced by deployments (target ``docker``), without Prefect."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deployable
import httpx
from deployable import prepared, register
from e2e.stack import DEFAULT_TAG, Stack, open_stack
from environs import environ
from pydantic import SecretStr

from pipeline import datasets, deploy
from pipeline.artifacts import DatasetVersion, Deployment, ModelVersion
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

MODEL = "shapes"
FILES = ("docker-compose.yml", "docker-compose.seaweedfs.yml", "docker-compose.docker.yml")
SERVICES = ("object-store", "store-init", "serving", "gateway")
SOCKET = Path("/var/run/docker.sock")


@dataclass(frozen=True)
class Target:
    """A stack whose serving containers are replaced.

    Attributes:
        seeds: which were used; each version has one of its own.
    """

    stack: Stack
    settings: Settings
    zones: Zones
    dataset: DatasetVersion
    seeds: list[int]

    def version(self, *, evaluated_otherwise: bool = False) -> ModelVersion:
        """Another registered version."""
        self.seeds.append(len(self.seeds) + 1)
        judged_as = 1000 if evaluated_otherwise else None
        return register(self.zones, self.dataset, self.seeds[-1], evaluated_as=judged_as)

    def deploy(self, version: ModelVersion, **options: Any) -> Deployment:
        """Deploy a version from this process."""
        return deploy.deploy(self.zones, self.settings, version, **options)

    def environ(self) -> dict[str, str]:
        """Of a process that deploys."""
        return environ(
            self.settings,
            SAFELIGHT_INFERENCE_URL=self.stack.gateway,
            SAFELIGHT_DEPLOY_TARGET="docker",
            SAFELIGHT_DOCKER_PROJECT=self.stack.project,
        )

    def champion(self) -> str | None:
        """What the alias points at."""
        return deployable.champion(self.zones, MODEL)

    def containers(self) -> list[dict[str, Any]]:
        """All serving containers that there are, whatever their state; compose's patterns are not among them."""
        return [self.stack.inspect(each) for each in self.stack.containers("serving-live")]

    def ids(self) -> list[str]:
        """Of all of them."""
        return [each["Id"] for each in self.containers()]

    def undisturbed(self, live: ModelVersion, containers: list[str]) -> None:
        """Assert that what was live is live still, in the very same containers, and that nothing else is there."""
        assert self.champion() == self.answering() == live.version
        assert self.ids() == containers
        assert self.versions() == [live.version] * len(containers)

    def versions(self) -> list[str]:
        """The version of each of them; all run, and the gateway finds all."""
        found = self.containers()
        for each in found:
            assert each["State"]["Running"]
            assert any("serving" in network["Aliases"] for network in each["NetworkSettings"]["Networks"].values())
        return [each["Config"]["Labels"]["safelight.version"] for each in found]

    def answering(self) -> str | None:
        """The version that the gateway answers with; none while it has no server."""
        answer = httpx.get(f"{self.stack.gateway}/v2/models/{MODEL}", timeout=10)
        return str(answer.json()["version"]) if answer.is_success else None

    def images(self) -> dict[str, bytes]:
        """Some encoded images."""
        test = datasets.load_split(self.zones.datasets, self.dataset, "test")
        digests = [bytes(each) for each in test.digests[:6]]
        found = datasets.encoded_images(self.zones.images, self.zones.datasets, self.dataset, digests)
        return {digest.hex(): data for digest, data in found}


@contextmanager
def opened() -> Iterator[Target]:
    """The stack with nothing live; afterwards nothing of it is left."""
    stack = open_stack(
        "safelight-docker",
        COMPOSE_FILE=os.pathsep.join(FILES),
        COMPOSE_IGNORE_ORPHANS="true",
        SAFELIGHT_SERVING_MODEL=MODEL,
        STACK_DOCKER_GID=str(SOCKET.stat().st_gid),
    )
    if stack.environ["STACK_TAG"] == DEFAULT_TAG:
        stack.run("make", "images", timeout=3000)
    down = ("--profile", "*", "down", "--volumes", "--remove-orphans")
    stack.compose(*down)
    try:
        stack.compose("up", "--detach", "--no-build", "--wait", *SERVICES)
        settings = _settings(stack)
        zones = open_zones(settings)
        yield Target(stack, settings, zones, prepared(zones, MODEL), [])
    finally:
        stack.compose(*down, check=False)


def _settings(stack: Stack) -> Settings:
    """The worker's, from this machine."""
    access, secret = stack.credentials("worker")
    return Settings(
        s3_endpoint=stack.store,
        s3_access_key_id=SecretStr(access),
        s3_secret_access_key=SecretStr(secret),
        inference_url=stack.gateway,
        deploy_target="docker",
        docker_project=stack.project,
    )
