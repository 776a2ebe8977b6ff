"""In the middle of a rollout: its process is killed, somebody else decides otherwise, the cluster's API goes away."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kube_target import MODEL, Target

from pipeline import deploy, inference_server
from pipeline.artifacts import ModelVersion
from pipeline.errors import Conflict, DeployFailed
from pipeline.progress import Progress

TURN_S = 2.0


@pytest.fixture
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for the turn of a deployment that was killed."""
    monkeypatch.setattr(deploy, "TURN_TTL_S", TURN_S)


@pytest.mark.usefixtures("_short_turns")
@pytest.mark.parametrize("moment", ["rollout._follow", "alias_move.point"])
def test_a_deployment_killed_in_the_middle_is_completed_by_the_next(
    target: Target, deployed: ModelVersion, moment: str
) -> None:
    """Just pinned, or everything proven: the same deployment again goes on from there."""
    version = target.version()
    _killed(target, version, moment)
    assert target.champion() == deployed.version
    assert target.pinned() == version.version
    assert target.deploy(version).replicas == 1
    assert target.champion() == target.pinned() == version.version


@pytest.mark.usefixtures("_short_turns")
def test_a_bad_version_whose_deployment_was_killed_is_undone_by_the_next(
    target: Target, deployed: ModelVersion
) -> None:
    """Nobody remembers what was live but the Deployment's revisions."""
    bad = target.version(evaluated_as=999)
    _killed(target, bad, "rollout._follow")
    with pytest.raises(DeployFailed, match=f"is back at version {deployed.version}"):
        target.deploy(bad)
    assert target.champion() == target.pinned() == deployed.version


def _killed(target: Target, version: ModelVersion, moment: str) -> None:
    """Deploy in another process, which is killed when it calls a function."""
    code = (
        "import os, subprocess, sys\n"
        "from pipeline import alias_move, deploy, rollout\n"
        "from pipeline.artifacts import ModelVersion\n"
        "from pipeline.settings import Settings\n"
        "from pipeline.zones import open_zones\n"
        f"deploy.TURN_TTL_S = {TURN_S}\n"
        "settings = Settings.from_environ(os.environ)\n"
        "module, name = sys.argv[2].split('.')\n"
        "where = {'alias_move': alias_move.AliasMove, 'rollout': rollout}[module]\n"
        "setattr(where, name, lambda *_, **__: os.kill(os.getpid(), 9))\n"
        f"version = ModelVersion(model={MODEL!r}, version=sys.argv[1])\n"
        "def resolve(host): return subprocess.check_output(sys.argv[3:], text=True).split()\n"
        "deploy.deploy(open_zones(settings), settings, version, timeout_s=30, resolve=resolve)\n"
    )
    own = inference_server.environ(target.settings, MODEL, 0, os.environ)
    own = {name: value for name, value in own.items() if not name.startswith("SAFELIGHT_SERVING_")}
    ready = "jsonpath={.items[*].endpoints[?(@.conditions.ready)].addresses[0]}"
    chosen = "--selector=kubernetes.io/service-name=serving"
    admin = f"--kubeconfig={target.cluster.kubeconfig()}"
    kubectl = str(Path(sys.executable).with_name("kubectl"))
    command = [sys.executable, "-c", code, version.version, moment]
    command += [kubectl, admin, "get", "endpointslices", chosen, f"--output={ready}"]
    killed = subprocess.run(command, env=own, timeout=120, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_a_decision_of_somebody_else_is_not_undone(target: Target, deployed: ModelVersion) -> None:
    """A person pins another version while one is being rolled out: the deployment says so, and leaves it."""
    version, theirs = target.version(), target.version()

    def interfere(progress: Progress) -> None:
        if progress.done == 1 and target.pinned() != theirs.version:
            pin = f"SAFELIGHT_SERVING_VERSION={theirs.version}"
            target.kubectl("set", "env", "deployment/serving", pin)

    with pytest.raises(Conflict, match=f"(?s)to version {theirs.version}.*is left as somebody else set it"):
        target.deploy(version, on_progress=interfere)
    assert target.pinned() == theirs.version
    assert target.champion() == deployed.version


def test_an_api_that_starts_again_is_waited_for(target: Target, deployed: ModelVersion) -> None:
    """It is away in the middle of a rollout, with every connection to it; the deployment goes on when it is back."""
    version = target.version()
    back: list[threading.Timer] = []

    def go_away(progress: Progress) -> None:
        if progress.done == 1 and not back:
            target.cluster.api.stop()
            back.append(threading.Timer(2, target.cluster.api.start))
            back[0].start()

    target.deploy(version, on_progress=go_away)
    assert back
    assert target.champion() == target.pinned() == version.version != deployed.version


def test_an_api_that_stays_away_is_a_sentence(target: Target, deployed: ModelVersion) -> None:
    """After the patience that the deployment has; nothing was changed."""
    target.cluster.api.stop()
    try:
        with pytest.raises(DeployFailed, match=r"The Kubernetes API at https://127.0.0.1:\d+ did not answer for 1 s"):
            target.deploy(target.version(), timeout_s=1)
    finally:
        target.cluster.api.start()
    assert target.champion() == target.pinned() == deployed.version
