"""The store and the inference server as Kubernetes gets them, played by podman: real pods, a real prediction.

What is rendered from the overlay ``local`` and the component ``seaweedfs`` is played but for what podman cannot do
(``podman.WHY``). Silo's image cannot be had where these tests run, hence the component. The Job ``store-init`` runs as
a process of this machine, by its own command and environment: its image is ten times the others, and loading it a
second time would prove nothing of the manifest.
"""

import base64
import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tiny_models
from e2e import podman
from e2e.podman import Pods
from e2e.stack import DEFAULT_TAG, ROOT, wait_until
from manifests import Document, build, copied, one
from pydantic import SecretStr

from pipeline import aliases, cluster_secrets, images
from pipeline.secret_values import Stack
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

MODEL = "fashion-mnist"
PNG = images.encode_png(tiny_models.picture(5))
SERVING = "safelight/serving:dev"
SEAWEEDFS = "chrislusf/seaweedfs:4.48"
SECRETS_AT = "/run/secrets/safelight"
RESTARTED_S = 60

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``k8s/overlays`` with secrets of its own, and one more: ``played``."""
    overlays = copied(tmp_path_factory.mktemp("rendered") / "k8s") / "overlays"
    shutil.copytree(overlays / "local" / "secrets", overlays / "played" / "secrets")
    cluster_secrets.write(overlays / "played" / "secrets", Stack(store="seaweedfs", keys=True))
    shutil.copy(ROOT / "tests" / "e2e" / "played.yaml", overlays / "played" / "kustomization.yaml")
    return overlays


@pytest.fixture(scope="module")
def manifests(overlays: Path) -> list[Document]:
    """What ``kubectl kustomize`` makes of it."""
    return build(overlays / "played")


@pytest.fixture(scope="module")
def pods(manifests: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """The store, made ready, and the inference server."""
    folder = tmp_path_factory.mktemp("podman")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)  # the containers' user is another one than ours
    tag = os.environ.get("STACK_TAG", DEFAULT_TAG)
    if tag == DEFAULT_TAG:
        subprocess.run(["make", "image-serving"], cwd=ROOT, check=True, capture_output=True, timeout=1200)
    with podman.playing(folder, manifests) as pods:
        podman.load(SERVING, f"safelight/serving:{tag}", folder)
        podman.load(SEAWEEDFS, SEAWEEDFS, folder)
        pods.play("object-store")
        starts(pods, "object-store")
        store_init(pods)
        pods.play("serving")
        starts(pods, "serving")
        yield pods
        print(pods.logs())  # noqa: T201 - shown with a failed test


def starts(pods: Pods, name: str) -> None:
    """Return once the start-up probe passes, within the manifest's time; then it is alive."""
    wait_until(lambda: pods.passes(name, "startupProbe"), pods.patience(name), f"{name} did not start\n{pods.logs()}")
    assert pods.passes(name, "livenessProbe")


def store_init(pods: Pods) -> None:
    """Run the Job: its command, and its environment with the addresses that names and mounts stand for in a cluster."""
    job = pods.container("store-init")
    assert job["envFrom"] == [{"configMapRef": {"name": "safelight"}}]
    secrets = pods.folder / "store-init"
    podman.write_secret(secrets, pods.manifest("Secret", "store-init"), 0o440)
    told = {**pods.manifest("ConfigMap", "safelight")["data"], **{each["name"]: each["value"] for each in job["env"]}}
    told = {name: value.replace(SECRETS_AT, str(secrets)) for name, value in told.items()}
    told["SAFELIGHT_S3_ENDPOINT"] = told["SAFELIGHT_S3_ENDPOINT"].replace("object-store", pods.address("object-store"))
    assert job["args"][0] == "python"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFELIGHT_", "PREFECT_"))}
    done = subprocess.run(
        [sys.executable, *job["args"][1:]], env=kept | told, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "5 buckets" in done.stdout


@pytest.fixture(scope="module")
def zones(pods: Pods) -> Zones:
    """The store, as the worker's Secret opens it."""
    values = {
        name: base64.b64decode(value).decode() for name, value in pods.manifest("Secret", "worker")["data"].items()
    }
    return open_zones(
        Settings(
            s3_endpoint=f"http://{pods.address('object-store')}:{pods.port('object-store', 's3')}",
            s3_access_key_id=SecretStr(values["store_access_key"]),
            s3_secret_access_key=SecretStr(values["store_secret_key"]),
        )
    )


@pytest.fixture(scope="module")
def key(pods: Pods) -> str:
    """With which the pipeline asks the inference server."""
    return key_of(pods)


def key_of(pods: Pods) -> str:
    """The key in the worker's Secret."""
    return base64.b64decode(pods.manifest("Secret", "worker")["data"]["inference_api_key"]).decode()


@pytest.fixture(scope="module")
def versions(zones: Zones) -> tuple[str, str]:
    """Two versions of the model that the manifest names; the first one is live."""
    first, second = (tiny_models.register(zones.checkpoints, zones.models, MODEL, seed).version for seed in (1, 2))
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, first, reason="test")
    return first, second


def asked(pods: Pods, key: str | None) -> httpx.Response:
    """What the server answers to an image, at its pod's own address."""
    url = f"http://{pods.address('serving')}:{pods.port('serving', 'http')}/predict"
    return httpx.post(url, content=PNG, headers={"X-API-Key": key} if key else {}, timeout=10, trust_env=False)


def answering(pods: Pods, key: str) -> str | None:
    """The version that answers; none while nobody does."""
    try:
        answer = asked(pods, key)
    except httpx.TransportError:
        return None
    return str(answer.json()["model_version"]) if answer.is_success else None


def test_what_is_played_is_what_was_rendered(manifests: list[Document], tmp_path: Path) -> None:
    """Between the two there is nothing but what podman cannot do."""
    for name in ("object-store", "serving"):
        wanted = one(manifests, "Deployment", name)
        assert untouched(podman.playable(wanted, tmp_path)) == untouched(wanted)


def untouched(deployment: Document) -> Document:
    """Without what ``podman.WHY`` says: of volumes only where they are mounted, and no probes, ports and replicas."""
    rest = copy.deepcopy(deployment)
    rest["spec"].pop("replicas", None)
    pod = rest["spec"]["template"]["spec"]
    pod.pop("volumes")
    for container in pod["containers"]:
        for mount in container["volumeMounts"]:
            mount.pop("name")
        for part in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
            container.pop(part, None)
    return rest


def test_without_a_model_it_is_alive_and_gets_no_requests(pods: Pods) -> None:
    """The three probes mean different things: started and alive, and not ready."""
    assert pods.passes("serving", "startupProbe")
    assert pods.passes("serving", "livenessProbe")
    assert not pods.passes("serving", "readinessProbe")


def test_a_prediction_with_a_key_and_none_without(pods: Pods, versions: tuple[str, str], key: str) -> None:
    """Once a model is live the pod is ready, and answers with it whoever has a key."""
    wait_until(lambda: pods.passes("serving", "readinessProbe"), 60, f"it is not ready\n{pods.logs()}")
    assert asked(pods, None).status_code == asked(pods, key + "x").status_code == 401
    answer = asked(pods, key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == versions[0]
    assert {each["label"] for each in answer.json()["top"]} == set(tiny_models.DATASET.classes)


def test_an_alias_that_moves_is_followed(pods: Pods, zones: Zones, versions: tuple[str, str], key: str) -> None:
    """Without a rollout, and without a start."""
    begun = pods.inspect("serving")["State"]["StartedAt"]
    for version in versions[::-1]:
        aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, version, reason="test")
        wait_until(lambda: answering(pods, key) == version, 30, "the other version does not answer")  # noqa: B023
    assert pods.inspect("serving")["State"]["StartedAt"] == begun


@pytest.mark.parametrize("name", ["object-store", "serving"])
def test_a_pod_has_no_rights(pods: Pods, versions: tuple[str, str], name: str) -> None:
    """The first process has the manifest's user, no capability, no way to one, filtered calls, no root to write."""
    assert versions
    told = pods.podman("exec", pods.id_of(name), "cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in told if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(podman.UID)}
    assert {int(status[each], 16) for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for path in ("/odd", "/etc/odd", f"{SECRETS_AT}/odd"):
        refused = pods.podman("exec", pods.id_of(name), "sh", "-c", f"touch {path} 2>&1 || true")
        assert "Read-only file system" in refused or "Permission denied" in refused
    limit = pods.container(name)["resources"]["limits"]["memory"]
    assert pods.inspect(name)["HostConfig"]["Memory"] == int(limit.removesuffix("Gi")) << 30


@pytest.mark.parametrize("name", ["serving", "object-store"])
def test_a_process_that_dies_is_started_again(pods: Pods, versions: tuple[str, str], key: str, name: str) -> None:
    """Killed as by a lack of memory, it answers again by itself, with the model and with all that was stored."""
    before = pods.inspect(name)
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: pods.inspect(name)["RestartCount"] > before["RestartCount"], RESTARTED_S, f"{name} stays away")
    starts(pods, name)
    wait_until(lambda: pods.passes(name, "readinessProbe"), RESTARTED_S, f"{name} is not ready again")
    assert answering(pods, key) == versions[0]


def test_a_key_that_is_replaced_counts_without_a_start(
    pods: Pods, overlays: Path, versions: tuple[str, str], key: str
) -> None:
    """`make k8s-rotate`, rendered and brought to the pod as a cluster does: the new key is good, the old one is not."""
    begun = pods.inspect("serving")["State"]["StartedAt"]
    cluster_secrets.rotate(overlays / "local" / "secrets", Stack(keys=True), "pipeline-key")
    rotated = Pods(pods.folder, build(overlays / "played"))
    new = key_of(rotated)
    assert new != key
    try:
        podman.write_secret(pods.folder / "serving", rotated.manifest("Secret", "serving"), 0o440)
        wait_until(lambda: answering(pods, new) == versions[0], 30, "the new key is not good")
        assert asked(pods, key).status_code == 401
        assert pods.inspect("serving")["State"]["StartedAt"] == begun
    finally:
        podman.write_secret(pods.folder / "serving", pods.manifest("Secret", "serving"), 0o440)
    wait_until(lambda: answering(pods, key) == versions[0], 30, "the old key is not good again")


def test_a_store_that_is_away_takes_no_replica_out(pods: Pods, versions: tuple[str, str], key: str) -> None:
    """It stays ready and answers; started again meanwhile it does so from its cache."""
    assert pods.stop("object-store") in {0, 143}
    assert pods.passes("serving", "readinessProbe")
    os.kill(pods.inspect("serving")["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: answering(pods, key) == versions[0], RESTARTED_S, "it does not answer from its cache")
    pods.start("object-store")
    starts(pods, "object-store")


def test_at_the_end_it_drains_within_its_time(pods: Pods, versions: tuple[str, str], key: str) -> None:
    """SIGTERM ends it well before the grace period of the manifest is over."""
    assert answering(pods, key) == versions[0]
    assert pods.stop("serving") == 0
