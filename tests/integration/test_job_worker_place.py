"""A worker of Kubernetes that cannot work where it is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kube_api
import pytest
from kube_api import Cluster

from pipeline.job_worker import NAMESPACES


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster in which the worker has an account and no rights."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "prefect-worker"}}
    with kube_api.started(tmp_path) as cluster:
        cluster.apply([account])
        yield cluster


@pytest.mark.parametrize(
    ("namespaces", "said"),
    [
        ("", f"{NAMESPACES} must name one namespace"),
        ("safelight", "does not let this worker see the pods of namespace safelight: 403 Forbidden."),
    ],
)
def test_it_says_in_one_sentence_what_is_missing(cluster: Cluster, namespaces: str, said: str) -> None:
    """Without a namespace Prefect would ask for the whole cluster, and without rights start nothing, quietly."""
    kubeconfig = str(cluster.kubeconfig("prefect-worker"))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.job_worker"],
        env={**os.environ, "KUBECONFIG": kubeconfig, NAMESPACES: namespaces, "HOSTNAME": "prefect-worker-0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
