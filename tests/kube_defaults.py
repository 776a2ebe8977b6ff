"""What a Kubernetes API adds to an object before it stores it, as far as clients and controllers look at it."""

import base64
import itertools
from typing import Any

_addresses = itertools.count(1)


def without_nulls(found: Any) -> Any:
    """An object without what is null: to the API that is the same as absent."""
    if isinstance(found, dict):
        return {name: without_nulls(value) for name, value in found.items() if value is not None}
    if isinstance(found, list):
        return [without_nulls(each) for each in found]
    return found


def fill(new: dict[str, Any]) -> None:
    """Add the defaults, in place."""
    _FILLERS.get(new["kind"], lambda _: None)(new)


def _deployment(new: dict[str, Any]) -> None:
    spec = new["spec"]
    _set(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        _set(strategy.setdefault("rollingUpdate", {}), maxSurge="25%", maxUnavailable="25%")
    _template(spec["template"], restart="Always")


def _replica_set(new: dict[str, Any]) -> None:
    _set(new["spec"], replicas=1)
    _template(new["spec"].setdefault("template", {}), restart="Always")


def _job(new: dict[str, Any]) -> None:
    spec = new["spec"]
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    _set(spec, parallelism=1, backoffLimit=6, completionMode="NonIndexed", suspend=False, manualSelector=False)
    _template(spec["template"], restart=None)
    uid = new["metadata"].get("uid")
    if uid:
        mine = {"batch.kubernetes.io/controller-uid": uid}
        spec.setdefault("selector", {"matchLabels": mine})
        name = new["metadata"]["name"]
        marks = {**mine, "controller-uid": uid, "job-name": name, "batch.kubernetes.io/job-name": name}
        labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
        _set(labels, **marks)


def _template(template: dict[str, Any], *, restart: str | None) -> None:
    template.setdefault("metadata", {})
    _pod_spec(template.setdefault("spec", {}), restart)


def _pod(new: dict[str, Any]) -> None:
    _set(new["spec"], serviceAccountName="default", enableServiceLinks=True)
    _pod_spec(new["spec"], "Always")
    new.setdefault("status", {"phase": "Pending"})


def _pod_spec(spec: dict[str, Any], restart: str | None) -> None:
    _set(spec, dnsPolicy="ClusterFirst", terminationGracePeriodSeconds=30, schedulerName="default-scheduler")
    spec.setdefault("securityContext", {})
    if restart:
        spec.setdefault("restartPolicy", restart)
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    for each in [*spec.get("initContainers", ()), *spec.get("containers", ())]:
        _container(each)
    for volume in spec.get("volumes", ()):
        for kind in ("secret", "configMap"):
            if kind in volume:
                volume[kind].setdefault("defaultMode", 0o644)
        if len(volume) == 1:
            volume["emptyDir"] = {}


def _container(each: dict[str, Any]) -> None:
    tagged = ":" in each.get("image", "").rpartition("/")[2]
    policy = "IfNotPresent" if tagged and not each["image"].endswith(":latest") else "Always"
    _set(each, imagePullPolicy=policy, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File")
    each.setdefault("resources", {})
    limits = each["resources"].get("limits") or {}
    if limits:
        each["resources"]["requests"] = {**limits, **(each["resources"].get("requests") or {})}
    for port in each.get("ports", ()):
        port.setdefault("protocol", "TCP")
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        if name in each:
            _set(each[name], timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
            if "httpGet" in each[name]:
                _set(each[name]["httpGet"], path="/", scheme="HTTP")
    for variable in each.get("env", ()):
        if "fieldRef" in variable.get("valueFrom", {}):
            variable["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")


def _service(new: dict[str, Any]) -> None:
    spec = new["spec"]
    _set(spec, type="ClusterIP", sessionAffinity="None", internalTrafficPolicy="Cluster")
    if "clusterIP" not in spec and spec["type"] != "ExternalName":
        third, last = divmod(next(_addresses), 250)
        spec["clusterIP"] = f"10.96.{third}.{last + 1}"
    if "clusterIP" in spec:
        _set(spec, clusterIPs=[spec["clusterIP"]], ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack")
    for port in spec.get("ports", ()):
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])


def _secret(new: dict[str, Any]) -> None:
    new.setdefault("type", "Opaque")
    plain = new.pop("stringData", {})
    if plain:
        encoded = {name: base64.b64encode(value.encode()).decode() for name, value in plain.items()}
        new["data"] = new.get("data", {}) | encoded


def _bound(new: dict[str, Any]) -> None:
    group = "rbac.authorization.k8s.io"
    new["roleRef"].setdefault("apiGroup", group)
    for subject in new.get("subjects", ()):
        if subject["kind"] in {"User", "Group"}:
            subject.setdefault("apiGroup", group)


def _namespace(new: dict[str, Any]) -> None:
    new.setdefault("spec", {"finalizers": ["kubernetes"]})
    new.setdefault("status", {"phase": "Active"})
    new["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = new["metadata"]["name"]


def _set(found: dict[str, Any], **defaults: Any) -> None:
    for name, value in defaults.items():
        found.setdefault(name, value)


_FILLERS = {
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "Job": _job,
    "Pod": _pod,
    "Service": _service,
    "Secret": _secret,
    "RoleBinding": _bound,
    "ClusterRoleBinding": _bound,
    "Namespace": _namespace,
}
