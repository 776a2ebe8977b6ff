"""The manifests as kubectl renders them: every overlay and every combination of components is valid and complete."""

import functools
import re

import kubernetes_validate
import manifests
import pytest
from kubernetes_validate import utils
from manifests import ROOT, Document, of_kind, one, overlays, workloads

from pipeline.secret_values import Stack, files_of, generated

VERSIONS = ("1.30", "1.33", "1.37")
"""The oldest Kubernetes that all of it works on, the newest, and one between."""
FILES = files_of(dict.fromkeys(generated(), "x"), Stack(keys=True))
SUPPLIED = {*FILES, "serving-tls"}
"""Secrets that k8s/README.md asks for where they are not made from files."""
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
LABEL = "app.kubernetes.io"


@pytest.fixture
def remembered_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package reads 1.8 MB for each document; here once for each version."""
    monkeypatch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))


@pytest.mark.usefixtures("remembered_schemas")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_document_is_valid(version: str, subtests: pytest.Subtests) -> None:
    """Each is what the API of every supported version knows, and nothing else."""
    for name, document in manifests.each().items():
        with subtests.test(name):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_check_would_notice_a_mistake() -> None:
    """A field that is misspelt, and one of a kind that it should not be, are found."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 1}]}}
    kubernetes_validate.validate(service, VERSIONS[0], strict=True)
    for spec in ({"port": [{"port": 1}]}, {"ports": [{"port": "one"}]}):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(service | {"spec": spec}, VERSIONS[0], strict=True)


def test_a_document_says_what_it_belongs_to(subtests: pytest.Subtests) -> None:
    """Each has its component's name, the whole's, and the namespace."""
    for name, document in manifests.each().items():
        with subtests.test(name):
            metadata = document["metadata"]
            assert metadata["labels"][f"{LABEL}/name"]
            assert metadata["labels"][f"{LABEL}/part-of"] == "safelight"
            assert metadata.get("namespace") == (None if document["kind"] in CLUSTER_WIDE else "safelight")


def test_an_overlay_tells_its_version(subtests: pytest.Subtests) -> None:
    """What an overlay makes bears the version of this repository."""
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version
    for name, documents in overlays().items():
        with subtests.test(name):
            assert {each["metadata"]["labels"][f"{LABEL}/version"] for each in documents} == {version[1]}


def test_what_a_pod_refers_to_is_there(subtests: pytest.Subtests) -> None:
    """Accounts, claims and ConfigMaps exist, and so do Secrets, or they are ones that people are asked for."""
    for name, documents in manifests.everything().items():
        there = {
            kind: set(of_kind(documents, kind)) for kind in ("PersistentVolumeClaim", "ConfigMap", "ServiceAccount")
        }
        secrets = set(of_kind(documents, "Secret")) or SUPPLIED
        with subtests.test(name):
            for document in workloads(documents):
                spec = document["spec"]["template"]["spec"]
                assert spec["serviceAccountName"] in there["ServiceAccount"]
                assert _named(spec, "persistentVolumeClaim", "claimName") <= there["PersistentVolumeClaim"]
                assert _named(spec, "configMap", "name") <= there["ConfigMap"]
                assert _named(spec, "secret", "secretName") <= secrets
                assert _configured(spec) <= there["ConfigMap"]


def _named(spec: Document, kind: str, key: str) -> set[str]:
    """What the volumes of a kind are made of."""
    return {volume[kind][key] for volume in spec.get("volumes", []) if kind in volume}


def _configured(spec: Document) -> set[str]:
    """The ConfigMaps that environments are made of; a Secret must not be one of them."""
    found: set[str] = set()
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        assert all(set(each) == {"configMapRef"} for each in container.get("envFrom", [])), "secrets are files"
        found |= {each["configMapRef"]["name"] for each in container.get("envFrom", [])}
        for each in container.get("env", []):
            assert "secretKeyRef" not in each.get("valueFrom", {}), "secrets are files"
            found |= (
                {each["valueFrom"]["configMapKeyRef"]["name"]}
                if "configMapKeyRef" in each.get("valueFrom", {})
                else set()
            )
    return found


def test_a_service_leads_to_the_pods_of_one_component(subtests: pytest.Subtests) -> None:
    """What a Service selects are the pods of one workload, and the ports that it names are theirs."""
    for name, documents in manifests.everything().items():
        pods = [document["spec"]["template"] for document in workloads(documents)]
        with subtests.test(name):
            for service in of_kind(documents, "Service").values():
                wanted = service["spec"]["selector"].items()
                (pod,) = (each for each in pods if wanted <= each["metadata"]["labels"].items())
                ports = {port["name"] for port in pod["spec"]["containers"][0].get("ports", [])}
                assert {port["targetPort"] for port in service["spec"]["ports"] if "targetPort" in port} <= ports


def test_what_governs_a_deployment_names_one(subtests: pytest.Subtests) -> None:
    """Selectors are the component's name alone; scalers, budgets and ingresses name what there is."""
    for name, documents in manifests.everything().items():
        deployments = of_kind(documents, "Deployment")
        with subtests.test(name):
            for each, deployment in deployments.items():
                assert deployment["spec"]["selector"] == {"matchLabels": {f"{LABEL}/name": each}}
            for scaler in of_kind(documents, "HorizontalPodAutoscaler").values():
                target = deployments[scaler["spec"]["scaleTargetRef"]["name"]]
                assert "replicas" not in target["spec"], "each apply would set back what the scaler chose"
            for budget in of_kind(documents, "PodDisruptionBudget").values():
                assert budget["spec"]["selector"]["matchLabels"][f"{LABEL}/name"] in deployments
            for ingress in of_kind(documents, "Ingress").values():
                paths = ingress["spec"]["rules"][0]["http"]["paths"]
                assert {path["backend"]["service"]["name"] for path in paths} <= set(of_kind(documents, "Service"))
                assert {each["secretName"] for each in ingress["spec"]["tls"]} <= SUPPLIED


def test_no_secret_is_in_a_manifest() -> None:
    """Only what is for one machine makes Secrets, of files that git ignores, each with the files of its reader."""
    assert not [each for documents in manifests.combined().values() for each in of_kind(documents, "Secret")]
    assert not of_kind(overlays()["production"], "Secret")
    secrets = of_kind(overlays()["local"], "Secret")
    assert secrets
    assert {name: set(secret["data"]) for name, secret in secrets.items()} == {
        name: set(FILES[name]) for name in secrets
    }
    assert "/k8s/overlays/local/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_the_namespace_refuses_pods_with_rights() -> None:
    """The cluster itself holds all pods to the strictest of its standards."""
    for documents in manifests.everything().values():
        labels = one(documents, "Namespace", "safelight")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_production_names_bytes_and_has_two_of_what_answers() -> None:
    """Every image is one digest; serving has two replicas at least, on different nodes; nobody is reached unasked."""
    documents = overlays()["production"]
    for document in workloads(documents):
        for container in document["spec"]["template"]["spec"]["containers"]:
            assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"]), container["image"]
    assert one(documents, "HorizontalPodAutoscaler", "serving")["spec"]["minReplicas"] >= 2
    assert one(documents, "PodDisruptionBudget", "serving")["spec"]["maxUnavailable"] == 1
    spread = one(documents, "Deployment", "serving")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert one(documents, "Ingress", "serving")["spec"]["tls"]
    assert "default-deny" in of_kind(documents, "NetworkPolicy")
    assert not {"object-store", "store-init"} & {each["metadata"]["name"] for each in workloads(documents)}


def test_what_a_person_has_to_fill_in_stands_in_the_overlay() -> None:
    """Each placeholder that is rendered is told, with its file; only production has any."""
    for name, documents in overlays().items():
        told = "\n".join(manifests.to_fill_in(name))
        parts = {part for placeholder in manifests.placeholders(documents) for part in placeholder.split("@")}
        assert not [part for part in parts if part not in told], name
        assert bool(parts) is (name == "production")


def test_every_file_is_explained() -> None:
    """k8s/README.md has a line for each manifest, and for no other."""
    said = (ROOT / "k8s" / "README.md").read_text("utf-8")
    named = set(re.findall(r"^\| `([^`]+\.(?:yaml|json))` \| \S", said, re.MULTILINE))
    files = (path.relative_to(ROOT / "k8s") for path in (ROOT / "k8s").rglob("*") if path.is_file())
    assert named == {str(path) for path in files if "secrets" not in path.parts and path.name != "README.md"}


def test_each_component_is_of_use() -> None:
    """Every component changes what the base renders, by itself."""
    for component in manifests.names("components"):
        assert manifests.combined()[f"base + {component}"] != manifests.combined()["base"], component
