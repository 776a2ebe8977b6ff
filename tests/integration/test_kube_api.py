"""The Kubernetes cluster of the tests behaves as a real one does where its users touch it; kubectl is one of them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube_api
import pytest
from kube_api import Cluster
from kube_containers import Launch, Program
from kube_node import Node
from kube_refusals import Refused
from live_server import wait_until

JOB: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "hello"},
    "spec": {
        "backoffLimit": 1,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "main",
                        "image": "shell:1",
                        "command": ["sh", "-c", "echo said $WHAT; exit $CODE"],
                        "env": [{"name": "WHAT", "value": "this"}, {"name": "CODE", "value": "0"}],
                    }
                ],
            }
        },
    },
}


def shell(launch: Launch) -> Program:
    """An image with what this machine has."""
    return Program(launch.command + launch.args, launch.env)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one node."""
    with kube_api.started(tmp_path, nodes=[Node(images={"shell:1": shell})]) as cluster:
        yield cluster


def kubectl(cluster: Cluster, *words: str, account: str | None = None, said: object = None) -> str:
    """What kubectl prints; what it is given to read is ``said``, as JSON."""
    done = _kubectl(cluster, *words, account=account, said=said)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(cluster: Cluster, *words: str, account: str | None = None, said: object = None) -> str:
    """What kubectl complains of."""
    done = _kubectl(cluster, *words, account=account, said=said)
    assert done.returncode != 0, done.stdout
    return done.stderr


def _kubectl(cluster: Cluster, *words: str, account: str | None, said: object) -> subprocess.CompletedProcess[str]:
    command = shutil.which("kubectl")
    assert command
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig(account))}
    text = None if said is None else json.dumps(said)
    return subprocess.run(
        [command, *words], env=env, input=text, capture_output=True, text=True, check=False, timeout=60
    )


def changed(manifest: dict[str, Any], **env: str) -> dict[str, Any]:
    """The Job with other variables."""
    copy: dict[str, Any] = json.loads(json.dumps(manifest))
    for each in copy["spec"]["template"]["spec"]["containers"][0]["env"]:
        each["value"] = env.get(each["name"], each["value"])
    return copy


def test_a_job_runs_to_its_end(cluster: Cluster) -> None:
    """Applied, waited for, read and removed by kubectl; its pod was a process with the variables of the manifest."""
    kubectl(cluster, "apply", "-f", "-", said=JOB)
    kubectl(cluster, "wait", "--for=condition=complete", "job/hello", "--timeout=30s")
    assert kubectl(cluster, "logs", "job/hello") == "said this\n"
    assert cluster.get("Job", "hello")["status"]["succeeded"] == 1
    kubectl(cluster, "delete", "job", "hello")
    wait_until(lambda: not cluster.objects("Pod"))


def test_a_job_that_fails_is_tried_again_and_then_given_up(cluster: Cluster) -> None:
    """As often as its backoffLimit says, with the reason in its conditions."""
    kubectl(cluster, "apply", "-f", "-", said=changed(JOB, CODE="3"))
    kubectl(cluster, "wait", "--for=condition=failed", "job/hello", "--timeout=30s")
    status = cluster.get("Job", "hello")["status"]
    assert status["failed"] == 2
    assert status["conditions"][-1]["reason"] == "BackoffLimitExceeded"


def test_unknown_fields_and_impossible_objects_are_refused(cluster: Cluster) -> None:
    """In the words of a real API; nothing is stored."""
    unknown = changed(JOB)
    unknown["spec"]["backofLimit"] = 2
    assert 'unknown field "spec.backofLimit"' in refused(cluster, "apply", "-f", "-", said=unknown)
    impossible = changed(JOB)
    impossible["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert 'valid values: "OnFailure", "Never"' in refused(cluster, "apply", "-f", "-", said=impossible)
    typed = changed(JOB)
    typed["spec"]["backoffLimit"] = "two"
    with pytest.raises(Refused, match=r"json: cannot unmarshal 'two' into spec\.backoffLimit"):
        cluster.apply([typed])
    assert cluster.objects("Job") == []


def test_an_account_may_do_what_its_roles_say_and_nothing_else(cluster: Cluster) -> None:
    """By its token: 403 with the sentence of a real API, until a Role is bound to it."""
    said = refused(cluster, "get", "jobs", account="reader")
    assert (
        'jobs.batch is forbidden: User "system:serviceaccount:safelight:reader" cannot list resource "jobs" in API '
        'group "batch" in the namespace "safelight"' in said
    )
    group = "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list"]}
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "reader"}, "rules": [rule]}
    bound = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "safelight"}],
    }
    cluster.apply([role, bound])
    kubectl(cluster, "get", "jobs", account="reader")
    assert "cannot create resource" in refused(cluster, "create", "-f", "-", account="reader", said=JOB)
