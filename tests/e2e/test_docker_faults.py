"""Target ``docker`` when something goes wrong: what was live stays so, and nothing is left."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from e2e.docker_stack import MODEL, SOCKET, Target
from e2e.traffic import traffic

from pipeline import aliases, deploy, docker_target
from pipeline.artifacts import ModelVersion
from pipeline.errors import Conflict, DeployFailed, InvalidSettings, SafelightError
from pipeline.progress import Progress


@pytest.mark.parametrize("promoted", [False, True], ids=["moved by deploy", "moved by promotion"])
def test_a_version_that_answers_otherwise_never_gets_a_request(
    target: Target, deployed: ModelVersion, *, promoted: bool
) -> None:
    """It fails beside what is live; its container is gone and the alias is where it was."""
    before = target.ids()
    bad = target.version(evaluated_otherwise=True)
    if promoted:
        aliases.set_alias(target.zones.models, MODEL, aliases.CHAMPION, bad.version, reason="promoted")
    with traffic(target.stack.gateway, target.images()) as seen, pytest.raises(DeployFailed, match="to the server"):
        target.deploy(bad)
    assert {each.version for each in seen.answers} == {deployed.version}
    assert seen.failures == []
    target.undisturbed(deployed, before)


def test_a_version_that_does_not_load_is_said_with_its_reason(target: Target, deployed: ModelVersion) -> None:
    """A model that was altered in the store; what was live stays so."""
    before = target.ids()
    bad = target.version()
    target.zones.models.put(f"{MODEL}/{bad.version}/model.onnx", b"other bytes")
    with pytest.raises(DeployFailed, match=r"did not load the version; it says: .* was altered") as caught:
        target.deploy(bad)
    assert f"still points at {deployed.version}, and what was live has stayed so" in str(caught.value)
    target.undisturbed(deployed, before)


def test_a_candidate_that_dies_is_said(target: Target, deployed: ModelVersion) -> None:
    """SIGKILL while it proves itself: how it ended is said, and nothing is left of it."""
    before = target.ids()

    def kill(_: Progress) -> None:
        for each in target.containers():
            if each["Id"] not in before:
                target.stack.run("docker", "kill", each["Id"], check=False)

    with pytest.raises(DeployFailed, match=r"container .* ended \(status 137\)"):
        target.deploy(target.version(), on_progress=kill)
    target.undisturbed(deployed, before)


def test_a_gateway_that_does_not_find_them_undoes_all(target: Target, deployed: ModelVersion) -> None:
    """With another server in its place: the alias goes back, and what was let in goes."""
    before = target.ids()
    elsewhere = target.settings.model_copy(update={"inference_url": target.stack.store})
    with pytest.raises(DeployFailed, match=f"points at {deployed.version} again") as caught:
        deploy.deploy(target.zones, elsewhere, target.version())
    assert "the gateway at" in str(caught.value)
    target.undisturbed(deployed, before)


KILLED_AT = (
    ("candidate created", "docker_target.APIClient.start", "repeated"),
    ("candidate proven", "alias_move.AliasMove.point", "another"),
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
def test_killed_at_any_point(
    target: Target, deployed: ModelVersion, _moment: str, function: str, following: str
) -> None:
    """SIGKILL; the same deployment again, or another, makes its version live; nothing is left of the first."""
    version = target.version()
    _deploy_and_die(target, version, function)
    assert target.answering() in {deployed.version, version.version}
    wanted = version if following == "repeated" else target.version()
    target.deploy(wanted)
    assert target.champion() == target.answering() == wanted.version
    assert target.versions() == [wanted.version]


def _deploy_and_die(target: Target, version: ModelVersion, function: str) -> None:
    """Deploy in a process that kills itself when it is about to call ``function``."""
    module, _, name = function.partition(".")
    code = (
        "import os, signal, sys\n"
        "from pipeline import alias_move, deploy, docker_target, takeover\n"
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
        env=target.environ(),
        timeout=120,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


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
