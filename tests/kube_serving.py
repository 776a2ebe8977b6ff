"""The inference server on the tests' Kubernetes, from the manifests of ``k8s/``, and clients that never stop asking."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import kube_api
import kube_images
import manifests
from at_work import at_work
from kube_api import Cluster
from kube_containers import Image
from kube_node import Node
from kube_objects import Object
from live_server import wait_until

from pipeline.settings import SERVING_PREFIX, Settings

IMAGE = "safelight/serving:dev"
DEPLOYER = "flow-run"
COMPONENT = ("kubernetes-target",)
QUICK = {"PROCESSES": "1", "DRAIN_S": "0.5", "LOG": "off", "POLL_S": "0.1", "API_KEYS": "off"}
"""Settings by which a test waits for less than a person would."""


@dataclass(frozen=True)
class Answer:
    """What a client was told, or how it failed."""

    at: float
    version: str | None
    label: str | None
    status: int
    failure: str = ""


@dataclass
class Clients:
    """Everything that some clients were told."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def failures(self) -> list[Answer]:
        """What was not an answer."""
        return [each for each in self.answers if each.failure or each.status != 200]

    def labels(self, version: str) -> set[str | None]:
        """What a version said."""
        return {each.label for each in self.answers if each.version == version and each.status == 200}

    def versions_after(self, moment: float) -> set[str | None]:
        """Who answered what was asked since then."""
        return {each.version for each in self.answers if each.at > moment}


def rendered(folder: Path) -> list[Object]:
    """The base with the component of target ``kubernetes``."""
    return manifests.build_with(manifests.copied(folder / "k8s"), "base", COMPONENT)


def deployment(documents: list[Object], model: str, replicas: int) -> Object:
    """The inference server's Deployment, for a model, with less patience."""
    found = manifests.one(documents, "Deployment", "serving")
    found["spec"] |= {"replicas": replicas, "minReadySeconds": 1}
    container = found["spec"]["template"]["spec"]["containers"][0]
    own = {SERVING_PREFIX + name: value for name, value in {**QUICK, "MODEL": model}.items()}
    gone = {*own, f"{SERVING_PREFIX}API_KEYS_FILE"}
    kept = [each for each in container["env"] if each["name"] not in gone]
    container["env"] = kept + [{"name": name, "value": value} for name, value in own.items()]
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": 1}}}
    for name in ("startupProbe", "readinessProbe"):
        container[name]["periodSeconds"] = 1
    return found


def furnish(cluster: Cluster, settings: Settings, documents: list[Object]) -> None:
    """What the Deployment needs around it: the test's store, its credentials, accounts and Services."""
    config = manifests.one(documents, "ConfigMap", "safelight")
    config["data"] |= {"SAFELIGHT_S3_ENDPOINT": settings.s3_endpoint, "SAFELIGHT_STORE_URL": settings.store_url}
    key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    assert key
    assert secret
    held = {"store_access_key": key.get_secret_value(), "store_secret_key": secret.get_secret_value()}
    wanted: list[Object] = [config, _secret("serving", held)]
    wanted += [each for kind in ("ServiceAccount", "Service") for each in manifests.of_kind(documents, kind).values()]
    wanted += [manifests.one(documents, kind, "deploy") for kind in ("Role", "RoleBinding")]
    cluster.apply(wanted)


@contextmanager
def serving(
    folder: Path, settings: Settings, model: str, *, replicas: int = 2, image: Image = kube_images.serving
) -> Iterator[Cluster]:
    """A cluster with the inference server of a model in it, following the alias; it is not waited for."""
    documents = rendered(folder)
    with kube_api.started(folder, nodes=[Node(images={IMAGE: image})]) as cluster:
        furnish(cluster, settings, documents)
        cluster.apply([deployment(documents, model, replicas)])
        yield cluster


def rolled_out(cluster: Cluster) -> bool:
    """Whether all that is wanted runs, and nothing else."""
    found = cluster.get("Deployment", "serving")
    status, wanted = found.get("status", {}), found["spec"]["replicas"]
    names = ("updatedReplicas", "replicas", "availableReplicas")
    return {status.get(name, 0) for name in names} == {wanted} and len(
        cluster.objects("Pod", "app.kubernetes.io/name=serving")
    ) == wanted


def versions(cluster: Cluster, model: str) -> list[str | None]:
    """What each pod that takes requests answers with."""
    found = []
    for address in cluster.addresses("serving"):
        said = httpx.get(f"http://{address}:8080/v2/models/{model}", trust_env=False).json()
        found.append(said["version"])
    return found


@contextmanager
def clients(cluster: Cluster, picture: bytes, number: int = 2) -> Iterator[Clients]:
    """Clients that ask, one image after the other, a pod that the Service would choose."""
    seen = Clients()

    def ask(stop: threading.Event) -> None:
        for turn in count():
            if stop.is_set():
                return
            addresses = cluster.addresses("serving")
            if not addresses:
                seen.answers.append(Answer(time.monotonic(), None, None, 0, "no pod takes requests"))
                stop.wait(0.05)
                continue
            seen.answers.append(_asked(addresses[turn % len(addresses)], picture))
            stop.wait(0.01)

    with at_work([ask] * number):
        yield seen


def settled(cluster: Cluster) -> None:
    """Wait until nothing is on its way."""
    wait_until(lambda: rolled_out(cluster), 60)


def _asked(address: str, picture: bytes) -> Answer:
    at = time.monotonic()
    try:
        answer = httpx.post(f"http://{address}:8080/predict", content=picture, trust_env=False, timeout=30)
        said: Mapping[str, Any] = answer.json() if answer.is_success else {}
    except httpx.HTTPError as error:
        return Answer(at, None, None, 0, repr(error))
    return Answer(at, said.get("model_version"), said.get("label"), answer.status_code)


def _secret(name: str, held: Mapping[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(held)}
