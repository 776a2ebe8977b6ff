"""The manifests, applied by kubectl to an API that refuses what the real one refuses; no pod runs."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import kube_api
import manifests
import pytest
import yaml
from manifests import Document

Apply = Callable[[list[Document]], "subprocess.CompletedProcess[str]"]
JOBS = ["store-init", "prefect-init"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[kube_api.Cluster]:
    """A cluster without a node."""
    with kube_api.started(tmp_path, nodes=()) as cluster:
        yield cluster


@pytest.fixture
def kubectl(cluster: kube_api.Cluster) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The real kubectl, as the cluster's administrator."""
    command = [str(manifests.KUBECTL), "--kubeconfig", str(cluster.kubeconfig()), "--namespace", cluster.namespace]

    def run(*words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, *words], input=given, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def apply(kubectl: Callable[..., "subprocess.CompletedProcess[str]"]) -> Apply:
    """Apply documents."""
    return lambda documents: kubectl("apply", "--filename", "-", given=yaml.safe_dump_all(documents))


@pytest.mark.parametrize("overlay", manifests.names("overlays"))
def test_an_overlay_is_applied_and_applied_again(overlay: str, apply: Apply, cluster: kube_api.Cluster) -> None:
    """The API takes every document, and the second time nothing changes: Jobs that are there are left alone."""
    documents = manifests.overlays()[overlay]
    first = apply(documents)
    assert first.returncode == 0, first.stderr
    for document in documents:
        cluster.get(document["kind"], document["metadata"]["name"])
    again = apply(documents)
    assert again.returncode == 0, again.stderr
    changed = [line for line in again.stdout.splitlines() if not line.endswith("unchanged")]
    # kubectl always sends the selector of a budget whole, and so believes that it changed.
    assert [line for line in changed if not line.startswith(("poddisruptionbudget", "namespace/"))] == []


def test_an_upgrade_makes_the_jobs_anew(
    apply: Apply, kubectl: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """A new image is refused while the Jobs of the old one are there, and taken once they are gone."""
    old = manifests.overlays()["local"]
    assert apply(old).returncode == 0
    new = list(yaml.safe_load_all(yaml.safe_dump_all(old).replace("/pipeline:dev", "/pipeline:next")))
    refused = apply(new)
    assert refused.returncode != 0
    assert "field is immutable" in refused.stderr
    assert set(re.findall(r'(\S+) "[^"]+" is invalid', refused.stderr)) == {"Job.batch"}
    assert kubectl("delete", "job", "--ignore-not-found", *JOBS).returncode == 0
    taken = apply(new)
    assert taken.returncode == 0, taken.stderr
    assert {f"job.batch/{name} created" for name in JOBS} <= set(taken.stdout.splitlines())
