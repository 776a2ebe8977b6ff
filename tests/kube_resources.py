"""Which kinds of objects the Kubernetes API of the tests knows, and how it tells its clients (discovery)."""

from dataclasses import dataclass
from typing import Any

_ALL = {"Pod", "Service", "Deployment", "ReplicaSet", "Job", "HorizontalPodAutoscaler"}
"""What ``kubectl get all`` means."""
VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects, as the API's paths name it.

    Attributes:
        group: of the API; empty for the oldest one.
        subresources: paths below an object.
    """

    group: str
    version: str
    kind: str
    plural: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    subresources: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """As objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As the API's sentences name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        """As the API's sentences about invalid objects name it."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


_RBAC = "rbac.authorization.k8s.io"
RESOURCES = (
    Resource("", "v1", "Namespace", "namespaces", ("ns",), namespaced=False, subresources=("status",)),
    Resource("", "v1", "Node", "nodes", ("no",), namespaced=False, subresources=("status",)),
    Resource("", "v1", "Pod", "pods", ("po",), subresources=("status", "log")),
    Resource("", "v1", "Service", "services", ("svc",), subresources=("status",)),
    Resource("", "v1", "ConfigMap", "configmaps", ("cm",)),
    Resource("", "v1", "Secret", "secrets"),
    Resource("", "v1", "ServiceAccount", "serviceaccounts", ("sa",)),
    Resource("", "v1", "Event", "events", ("ev",)),
    Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", ("pvc",), subresources=("status",)),
    Resource("apps", "v1", "Deployment", "deployments", ("deploy",), subresources=("status", "scale")),
    Resource("apps", "v1", "ReplicaSet", "replicasets", ("rs",), subresources=("status", "scale")),
    Resource("batch", "v1", "Job", "jobs", subresources=("status",)),
    Resource("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", ("hpa",)),
    Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", ("pdb",)),
    Resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", ("netpol",)),
    Resource("networking.k8s.io", "v1", "Ingress", "ingresses", ("ing",)),
    Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    Resource("coordination.k8s.io", "v1", "Lease", "leases"),
    Resource(_RBAC, "v1", "Role", "roles"),
    Resource(_RBAC, "v1", "RoleBinding", "rolebindings"),
    Resource(_RBAC, "v1", "ClusterRole", "clusterroles", namespaced=False),
    Resource(_RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
)
BY_PATH = {(each.group, each.version, each.plural): each for each in RESOURCES}
BY_KIND = {each.kind: each for each in RESOURCES}
VERSION = {"major": "1", "minor": "37", "gitVersion": "v1.37.0", "platform": "linux/amd64"}
CURRENT = "1.37"
"""Whose schemas objects are validated against."""


def of(manifest: dict[str, Any]) -> Resource | None:
    """The resource that an object says it is of."""
    found = BY_KIND.get(manifest.get("kind", ""))
    return found if found and found.api_version == manifest.get("apiVersion") else None


def discovery(path: str) -> dict[str, Any] | None:
    """What the API says of itself at a path; None where it says nothing there."""
    if path == "/version":
        return VERSION
    if path == "/api":
        return {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}
    if path == "/apis":
        groups = {each.group: each.version for each in RESOURCES if each.group}
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [_group(name, version) for name, version in groups.items()],
        }
    api_version = path.removeprefix("/apis/").removeprefix("/api/")
    found = [each for each in RESOURCES if each.api_version == api_version and path.count("/") < 4]
    if not found:
        return None
    listed = [entry for each in found for entry in _entries(each)]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": listed}


def openapi(path: str) -> dict[str, Any] | None:
    """As much of the OpenAPI documents as tells kubectl that the server validates fields."""
    versions = {each.api_version: each for each in RESOURCES}
    if path == "/openapi/v3":
        paths = {_api_path(each): {"serverRelativeURL": f"/openapi/v3/{_api_path(each)}"} for each in versions.values()}
        return {"paths": paths}
    found = [each for each in RESOURCES if path == f"/openapi/v3/{_api_path(each)}"]
    if not found:
        return None
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {
        _object_path(each): {
            "patch": {
                "parameters": [parameter],
                "x-kubernetes-group-version-kind": {"group": each.group, "version": each.version, "kind": each.kind},
            }
        }
        for each in found
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.37.0"}, "paths": paths}


def _api_path(resource: Resource) -> str:
    return f"apis/{resource.api_version}" if resource.group else f"api/{resource.version}"


def _object_path(resource: Resource) -> str:
    place = "/namespaces/{namespace}" if resource.namespaced else ""
    return f"/{_api_path(resource)}{place}/{resource.plural}/{{name}}"


def _group(name: str, version: str) -> dict[str, Any]:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [served], "preferredVersion": served}


def _entries(resource: Resource) -> list[dict[str, Any]]:
    one = {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(VERBS),
        "shortNames": list(resource.short),
        "categories": ["all"] if resource.kind in _ALL else [],
    }
    below = [
        {"name": f"{resource.plural}/{name}", "singularName": "", "namespaced": resource.namespaced}
        | {"kind": resource.kind, "verbs": ["get"] if name == "log" else ["get", "patch", "update"]}
        for name in resource.subresources
    ]
    return [one, *below]
