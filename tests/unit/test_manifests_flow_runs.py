"""What the manifests say of flow runs: the worker's rights, what Jobs ask for, and that it fits the Jobs' template."""

from pathlib import Path
from typing import Any

import manifests
import pytest
from manifests import ROOT, Document, of_kind, one, overlays

from pipeline import prefect_init, run_jobs
from pipeline.prefect_deployments import LONG
from pipeline.secret_values import Stack, files_of, generated
from pipeline.settings import Settings

README = (ROOT / "k8s" / "README.md").read_text(encoding="utf-8")
GPU = {"nvidia.com/gpu.present": "true"}


def resources(documents: list[Document], folder: Path) -> dict[str, dict[str, Any]]:
    """What `prefect-init` reads of the ConfigMap that it mounts."""
    folder.mkdir()
    for name, text in one(documents, "ConfigMap", "flow-resources")["data"].items():
        (folder / name).write_text(text)
    settings = Settings(work_pool="kubernetes", flow_resources=folder)
    return prefect_init.resources_of(settings, prefect_init.template_of(settings))


def manifest() -> dict[str, Any]:
    """The Job of the template, its places not filled."""
    found: dict[str, Any] = run_jobs.base_job_template()["job_configuration"]["job_manifest"]
    return found


def test_what_flows_ask_for_is_what_the_form_allows(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """In every overlay and combination the files are of flows and pass the form; those that compute are all named."""
    for number, (name, documents) in enumerate(manifests.everything().items()):
        with subtests.test(name):
            assert set(resources(documents, tmp_path / str(number))) >= {*LONG, "prepare", "evaluate"}


def test_trainings_ask_for_the_gpu_where_that_is_chosen(tmp_path: Path) -> None:
    """With the component they do, and tolerate its nodes' taint; nothing else does, and nobody does without it."""
    found = resources(overlays()["gpu"], tmp_path / "gpu")
    assert {name for name, values in found.items() if values.get("gpus")} == {"pipeline", "train"}
    for name in ("pipeline", "train"):
        assert found[name]["node_selector"] == GPU
        assert [each["key"] for each in found[name]["tolerations"]] == ["nvidia.com/gpu"]
    for name in ("local", "production"):
        assert not any(values.get("gpus") for values in resources(overlays()[name], tmp_path / name).values())


def test_what_a_job_refers_to_is_there() -> None:
    """Its account, ConfigMap and Secret are those of the manifests; the worker finds its own container."""
    documents = overlays()["local"]
    pod = manifest()["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] in of_kind(documents, "ServiceAccount")
    (container,) = pod["containers"]
    assert container["envFrom"][0]["configMapRef"]["name"] in of_kind(documents, "ConfigMap")
    (secret,) = [each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each]
    assert secret in files_of(dict.fromkeys(generated(), "x"), Stack(keys=True))
    assert secret in of_kind(documents, "Secret")
    worker = one(documents, "Deployment", "prefect-worker")["spec"]["template"]["spec"]
    assert [each["name"] for each in worker["containers"]] == ["prefect-worker"]


def test_the_pod_of_a_run_has_no_rights() -> None:
    """It is closed as every other pod is: the namespace would not take it otherwise."""
    closed = one(overlays()["local"], "Job", "prefect-init")["spec"]["template"]["spec"]
    pod = manifest()["spec"]["template"]["spec"]
    assert pod["securityContext"] == closed["securityContext"]
    assert pod["containers"][0]["securityContext"] == closed["containers"][0]["securityContext"]
    assert pod["enableServiceLinks"] is False
    assert "automountServiceAccountToken" not in pod  # its account says so, and a component may say otherwise


def test_every_right_of_the_worker_is_explained() -> None:
    """README's table has each verb of its Role; nothing is cluster-wide."""
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| ") and "`: `" in line]
    listed = {
        (resource.strip(" `"), verb.strip(" `"))
        for _, _, may, *_ in rows
        for resource, _, verbs in [may.partition(":")]
        for verb in verbs.split(",")
    }
    rules = one(overlays()["local"], "Role", "prefect-worker")["rules"]
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert granted <= listed
    assert not of_kind(overlays()["local"], "ClusterRole")
