"""Target ``kubernetes`` on the tests' cluster: its API refuses what a real one refuses, its pods are real servers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import kube_images
import kube_serving
import pytest
import tiny_models
from deployable import champion, prepared, register
from kube_access import account
from kube_api import Cluster
from kube_containers import Launch, Program
from kube_objects import Object
from kube_serving import clients, settled, versions
from kubernetes import config

from pipeline import aliases, deploy, images, inference_server, kubernetes_target, revisions, rollout
from pipeline.artifacts import DatasetVersion, Deployment, ModelVersion
from pipeline.errors import Conflict, DeployFailed, InvalidSettings
from pipeline.progress import OnProgress, Progress, silent
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

MODEL = "shapes"
TURN_S = 2.0
PICTURE = images.encode_png(tiny_models.picture(1, 20, 24))


@dataclass
class Target:
    """A cluster with two replicas, what they serve from, and the right to deploy to it."""

    cluster: Cluster
    settings: Settings
    zones: Zones
    dataset: DatasetVersion
    seeds: Iterator[int] = field(default_factory=lambda: count(1))

    def version(self, *, evaluated_as: int | None = None) -> ModelVersion:
        """A version that nobody has seen."""
        return register(self.zones, self.dataset, next(self.seeds), evaluated_as=evaluated_as)

    def deploy(self, version: ModelVersion, *, timeout_s: float = 30, on_progress: OnProgress = silent) -> Deployment:
        """Deploy as a flow run would, with its token."""
        return deploy.deploy(
            self.zones,
            self.settings,
            version,
            timeout_s=timeout_s,
            on_progress=on_progress,
            resolve=self.cluster.addresses,
        )

    def champion(self) -> str | None:
        """What the alias says."""
        return champion(self.zones, MODEL)

    def pinned(self) -> str | None:
        """What the Deployment says."""
        env = self.cluster.get("Deployment", "serving")["spec"]["template"]["spec"]["containers"][0]["env"]
        return next((each["value"] for each in env if each["name"] == "SAFELIGHT_SERVING_VERSION"), None)

    def kubectl(self, *words: str) -> str:
        """What kubectl prints."""
        command = str(Path(sys.executable).with_name("kubectl"))
        env = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig())}
        done = subprocess.run([command, *words], env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


class Moody:
    """The inference server's image, but that it ends at once with some versions."""

    def __init__(self) -> None:
        self.broken: set[str] = set()

    def __call__(self, launch: Launch) -> Program:
        """What is started."""
        if launch.env.get("SAFELIGHT_SERVING_VERSION") in self.broken:
            return Program(["sh", "-c", "echo this machine has no such instruction; exit 3"], launch.env)
        return kube_images.serving(launch)


@pytest.fixture(scope="module")
def image() -> Moody:
    """What the pods are made of."""
    return Moody()


@pytest.fixture(scope="module")
def target(shared_zone_settings: Settings, tmp_path_factory: pytest.TempPathFactory, image: Moody) -> Iterator[Target]:
    """Two replicas that follow the alias, of a model that has no version yet."""
    zones = open_zones(shared_zone_settings)
    dataset = prepared(zones, MODEL)
    with (
        kube_serving.serving(tmp_path_factory.mktemp("kube"), shared_zone_settings, MODEL, image=image) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig(kube_serving.DEPLOYER)))
        settings = shared_zone_settings.model_copy(
            update={"deploy_target": "kubernetes", "inference_url": "http://serving:8080"}
        )
        yield Target(cluster, settings, zones, dataset)


@pytest.fixture
def deployed(target: Target) -> ModelVersion:
    """The version that is live, in one replica."""
    target.kubectl("scale", "deployment/serving", "--replicas=1")
    if (live := target.pinned()) is None or live != target.champion():
        version = target.version()
        target.deploy(version)
        live = version.version
    settled(target.cluster)
    return ModelVersion(model=MODEL, version=live)


def test_versions_go_live_and_kubectl_takes_one_back(target: Target) -> None:
    """From no model at all; each version is a revision, named; what kubectl undoes, the next deployment copes with."""
    first, second = target.version(), target.version()
    done = target.deploy(first)
    assert (done.target, done.replicas, done.url) == ("kubernetes", 2, "http://serving:8080")
    assert target.champion() == target.pinned() == first.version
    settled(target.cluster)
    with clients(target.cluster, PICTURE) as seen:
        target.deploy(second)
        live = time.monotonic()
        time.sleep(1)
    assert seen.failures == []
    assert {each.version for each in seen.answers} == {first.version, second.version}
    assert seen.versions_after(live) == {second.version}
    settled(target.cluster)
    assert versions(target.cluster, MODEL) == [second.version] * 2
    history = target.kubectl("rollout", "history", "deployment/serving")
    assert all(f"version {each.version}" in history for each in (first, second))
    target.kubectl("rollout", "undo", "deployment/serving")
    target.kubectl("rollout", "status", "deployment/serving", "--timeout=60s")
    settled(target.cluster)
    assert versions(target.cluster, MODEL) == [first.version] * 2
    assert target.champion() == second.version
    aliases.rollback(target.zones.models, MODEL, aliases.CHAMPION, "kubectl did it")
    assert target.deploy(deploy.target(target.zones.models, MODEL, None, by_canary=False)).replicas == 2
    assert target.champion() == target.pinned() == first.version


def test_a_version_that_answers_otherwise_is_undone(target: Target, deployed: ModelVersion) -> None:
    """By the first replica that is wrong; the former ones go on answering, and every answer of theirs is right."""
    target.kubectl("scale", "deployment/serving", "--replicas=2")
    settled(target.cluster)
    before = {each["metadata"]["uid"] for each in target.cluster.objects("Pod")}
    bad = target.version(evaluated_as=999)
    with clients(target.cluster, PICTURE) as seen:
        with pytest.raises(DeployFailed, match="to the server and") as caught:
            target.deploy(bad)
        time.sleep(0.5)
    assert f"is back at version {deployed.version}, in all 2 replicas" in str(caught.value)
    assert f"alias 'champion' still points at {deployed.version}" in str(caught.value)
    assert seen.failures == []
    assert len(seen.labels(deployed.version)) == 1
    settled(target.cluster)
    assert versions(target.cluster, MODEL) == [deployed.version] * 2
    assert target.champion() == target.pinned() == deployed.version
    assert {each["metadata"]["uid"] for each in target.cluster.objects("Pod")} & before


def test_a_version_that_does_not_run_is_undone_with_its_last_words(
    target: Target, deployed: ModelVersion, image: Moody
) -> None:
    """Long before the Deployment's deadline, and without the right to read logs."""
    bad = target.version()
    image.broken.add(bad.version)
    with pytest.raises(DeployFailed, match="the last that it said: this machine has no such instruction") as caught:
        target.deploy(bad)
    assert f"is back at version {deployed.version}" in str(caught.value)
    assert target.champion() == target.pinned() == deployed.version


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


def test_a_deployment_needs_every_right_of_its_role(
    target: Target, deployed: ModelVersion, subtests: pytest.Subtests
) -> None:
    """With each verb of each rule taken away it says what it may not do, and has changed nothing."""
    role = target.cluster.get("Role", "deploy")
    version = target.version()
    taken = [(number, verb) for number, rule in enumerate(role["rules"]) for verb in rule["verbs"]]
    assert len(taken) == 4
    for number, verb in taken:
        rule = role["rules"][number]
        with subtests.test(f"{verb} {rule['resources'][0]}"), pytest.MonkeyPatch.context() as patch:
            account = f"without-{number}-{verb}"
            _grant(target.cluster, account, role["rules"], number, verb)
            patch.setenv("KUBECONFIG", str(target.cluster.kubeconfig(account)))
            with pytest.raises(InvalidSettings, match=f"cannot {verb} resource .{rule['resources'][0]}"):
                target.deploy(version)
            assert target.pinned() == deployed.version


def _grant(cluster: Cluster, account: str, rules: list[Object], number: int, verb: str) -> None:
    """Let an account do what rules say, but for one verb of one of them."""
    kept = [dict(each) for each in rules]
    kept[number]["verbs"] = [each for each in kept[number]["verbs"] if each != verb]
    group = "rbac.authorization.k8s.io"
    common = {"apiVersion": f"{group}/v1", "metadata": {"name": account}}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": cluster.namespace}
    reference = {"apiGroup": group, "kind": "Role", "name": account}
    cluster.apply([
        {**common, "kind": "Role", "rules": [each for each in kept if each["verbs"]]},
        {**common, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
    ])  # fmt: skip


def test_a_deployment_that_cannot_work_is_refused_before_anything_happens(
    target: Target, deployed: ModelVersion, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """Paused, without a replica, without a container of that name, of another model, or not there at all."""
    monkeypatch.setenv("KUBECONFIG", str(target.cluster.kubeconfig()))
    for number, (why, how) in enumerate(
        {
            "is paused, so that nothing": {"paused": True},
            "is scaled to 0 replicas": {"replicas": 0},
            "has no container 'serving'": {"container": "web"},
            "serves model 'figures' and not 'shapes'": {"model": "figures"},
            "There is no Deployment": None,
        }.items()
    ):
        name = f"odd-{number}"
        with subtests.test(why):
            if how is not None:
                target.cluster.apply([_odd(name, **how)])
            settings = target.settings.model_copy(update={"kubernetes_deployment": name})
            with pytest.raises(InvalidSettings, match=why):
                deploy.deploy(target.zones, settings, deployed, timeout_s=5, resolve=target.cluster.addresses)
            if how is not None:
                target.cluster.delete("Deployment", name)


def _odd(
    name: str, *, paused: bool = False, replicas: int = 1, container: str = "serving", model: str = MODEL
) -> Object:
    env = [{"name": "SAFELIGHT_SERVING_MODEL", "value": model}]
    labels = {"app": name}
    pod = {"containers": [{"name": container, "image": "not:there", "env": env}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "paused": paused,
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def test_a_model_is_rolled_back_and_other_replicas_come_meanwhile(target: Target, deployed: ModelVersion) -> None:
    """The alias is moved back, then the Deployment; replicas that a scaler wants meanwhile are proven as well."""
    version = target.version()
    target.deploy(version)
    state = aliases.rollback(target.zones.models, MODEL, aliases.CHAMPION, "a person said so")
    assert state.version == deployed.version

    def scale(progress: Progress) -> None:
        if progress.done == 1:
            target.kubectl("scale", "deployment/serving", "--replicas=2")

    wanted = deploy.target(target.zones.models, MODEL, None, by_canary=False)
    assert target.deploy(wanted, on_progress=scale).replicas == 2
    assert target.champion() == target.pinned() == deployed.version


def test_replicas_of_a_cluster_follow_an_alias_as_well(target: Target, deployed: ModelVersion) -> None:
    """Without the pin, and asked by the headless Service's name, which stands for each of them."""
    target.kubectl("set", "env", "deployment/serving", "SAFELIGHT_SERVING_VERSION-")
    target.kubectl("scale", "deployment/serving", "--replicas=2")
    settled(target.cluster)
    following = target.settings.model_copy(
        update={"deploy_target": "follow", "inference_url": "http://serving-replicas:8080"}
    )
    version = target.version()
    done = deploy.deploy(target.zones, following, version, resolve=target.cluster.addresses)
    assert (done.replicas, target.champion()) == (2, version.version)
    assert versions(target.cluster, MODEL) == [version.version] * 2
    assert version.version != deployed.version


def test_where_pods_cannot_be_reached_the_service_is_asked(
    target: Target, deployed: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a laptop: Kubernetes says that they are ready, and the Service proves it."""
    monkeypatch.setattr(rollout, "UNREACHABLE_S", 1.0)
    monkeypatch.setattr(revisions, "addresses", lambda pods: ["127.0.0.9"] * len(pods))
    version = target.version()
    assert target.deploy(version).replicas == 1
    assert target.champion() == target.pinned() == version.version != deployed.version


def test_a_pod_deploys_with_its_own_token_in_its_own_namespace(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found where a cluster mounts it, before any kubeconfig."""
    own = target.cluster.access.token(account(target.cluster.namespace, kube_serving.DEPLOYER))
    for name, content in (("token", own), ("namespace", f"{target.cluster.namespace}\n")):
        (tmp_path / name).write_text(content)
    mounted = config.incluster_config
    monkeypatch.setattr(mounted, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(mounted, "SERVICE_CERT_FILENAME", str(target.cluster.authority))
    monkeypatch.setattr(kubernetes_target, "OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(target.cluster.api.port))
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with kubernetes_target.opened(target.settings, 1) as found:
        assert kubernetes_target.read(found)["metadata"]["name"] == "serving"
    (tmp_path / "token").write_text("of somebody else")
    with (
        kubernetes_target.opened(target.settings, 1) as found,
        pytest.raises(InvalidSettings, match="does not know who asks"),
    ):
        kubernetes_target.read(found)
