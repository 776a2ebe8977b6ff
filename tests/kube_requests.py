"""Requests to the Kubernetes API of the tests, carried out: paths to verbs, verbs to what happens to the objects."""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import kube_patches
import kube_refusals
import yaml
from kube_access import Access, Request
from kube_objects import Object, Objects
from kube_resources import BY_PATH, Resource
from kube_schemas import schema_of

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_KNOWN = {
    "allowWatchBookmarks", "container", "continue", "dryRun", "fieldManager", "fieldSelector", "fieldValidation",
    "follow", "force", "gracePeriodSeconds", "labelSelector", "limit", "limitBytes", "orphanDependents", "pretty",
    "previous", "propagationPolicy", "resourceVersion", "resourceVersionMatch", "sendInitialEvents", "sinceSeconds",
    "tailLines", "timeout", "timeoutSeconds", "timestamps", "watch",
}  # fmt: skip
"""Parameters of a query; the others are refused, since nobody has thought of them here."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str = ""
    body: bytes = b""

    @property
    def dry_run(self) -> bool:
        """Whether nothing is to be stored."""
        return self.query.get("dryRun") == "All"

    @property
    def watches(self) -> bool:
        """Whether what changes is to be told."""
        return self.query.get("watch") in {"1", "true"}

    def decoded(self) -> Any:
        """The body.

        Raises:
            Refused: it is in no format that this API reads.
        """
        if "protobuf" in self.content_type or "cbor" in self.content_type:
            raise kube_refusals.Refused(415, "UnsupportedMediaType", f"{self.content_type} is not spoken here")
        try:
            if "json" in self.content_type:
                return json.loads(self.body or b"{}")
            return yaml.safe_load(self.body or b"{}")
        except (yaml.YAMLError, ValueError) as error:
            raise kube_refusals.bad_request(f"the body is neither JSON nor YAML: {error}") from error


def understood(call: Call) -> Request:
    """What a request wants.

    Raises:
        Refused: there is nothing at its path.
    """
    parts = call.path.strip("/").split("/")
    group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and rest[2] != "status":
        namespace, rest = rest[1], rest[2:]
    resource = BY_PATH.get((group, version, rest[0]))
    if resource is None:
        raise kube_refusals.not_built(f"{call.method} {call.path}")
    name, subresource = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
    if subresource and subresource not in resource.subresources:
        raise kube_refusals.not_built(f"{call.method} {call.path}")
    odd = set(call.query) - _KNOWN
    if odd:
        raise kube_refusals.not_built(f"parameter {sorted(odd)} of {call.method} {call.path}")
    selected = call.query.get("fieldSelector", "").removeprefix("metadata.name=")
    if not name and selected and "=" not in selected and "," not in selected:
        name = selected  # a list or a watch of one object counts as one that names it
    return Request(_verb(call, len(rest) > 1), resource, namespace, name, subresource)


def _verb(call: Call, named: bool) -> str:
    if call.method == "DELETE":
        return "delete" if named else "deletecollection"
    if call.method == "GET":
        return "watch" if call.watches else ("get" if named else "list")
    return _VERBS[call.method]


@dataclass(slots=True)
class Registry:
    """Carries out what is neither a watch nor a log."""

    objects: Objects
    access: Access
    applied: dict[tuple[str, str], Object] = field(default_factory=dict)
    """What each applier wanted the last time, by the object's uid and the applier's name."""

    def carry_out(self, call: Call, request: Request) -> tuple[int, Object]:
        """The HTTP status and the body of the answer.

        Raises:
            Refused: it cannot be done.
        """
        how = {
            "get": self._get,
            "list": self._list,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_all,
        }[request.verb]
        return how(call, request)

    def apply(
        self, resource: Resource, namespace: str, wanted: Object, manager: str, *, dry_run: bool = False
    ) -> tuple[int, Object]:
        """Create an object, or make it what an applier wants now; 201 or 200, and the object.

        Raises:
            Refused: it is not valid.
        """
        name = wanted["metadata"]["name"]
        with self.objects.changed:
            try:
                live = self.objects.get(resource, namespace, name)
            except kube_refusals.Refused:
                status, done = 201, self.objects.create(resource, namespace, wanted, dry_run=dry_run)
            else:
                before = self.applied.get((live["metadata"]["uid"], manager), {})
                changed = kube_patches.applied(live, wanted, before, schema_of(resource))
                status, done = 200, self.objects.update(resource, namespace, name, changed, dry_run=dry_run)
            if not dry_run:
                self.applied[done["metadata"]["uid"], manager] = copy.deepcopy(wanted)
        return status, done

    def _get(self, call: Call, request: Request) -> tuple[int, Object]:
        del call
        found = self.objects.get(request.resource, request.namespace, request.name)
        return 200, _scale(found) if request.subresource == "scale" else found

    def _list(self, call: Call, request: Request) -> tuple[int, Object]:
        with self.objects.changed:
            found = self._selected(call, request)
            version = str(self.objects.version)
        items = [{key: value for key, value in each.items() if key not in {"kind", "apiVersion"}} for each in found]
        resource = request.resource
        metadata = {"resourceVersion": version}
        return 200, {
            "kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata, "items": items
        }  # fmt: skip

    def _selected(self, call: Call, request: Request) -> list[Object]:
        labels, fields = call.query.get("labelSelector", ""), call.query.get("fieldSelector", "")
        return self.objects.select(request.resource, request.namespace, labels, fields)

    def _create(self, call: Call, request: Request) -> tuple[int, Object]:
        body = _typed(call.decoded(), request.resource)
        return 201, self.objects.create(request.resource, request.namespace, body, dry_run=call.dry_run)

    def _update(self, call: Call, request: Request) -> tuple[int, Object]:
        return 200, self._written(call, request, _typed(call.decoded(), request.resource))

    def _written(self, call: Call, request: Request, body: Object) -> Object:
        if request.subresource == "scale":
            return self._scaled(request, body)
        return self.objects.update(
            request.resource,
            request.namespace,
            request.name,
            body,
            status=request.subresource == "status",
            dry_run=call.dry_run,
        )

    def _scaled(self, request: Request, body: Object) -> Object:
        live = self.objects.get(request.resource, request.namespace, request.name)
        live["spec"]["replicas"] = body["spec"]["replicas"]
        return _scale(self.objects.update(request.resource, request.namespace, request.name, live))

    def _patch(self, call: Call, request: Request) -> tuple[int, Object]:
        patch = call.decoded()
        with self.objects.changed:
            if call.content_type in kube_patches.APPLY:
                return self._apply(call, request, patch)
            live = self.objects.get(request.resource, request.namespace, request.name)
            if request.subresource == "scale":
                live = _scale(live)
            changed = kube_patches.patched(call.content_type, live, patch, schema_of(request.resource))
            return 200, self._written(call, request, changed)

    def _apply(self, call: Call, request: Request, wanted: Object) -> tuple[int, Object]:
        manager = call.query.get("fieldManager")
        if not manager or request.subresource:
            raise kube_refusals.bad_request("fieldManager is required for apply patch, of an object")
        metadata = wanted.setdefault("metadata", {})
        if metadata.setdefault("name", request.name) != request.name:
            raise kube_refusals.bad_request("the name of the object does not match the name on the URL")
        return self.apply(request.resource, request.namespace, wanted, manager, dry_run=call.dry_run)

    def _delete(self, call: Call, request: Request) -> tuple[int, Object]:
        options = _options(call)
        gone = self.objects.delete(request.resource, request.namespace, request.name, options)
        if gone["metadata"].get("finalizers") or request.resource.kind == "Pod":
            return 200, gone
        details = {"name": request.name, "kind": request.resource.plural, "uid": gone["metadata"]["uid"]}
        return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _delete_all(self, call: Call, request: Request) -> tuple[int, Object]:
        status, found = self._list(call, request)
        for each in found["items"]:
            metadata = each["metadata"]
            self.objects.delete(request.resource, metadata.get("namespace", ""), metadata["name"], _options(call))
        return status, found


def _options(call: Call) -> Object:
    options: Object = {name: call.query[name] for name in ("propagationPolicy",) if name in call.query}
    if "gracePeriodSeconds" in call.query:
        options["gracePeriodSeconds"] = int(call.query["gracePeriodSeconds"])
    if call.dry_run:
        options["dryRun"] = ["All"]
    return options | (call.decoded() or {})


def _typed(body: Any, resource: Resource) -> Any:
    """A body that leaves out what the path says as well."""
    if isinstance(body, dict):
        body.setdefault("kind", resource.kind)
        body.setdefault("apiVersion", resource.api_version)
    return body


def _scale(found: Object) -> Object:
    metadata = found["metadata"]
    kept = {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion")}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": {"replicas": found["spec"]["replicas"]},
        "status": {"replicas": found.get("status", {}).get("replicas", 0)},
    }
