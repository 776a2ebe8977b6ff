"""The Kubernetes cluster of the tests behaves as a real one does where its users touch it; kubectl is one of them."""

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kube_api
import pytest
from kube_api import Cluster
from kube_containers import Launch, Program
from kube_node import Node
from kube_refusals import Refused
from kube_volumes import environment
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

WEB: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 2,
        "progressDeadlineSeconds": 3,
        "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 5,
                "volumes": [{"name": "page", "configMap": {"name": "page"}}, {"name": "said", "emptyDir": {}}],
                "containers": [
                    {
                        "name": "main",
                        "image": "shell:1",
                        "command": ["python3", "-m", "http.server", "--bind", "$(ADDRESS)", "--directory", "/srv"],
                        "args": ["8080"],
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "env": [
                            {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                            {"name": "VERSION", "value": "1"},
                        ],
                        "volumeMounts": [{"name": "page", "mountPath": "/srv"}],
                        "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1},
                    }
                ],
            },
        },
    },
}
PAGE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "page"},
    "data": {"index.html": "one"},
}
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
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


def test_a_job_without_a_number_starts_nothing_new_once_one_has_succeeded(cluster: Cluster) -> None:
    """Its pods share a queue of work: the first that finds it empty ends the Job with those that still run."""
    job = changed(JOB)
    job["spec"]["parallelism"] = 2
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["sh", "-c", f"mkdir {cluster.folder}/one || sleep 1"]
    cluster.apply([job])
    kubectl(cluster, "wait", "--for=condition=complete", "job/hello", "--timeout=30s")
    assert len(cluster.objects("Pod")) == cluster.get("Job", "hello")["status"]["succeeded"] == 2


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


def test_a_deployment_is_rolled_out_and_undone(cluster: Cluster) -> None:
    """Each template is a revision; kubectl follows it, tells of it, and brings the former one back."""
    for manifest in (PAGE, SERVICE, WEB):
        kubectl(cluster, "apply", "-f", "-", said=manifest)
    kubectl(cluster, "rollout", "status", "deployment/web", "--timeout=30s")
    assert {_page(address) for address in cluster.addresses("web")} == {"one"}
    first = cluster.get("Deployment", "web")["spec"]["template"]
    for version in ("2", "3"):
        kubectl(cluster, "set", "env", "deployment/web", f"VERSION={version}")
        kubectl(cluster, "annotate", "--overwrite", "deployment/web", f"kubernetes.io/change-cause=version {version}")
        kubectl(cluster, "rollout", "status", "deployment/web", "--timeout=30s")
    history = kubectl(cluster, "rollout", "history", "deployment/web")
    assert [line.split() for line in history.splitlines() if line[:1].isdigit()] == [
        ["1", "<none>"],
        ["2", "version", "2"],
        ["3", "version", "3"],
    ]
    kubectl(cluster, "rollout", "undo", "deployment/web", "--to-revision=1")
    kubectl(cluster, "rollout", "status", "deployment/web", "--timeout=30s")
    assert cluster.get("Deployment", "web")["spec"]["template"] == first
    assert len(cluster.addresses("web")) == 2


def _page(address: str) -> str:
    return httpx.get(f"http://{address}:8080/", trust_env=False).text


def test_a_rollout_that_does_not_come_forward_leaves_the_old_pods(cluster: Cluster) -> None:
    """An image that nobody has: the deadline passes, the reason is in the pod's status, and the old pods answer."""
    cluster.apply([PAGE, SERVICE, WEB])
    wait_until(lambda: len(cluster.addresses("web")) == 2, 30)
    kubectl(cluster, "set", "image", "deployment/web", "main=shell:2")
    said = refused(cluster, "rollout", "status", "deployment/web", "--timeout=30s")
    assert "exceeded its progress deadline" in said
    states = [each["status"]["containerStatuses"][0]["state"] for each in cluster.objects("Pod")]
    assert sum(each.get("waiting", {}).get("reason") == "ImagePullBackOff" for each in states) == 1
    assert len(cluster.addresses("web")) == 2


def test_what_is_mounted_follows_its_config_map(cluster: Cluster) -> None:
    """The page that the processes show is another one soon after it was changed."""
    cluster.apply([PAGE, SERVICE, WEB])
    wait_until(lambda: len(cluster.addresses("web")) == 2, 30)
    cluster.apply([PAGE | {"data": {"index.html": "two"}}])
    wait_until(lambda: {_page(address) for address in cluster.addresses("web")} == {"two"}, 30)


def test_only_what_a_pod_says_itself_is_expanded(cluster: Cluster) -> None:
    """A manifest's value may speak of other variables; a Secret's reaches the container as it is."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "odd"}, "stringData": {"key": "a$$b$(CODE)"}}
    cluster.apply([secret])
    env = [
        {"name": "CODE", "value": "0"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "odd", "key": "key"}}},
        {"name": "SAID", "value": "$(CODE) $$(CODE) $(NOBODY) $HOME"},
    ]
    found = environment(cluster.objects_, {"metadata": {"namespace": cluster.namespace}}, {"env": env})
    assert found == {"CODE": "0", "SECRET": "a$$b$(CODE)", "SAID": "0 $(CODE) $(NOBODY) $HOME"}


def test_of_two_who_change_an_object_one_has_to_read_it_again(cluster: Cluster) -> None:
    """A write made from an old state is refused; a patch that names no state is not."""
    cluster.apply([PAGE])
    stale = json.loads(kubectl(cluster, "get", "configmap", "page", "-o", "json"))
    kubectl(cluster, "patch", "configmap", "page", "--type=merge", "-p", '{"data": {"more": "2"}}')
    said = refused(cluster, "replace", "-f", "-", said=stale)
    assert "the object has been modified; please apply your changes to the latest version and try again" in said
    assert cluster.get("ConfigMap", "page")["data"] == {"index.html": "one", "more": "2"}


def test_a_watch_tells_every_change_and_says_when_it_came_too_late(cluster: Cluster) -> None:
    """From a version on; from a version that nobody remembers it ends with 410."""
    token = cluster.access.token("kubernetes-admin")
    at = cluster.objects_.version
    cluster.apply([PAGE])
    cluster.apply([PAGE | {"data": {}}])
    cluster.delete("ConfigMap", "page")
    trusted = ssl.create_default_context(cafile=cluster.authority)
    with httpx.Client(verify=trusted, headers={"Authorization": f"Bearer {token}"}) as client:
        query = f"watch=true&resourceVersion={at}&timeoutSeconds=1&allowWatchBookmarks=true"
        url = f"{cluster.url}/api/v1/namespaces/safelight/configmaps?{query}"
        told = [json.loads(line) for line in client.get(url).text.splitlines()]
        assert [each["type"] for each in told if each["type"] != "BOOKMARK"] == ["ADDED", "MODIFIED", "DELETED"]
        assert told[-1]["type"] == "BOOKMARK"
        cluster.objects_.forget()
        (late,) = [json.loads(line) for line in client.get(url).text.splitlines()]
        assert (late["type"], late["object"]["code"]) == ("ERROR", 410)


def test_a_pod_ends_as_its_manifest_says(cluster: Cluster) -> None:
    """First its hook, then SIGTERM; what does not end by then is killed. All of it is in its log."""
    script = "trap 'echo told to end' TERM; echo began; while true; do sleep 0.1; done"
    hook = {"exec": {"command": ["sh", "-c", "echo hooked >> $HOME/hook"]}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stubborn"},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [
                {"name": "main", "image": "shell:1", "command": ["sh", "-c", script], "lifecycle": {"preStop": hook}}
            ],
        },
    }
    cluster.apply([pod])
    wait_until(lambda: "began" in _log(cluster), 30)
    kubectl(cluster, "delete", "pod", "stubborn")
    logs = list(cluster.folder.rglob("main.0.log"))
    assert "told to end" in logs[0].read_text()
    assert [each.read_text() for each in cluster.folder.rglob("hook")] == ["hooked\n"]
    assert cluster.objects("Pod") == []


def _log(cluster: Cluster) -> str:
    return _kubectl(cluster, "logs", "stubborn", account=None, said=None).stdout
