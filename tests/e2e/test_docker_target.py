"""Target ``docker`` on a real engine: the stack's own compose files, without Prefect, driven from this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deployable
import httpx
import pytest
from deployable import prepared, register
from e2e.stack import DEFAULT_TAG, Stack, open_stack, wait_until
from e2e.traffic import Traffic, traffic
from environs import environ
from pydantic import SecretStr

from pipeline import aliases, datasets, deploy, docker_target
from pipeline.artifacts import DatasetVersion, Deployment, ModelVersion
from pipeline.errors import Conflict, DeployFailed, InvalidSettings, SafelightError
from pipeline.progress import Progress
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

    def champion(self) -> str | None:
        """What the alias points at."""
        return deployable.champion(self.zones, MODEL)

    def containers(self) -> list[dict[str, Any]]:
        """All serving containers that there are, whatever their state; compose's patterns are not among them."""
        ids = [*self.stack.containers("serving-live")]
        return [self.stack.inspect(each) for each in ids]

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


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
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


@pytest.fixture
def live(target: Target) -> ModelVersion:
    """A version that is live: the last test's, if that left one, in one container."""
    now = target.champion()
    if now is None or target.versions() != [now]:
        return target.deploy(target.version()).model_version
    return ModelVersion(model=MODEL, version=now)


def undisturbed(target: Target, live: ModelVersion, containers: list[str]) -> None:
    """Assert that what was live is live still, in the very same containers, and that nothing else is there."""
    assert target.champion() == target.answering() == live.version
    assert [each["Id"] for each in target.containers()] == containers
    assert target.versions() == [live.version] * len(containers)


def ids(target: Target) -> list[str]:
    """Of all serving containers."""
    return [each["Id"] for each in target.containers()]


def test_the_first_version_goes_live_as_compose_would_have_made_it(target: Target) -> None:
    """Same image, rights, limits, volumes and logs; pinned; started again by the engine; no secret to be seen."""
    assert target.answering() is None
    version = target.version()
    done = target.deploy(version)
    assert (done.target, done.replicas, done.url) == ("docker", 1, target.stack.gateway)
    assert target.champion() == target.answering() == version.version
    (made,) = target.containers()
    (pattern,) = (target.stack.inspect(each) for each in target.stack.containers("serving"))
    kept = {"RestartPolicy"}
    for name in pattern["HostConfig"].keys() - kept:
        assert made["HostConfig"][name] == pattern["HostConfig"][name], name
    assert made["HostConfig"]["ReadonlyRootfs"]
    assert made["HostConfig"]["CapDrop"] == ["ALL"]
    assert made["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert made["HostConfig"]["Memory"] > 0
    assert made["HostConfig"]["LogConfig"]["Config"]["max-size"]
    assert made["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert (made["Image"], made["Config"]["User"]) == (pattern["Image"], pattern["Config"]["User"])
    pinned = f"SAFELIGHT_SERVING_VERSION={version.version}"
    assert set(made["Config"]["Env"]) == {*pattern["Config"]["Env"], pinned}
    for secret in target.stack.credentials("serving"):
        assert secret not in json.dumps(made)


def test_no_request_fails_while_containers_take_over(target: Target, live: ModelVersion) -> None:
    """Clients that keep their connections and clients that do not: all answered, afterwards by the new one alone."""
    following = target.version()
    with traffic(target.stack.gateway, target.images()) as seen:
        time.sleep(1)
        target.deploy(following)
        done = time.monotonic()
        time.sleep(2)
    _all_is_well(seen, done, live, following)
    assert target.versions() == [following.version]


def _all_is_well(seen: Traffic, done: float, before: ModelVersion, after: ModelVersion) -> None:
    assert seen.failures == []
    assert {each.version for each in seen.answers} == {before.version, after.version}
    assert seen.versions_after(done) == {after.version}


def test_three_replicas_take_over_from_one_and_one_from_three(target: Target, live: ModelVersion) -> None:
    """As many as compose is told; the same version deployed again is enough, and no request fails."""
    with traffic(target.stack.gateway, target.images()) as seen:
        for count in (3, 1):
            target.stack.compose("up", "--detach", "--no-build", "--scale", f"serving={count}", *SERVICES)
            assert target.deploy(live).replicas == count
            assert target.versions() == [live.version] * count
    assert seen.failures == []
    assert {each.version for each in seen.answers} == {live.version}


def test_deploying_what_is_live_changes_nothing(target: Target, live: ModelVersion) -> None:
    """It is proven again, in the containers that are there."""
    before = ids(target)
    target.deploy(live)
    undisturbed(target, live, before)


def test_a_rollback_brings_the_old_version_back(target: Target, live: ModelVersion) -> None:
    """In containers of its own, by the alias that was moved first."""
    target.deploy(target.version())
    state = aliases.rollback(target.zones.models, MODEL, aliases.CHAMPION, "a person said so")
    assert state.version == live.version
    began = time.monotonic()
    target.deploy(live)
    print(f"rolled back in {time.monotonic() - began:.1f} s")  # noqa: T201 - a figure
    assert target.answering() == live.version
    assert target.versions() == [live.version]


@pytest.mark.parametrize("promoted", [False, True], ids=["moved by deploy", "moved by promotion"])
def test_a_version_that_answers_otherwise_never_gets_a_request(
    target: Target, live: ModelVersion, *, promoted: bool
) -> None:
    """It fails beside what is live; its container is gone and the alias is where it was."""
    before = ids(target)
    bad = target.version(evaluated_otherwise=True)
    if promoted:
        aliases.set_alias(target.zones.models, MODEL, aliases.CHAMPION, bad.version, reason="promoted")
    with traffic(target.stack.gateway, target.images()) as seen, pytest.raises(DeployFailed, match="to the server"):
        target.deploy(bad)
    assert {each.version for each in seen.answers} == {live.version}
    assert seen.failures == []
    undisturbed(target, live, before)


def test_a_version_that_does_not_load_is_said_with_its_reason(target: Target, live: ModelVersion) -> None:
    """A model that was altered in the store; what was live stays so."""
    before = ids(target)
    bad = target.version()
    target.zones.models.put(f"{MODEL}/{bad.version}/model.onnx", b"other bytes")
    with pytest.raises(DeployFailed, match=r"did not load the version; it says: .* was altered") as caught:
        target.deploy(bad)
    assert f"still points at {live.version}, and what was live has stayed so" in str(caught.value)
    undisturbed(target, live, before)


def test_a_candidate_that_dies_is_said(target: Target, live: ModelVersion) -> None:
    """SIGKILL while it proves itself: how it ended is said, and nothing is left of it."""
    before = ids(target)

    def kill(_: Progress) -> None:
        for each in target.containers():
            if each["Id"] not in before:
                target.stack.run("docker", "kill", each["Id"], check=False)

    with pytest.raises(DeployFailed, match=r"container .* ended \(status 137\)"):
        target.deploy(target.version(), on_progress=kill)
    undisturbed(target, live, before)


def test_a_gateway_that_does_not_find_them_undoes_all(target: Target, live: ModelVersion) -> None:
    """With another server in its place: the alias goes back, and what was let in goes."""
    before = ids(target)
    elsewhere = target.settings.model_copy(update={"inference_url": target.stack.store})
    with pytest.raises(DeployFailed, match=f"points at {live.version} again") as caught:
        deploy.deploy(target.zones, elsewhere, target.version())
    assert "the gateway at" in str(caught.value)
    undisturbed(target, live, before)


KILLED_AT = (
    ("candidate created", "docker_target.APIClient.start", "repeated"),
    ("candidate proven", "deploy._point_alias", "another"),
    ("alias moved", "docker_target.let_in", "repeated"),
    ("alias moved", "docker_target.let_in", "another"),
    ("off its networks", "docker_target.APIClient.connect_container_to_network", "repeated"),
    ("on its networks", "docker_target.APIClient.update_container", "repeated"),
    ("gateway asked", "takeover._said", "another"),
    ("before the old one stops", "docker_target.APIClient.stop", "repeated"),
    ("before the old one goes", "docker_target.APIClient.remove_container", "another"),
)
"""When; what is about to be called then; and what is deployed next."""


@pytest.mark.parametrize(("_moment", "function", "following"), KILLED_AT)
def test_killed_at_any_point(target: Target, live: ModelVersion, _moment: str, function: str, following: str) -> None:
    """SIGKILL; the same deployment again, or another, makes its version live; nothing is left of the first."""
    version = target.version()
    _deploy_and_die(target, version, function)
    assert target.answering() in {live.version, version.version}
    wanted = version if following == "repeated" else target.version()
    target.deploy(wanted)
    assert target.champion() == target.answering() == wanted.version
    assert target.versions() == [wanted.version]


def _deploy_and_die(target: Target, version: ModelVersion, function: str) -> None:
    """Deploy in a process that kills itself when it is about to call ``function``."""
    module, _, name = function.partition(".")
    code = (
        "import os, signal, sys\n"
        "from pipeline import deploy, docker_target, takeover\n"
        "from pipeline.artifacts import ModelVersion\n"
        "from pipeline.settings import Settings\n"
        "from pipeline.zones import open_zones\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{module}.{name} = die\n"
        "settings = Settings.from_environ(os.environ)\n"
        f"version = ModelVersion(model={MODEL!r}, version=sys.argv[1])\n"
        "deploy.deploy(open_zones(settings), settings, version)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, version.version],
        env=_environ(target),
        timeout=120,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def _environ(target: Target, **more: str) -> dict[str, str]:
    return environ(
        target.settings,
        SAFELIGHT_INFERENCE_URL=target.stack.gateway,
        SAFELIGHT_DEPLOY_TARGET="docker",
        SAFELIGHT_DOCKER_PROJECT=target.stack.project,
        **more,
    )


@pytest.mark.parametrize("same", [False, True], ids=["two versions", "one version twice"])
def test_of_two_at_once_one_wins(target: Target, *, same: bool) -> None:
    """Both begin from the same alias: the one that moves it is live, and of the other one nothing is left."""
    first = target.version()
    both = [first, first if same else target.version()]
    failed: list[SafelightError] = []
    waits = threading.Event()

    def attempt(version: ModelVersion) -> Callable[[], None]:
        def together(progress: Progress) -> None:
            if progress.stage.startswith("waiting for"):
                waits.set()
            elif progress.done == 1:
                assert waits.wait(60), "the other one does not wait"

        def run() -> None:
            try:
                target.deploy(version, on_progress=together)
            except (Conflict, DeployFailed) as error:
                failed.append(error)

        return run

    threads = [threading.Thread(target=attempt(each)) for each in both]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    winner = target.champion()
    assert winner in {each.version for each in both}
    assert target.answering() == winner
    assert target.versions() == [winner]
    assert len(failed) == (0 if same else 1), failed


def test_a_container_that_dies_later_is_started_again(target: Target, live: ModelVersion) -> None:
    """Killed as by a lack of memory, it answers again without a deployment."""
    (container,) = ids(target)
    os.kill(target.stack.inspect(container)["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: target.stack.inspect(container)["RestartCount"] == 1, 30, "the engine did not start it again")
    wait_until(lambda: target.answering() == live.version, 30, "it did not answer again")


def test_another_model_than_the_stacks_is_refused(target: Target) -> None:
    """The gateway has one model behind it; which one is said, and by which variable."""
    with (
        docker_target.opened(target.settings) as project,
        pytest.raises(InvalidSettings, match="serves model 'shapes'"),
    ):
        docker_target.plan(project, ModelVersion(model="figures", version="20260101T000000Z-00000000"))
    nowhere = target.settings.model_copy(update={"docker_project": "nowhere"})
    with (
        docker_target.opened(nowhere) as project,
        pytest.raises(InvalidSettings, match=r"docker-compose.docker.yml up`"),
    ):
        docker_target.plan(project, ModelVersion(model=MODEL, version="20260101T000000Z-00000000"))


def test_a_process_without_the_sockets_group_is_told_so(target: Target) -> None:
    """As the worker would be, were the group wrong: which group is needed, and how to find out."""
    code = (
        "from pipeline import docker_target\n"
        "from pipeline.errors import InvalidSettings\n"
        "from pipeline.settings import Settings\n"
        "try:\n"
        "    with docker_target.opened(Settings(docker_project='shop')): pass\n"
        "except InvalidSettings as error: print(error)\n"
    )
    image = f"safelight/pipeline:{target.stack.environ['STACK_TAG']}"
    run = ("docker", "run", "--rm", "--network", "none", "--volume", f"{SOCKET}:{SOCKET}", "--user", "10001:10001")
    said = target.stack.run(*run, image, "python", "-c", code).stdout
    assert "it needs the socket's group, which docker-compose.docker.yml takes from STACK_DOCKER_GID" in said


def test_down_takes_all_and_up_brings_what_was_live_back(target: Target, live: ModelVersion) -> None:
    """Compose removes the containers too; ``make-live``, a part of ``up``, deploys what the alias points at."""
    target.stack.compose("down", "--remove-orphans")
    assert target.containers() == []
    target.stack.compose("up", "--detach", "--no-build", *SERVICES)
    target.stack.compose("run", "--rm", "--no-deps", "-T", "make-live")
    assert target.answering() == live.version
    assert target.versions() == [live.version]
