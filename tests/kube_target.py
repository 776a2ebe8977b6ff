"""Target ``kubernetes`` on the tests' cluster: its API refuses what a real one refuses, its pods are real servers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import kube_images
import kube_serving
import pytest
import tiny_models
from deployable import champion, prepared, register
from kube_api import Cluster
from kube_containers import Image, Launch, Program

from pipeline import deploy, images
from pipeline.artifacts import DatasetVersion, Deployment, ModelVersion
from pipeline.progress import OnProgress, silent
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

MODEL = "shapes"
PICTURE = images.encode_png(tiny_models.picture(1, 20, 24))


@dataclass
class Target:
    """A cluster with two replicas, what they serve from, and the right to deploy to it.

    Attributes:
        broken: versions with which the inference server ends at once.
    """

    cluster: Cluster
    settings: Settings
    zones: Zones
    dataset: DatasetVersion
    broken: set[str]
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


@contextmanager
def started(folder: Path, settings: Settings) -> Iterator[Target]:
    """Two replicas that follow the alias, of a model that has no version yet."""
    zones, broken = open_zones(settings), set[str]()
    dataset = prepared(zones, MODEL)
    with (
        kube_serving.serving(folder, settings, MODEL, image=_image(broken)) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig(kube_serving.DEPLOYER)))
        own = {"deploy_target": "kubernetes", "inference_url": "http://serving:8080"}
        yield Target(cluster, settings.model_copy(update=own), zones, dataset, broken)


def _image(broken: set[str]) -> Image:
    """The inference server's image, but that it ends at once with some versions."""

    def start(launch: Launch) -> Program:
        if launch.env.get("SAFELIGHT_SERVING_VERSION") in broken:
            return Program(["sh", "-c", "echo this machine has no such instruction; exit 3"], launch.env)
        return kube_images.serving(launch)

    return start
