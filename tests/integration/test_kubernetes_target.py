"""Target ``kubernetes`` on the tests' cluster: its API refuses what a real one refuses, its pods are real servers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import kube_serving
import pytest
import tiny_models
from deployable import champion, prepared, register
from kube_api import Cluster
from kube_serving import clients, settled, versions

from pipeline import deploy, images
from pipeline.artifacts import DatasetVersion, Deployment, ModelVersion
from pipeline.errors import DeployFailed
from pipeline.progress import OnProgress, silent
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

MODEL = "shapes"
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


@pytest.fixture(scope="module")
def target(shared_zone_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Two replicas that follow the alias, of a model that has no version yet."""
    zones = open_zones(shared_zone_settings)
    dataset = prepared(zones, MODEL)
    with (
        kube_serving.serving(tmp_path_factory.mktemp("kube"), shared_zone_settings, MODEL) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig(kube_serving.DEPLOYER)))
        settings = shared_zone_settings.model_copy(
            update={"deploy_target": "kubernetes", "inference_url": "http://serving:8080"}
        )
        yield Target(cluster, settings, zones, dataset)


@pytest.fixture
def deployed(target: Target) -> ModelVersion:
    """A version that is live."""
    version = target.version()
    target.deploy(version)
    return version


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
    assert target.deploy(first).replicas == 2
    assert target.champion() == target.pinned() == first.version


def test_a_version_that_answers_otherwise_is_undone(target: Target, deployed: ModelVersion) -> None:
    """By the first replica that is wrong; the former one goes on answering, and every answer of it is right."""
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
