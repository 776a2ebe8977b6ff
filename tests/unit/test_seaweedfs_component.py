"""SeaweedFS in place of Silo, as manifests."""

import shutil
from pathlib import Path

import pytest
import yaml
from manifests import ROOT, Document, build, build_with, one

from pipeline import seaweedfs

PLAYED = ROOT / "tests" / "e2e" / "played.yaml"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The base with the component."""
    copy = tmp_path_factory.mktemp("rendered") / "k8s"
    shutil.copytree(ROOT / "k8s", copy, ignore=shutil.ignore_patterns("secrets"))
    return build_with(copy, "base", ("seaweedfs",))


def test_it_is_started_as_its_module_says(manifests: list[Document]) -> None:
    """The command is the closed one, only S3 is reached, and nothing of Silo's is left but where it stands."""
    deployment = one(manifests, "Deployment", "object-store")["spec"]["template"]["spec"]
    (container,) = deployment["containers"]
    assert container["command"] == ["weed"]
    assert container["args"] == seaweedfs.contained_command()
    assert [each["name"] for each in container["env"]] == ["HOME", "GOMEMLIMIT"]
    assert [each["containerPort"] for each in container["ports"]] == [seaweedfs.CONTAINER_PORT]
    assert [each["port"] for each in one(manifests, "Service", "object-store")["spec"]["ports"]] == [9000]
    at = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert (at["data"], at["secrets"]) == (seaweedfs.CONTAINER_DATA, seaweedfs.CONTAINER_CONFIGURATION)
    assert "silo" not in yaml.safe_dump(deployment)


def test_its_volume_is_not_silo_s(manifests: list[Document]) -> None:
    """There is one claim for the store, by another name than Silo's, and it is mounted."""
    claims = [each["metadata"]["name"] for each in manifests if each["kind"] == "PersistentVolumeClaim"]
    assert [name for name in claims if name.startswith("object-store")] == ["object-store-seaweedfs"]
    volumes = one(manifests, "Deployment", "object-store")["spec"]["template"]["spec"]["volumes"]
    assert [each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each] == [
        "object-store-seaweedfs"
    ]


def test_it_is_closed_no_less_than_silo(manifests: list[Document]) -> None:
    """What keeps a pod without rights is the base's, not this component's."""
    base = one(build(ROOT / "k8s" / "base"), "Deployment", "object-store")["spec"]["template"]["spec"]
    ours = one(manifests, "Deployment", "object-store")["spec"]["template"]["spec"]
    assert ours["securityContext"] == base["securityContext"]
    assert ours["containers"][0]["securityContext"] == base["containers"][0]["securityContext"]
    assert ours["automountServiceAccountToken"] is False


def test_its_secret_has_every_file_that_it_reads(manifests: list[Document]) -> None:
    """The Secret that the tests' overlay makes is the one that is mounted, and no file is missing."""
    (made,) = yaml.safe_load(PLAYED.read_text(encoding="utf-8"))["secretGenerator"]
    assert {Path(each).name for each in made["files"]} == set(seaweedfs.contained("{}"))
    volumes = one(manifests, "Deployment", "object-store")["spec"]["template"]["spec"]["volumes"]
    assert [each["secret"]["secretName"] for each in volumes if "secret" in each] == [made["name"]]


def test_its_buckets_keep_no_versions(manifests: list[Document]) -> None:
    """``store-init`` is told which server it makes ready."""
    (container,) = one(manifests, "Job", "store-init")["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["STACK_STORE"] == "seaweedfs"
    assert "SAFELIGHT_S3_ACCESS_KEY_ID_FILE" in told
