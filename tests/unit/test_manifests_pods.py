"""What every pod of the manifests is: without rights, bounded, asked whether it is well, and given time to end."""

from collections.abc import Iterator

import manifests
import pytest
from manifests import Document, one

from serving.entry import FINISH_S
from serving.supervisor import GRACE_S

USER = 10001
MAY_ASK_THE_API = {"prefect-worker", "flow-run"}
"""It starts Jobs; flow runs, where deployments are rollouts of the cluster."""


def _pods(kind: str = "") -> Iterator[tuple[str, Document, Document]]:
    """Every different pod that can be rendered: its name, what makes it, its specification."""
    for name, document in manifests.each().items():
        template = manifests.pod_template(document)
        if template and document["kind"].startswith(kind):
            yield name, document, template["spec"]


def _containers(spec: Document) -> list[Document]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def test_a_pod_has_no_rights_it_does_not_need(subtests: pytest.Subtests) -> None:
    """Each is nobody in particular, without capabilities, on a read-only root, and sees nothing of its node."""
    for name, _, spec in _pods():
        with subtests.test(name):
            security = spec["securityContext"]
            assert security["runAsNonRoot"] is True
            assert {security["runAsUser"], security["runAsGroup"], security["fsGroup"]} == {USER}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["enableServiceLinks"] is False
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
            assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
            for container in _containers(spec):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }


def test_a_pod_has_an_identity_of_its_own(subtests: pytest.Subtests) -> None:
    """No two workloads share an account, and each says by itself whether it wants a token."""
    for name, document, spec in _pods():
        with subtests.test(name):
            assert spec["serviceAccountName"] == document["metadata"]["name"]
            assert isinstance(spec["automountServiceAccountToken"], bool)


def test_a_token_is_where_a_role_is(subtests: pytest.Subtests) -> None:
    """Who has a token is bound to a Role of this namespace, and who is bound has one; the worker is, and few others."""
    for name, documents in manifests.everything().items():
        with subtests.test(name):
            accounts = manifests.of_kind(documents, "ServiceAccount").values()
            holders = {each["metadata"]["name"] for each in accounts if each["automountServiceAccountToken"]}
            for document in manifests.workloads(documents):
                spec = document["spec"]["template"]["spec"]
                holders |= {spec["serviceAccountName"]} if spec["automountServiceAccountToken"] else set()
            bindings = manifests.of_kind(documents, "RoleBinding").values()
            assert holders == {subject["name"] for each in bindings for subject in each["subjects"]}
            assert "prefect-worker" in holders
            assert holders <= MAY_ASK_THE_API
            assert {each["roleRef"]["kind"] for each in bindings} == {"Role"}
            assert not manifests.of_kind(documents, "ClusterRoleBinding")


def test_a_role_is_no_more_than_is_named() -> None:
    """No Role says "all", lets anybody read a Secret, or gives rights on."""
    for name, document in manifests.each().items():
        if document["kind"] in {"Role", "ClusterRole"}:
            for rule in document["rules"]:
                assert not {"*"} & {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}, name
                assert not {"secrets", "pods/exec", "roles", "rolebindings"} & set(rule["resources"]), name
                assert not {"bind", "escalate", "impersonate"} & set(rule["verbs"]), name


def test_a_pod_is_bounded(subtests: pytest.Subtests) -> None:
    """Each says what it needs and how much memory it may take; what it writes to its node has an end, too."""
    for name, document, spec in _pods():
        with subtests.test(name):
            assert spec["terminationGracePeriodSeconds"] > 0
            for container in _containers(spec):
                assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
                assert "memory" in container["resources"]["limits"]
                assert container["imagePullPolicy"] == "IfNotPresent"
            assert not [
                each for each in spec.get("volumes", []) if "emptyDir" in each and not each["emptyDir"].get("sizeLimit")
            ]
            if document["kind"] == "Job":
                assert document["spec"]["ttlSecondsAfterFinished"] > 0
                assert document["spec"]["backoffLimit"] >= 0


def test_a_pod_mounts_what_it_has(subtests: pytest.Subtests) -> None:
    """No volume is there for nothing, and its group alone reads a pod's secrets."""
    for name, _, spec in _pods():
        with subtests.test(name):
            mounts = [mount for container in _containers(spec) for mount in container.get("volumeMounts", [])]
            assert {mount["name"] for mount in mounts} == {volume["name"] for volume in spec.get("volumes", [])}
            secrets = [volume for volume in spec.get("volumes", []) if "secret" in volume]
            assert {volume["secret"]["defaultMode"] for volume in secrets} <= {0o440}
            read_only = {mount["name"] for mount in mounts if mount.get("readOnly")}
            assert {volume["name"] for volume in secrets} <= read_only


def test_what_runs_on_is_asked_three_questions(subtests: pytest.Subtests) -> None:
    """A start may take long, and being unable to answer is found out sooner than being dead."""
    for name, _, spec in _pods("Deployment"):
        with subtests.test(name):
            for container in _containers(spec):
                startup, ready, live = (
                    _patience(container[f"{kind}Probe"]) for kind in ("startup", "readiness", "liveness")
                )
                assert startup >= 60
                assert live >= 30
                assert ready < live


def _patience(probe: Document) -> int:
    """For how many seconds a probe may fail."""
    seconds: int = probe["periodSeconds"] * probe["failureThreshold"]
    return seconds


def test_serving_is_replaced_without_a_gap(subtests: pytest.Subtests) -> None:
    """A new replica is ready before an old one goes, which has the time that the server's own drain takes."""
    for name, document, spec in _pods("Deployment"):
        if document["metadata"]["name"] == "serving":
            with subtests.test(name):
                rolling = {"maxUnavailable": 0, "maxSurge": 1}
                assert document["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
                (container,) = spec["containers"]
                environ = {each["name"]: each.get("value") for each in container["env"]}
                assert environ["SAFELIGHT_SERVING_PROCESSES"] == container["resources"]["limits"]["cpu"]
                drain = float(environ["SAFELIGHT_SERVING_DRAIN_S"])
                before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
                assert spec["terminationGracePeriodSeconds"] > before + drain + FINISH_S + GRACE_S
                # It is noticed to drain before it has drained.
                assert drain >= _patience(container["readinessProbe"])


def test_serving_is_ready_with_a_model_and_alive_without() -> None:
    """A cluster without a model has replicas that live, which nobody is sent to."""
    (container,) = one(manifests.combined()["base"], "Deployment", "serving")["spec"]["template"]["spec"]["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/v2/health/live", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}


def test_what_is_alone_on_a_volume_is_never_two(subtests: pytest.Subtests) -> None:
    """A Deployment with a volume that one node mounts is stopped before it is started anew."""
    for name, document, spec in _pods("Deployment"):
        if any("persistentVolumeClaim" in volume for volume in spec.get("volumes", [])):
            with subtests.test(name):
                assert document["spec"]["strategy"] == {"type": "Recreate"}
                assert document["spec"]["replicas"] == 1
