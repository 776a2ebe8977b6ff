"""What a Kubernetes API refuses to store: unknown fields, wrong types, and objects that contradict themselves.

Fields and types are those of the published schemas, always strictly. Of the rules beyond them those are here that
people who write Deployments, Jobs and Services run into.
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
from kube_quantities import exceeds
from kube_refusals import bad_request, invalid, undecodable
from kube_resources import Resource
from kube_schemas import validator
from kube_selectors import selects

Cause = tuple[str, str]
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_CONFIG_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")


def refuse_undecodable(resource: Resource, found: Any) -> None:
    """Raise Refused where fields are not those of the schema, or not of its types.

    Raises:
        Refused: 400 for an unknown field or a wrong type, 422 for what is missing or not one of the allowed values.
    """
    if not isinstance(found, dict):
        raise bad_request("the body is not an object")
    if (found.get("kind"), found.get("apiVersion")) != (resource.kind, resource.api_version):
        raise bad_request(f"the object provided is {found.get('apiVersion')}/{found.get('kind')}, not {resource.kind}")
    errors = sorted(validator(resource).iter_errors(found), key=lambda error: [str(each) for each in error.path])
    missing = []
    for error in errors:
        path = _path(error)
        if error.validator == "additionalProperties":
            raise undecodable(resource, f"strict decoding error: {_unknown(error, path)}")
        if error.validator == "required":
            missing += [
                (f"{path}.{name}".lstrip("."), "Required value")
                for name in error.validator_value
                if name not in error.instance
            ]
        elif error.validator == "enum":
            missing.append((path, f"Unsupported value: {error.instance!r}"))
        else:
            raise undecodable(resource, f"json: cannot unmarshal {error.instance!r} into {path}: {error.message}")
    if missing:
        raise invalid(resource, found.get("metadata", {}).get("name", ""), missing)


def refuse_contradictory(resource: Resource, new: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Raise Refused (422) where an object, with its defaults, cannot be, or may not change as it does."""
    causes = [*_metadata(resource, new), *_RULES.get(resource.kind, _none)(new, old)]
    if causes:
        raise invalid(resource, new["metadata"].get("name", ""), causes)


def _path(error: jsonschema.ValidationError) -> str:
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in error.absolute_path).lstrip(".")


def _unknown(error: jsonschema.ValidationError, path: str) -> str:
    extra = sorted(set(error.instance) - set(error.schema.get("properties", {})))
    return ", ".join(f'unknown field "{path}.{name}"'.replace('".', '"') for name in extra)


def _none(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    del new, old
    yield from ()


def _metadata(resource: Resource, new: dict[str, Any]) -> Iterator[Cause]:
    found = new["metadata"]
    name = found.get("name", "")
    longest = 63 if resource.kind in {"Service", "Namespace", "Job"} else 253
    rbac = resource.group.startswith("rbac.")
    if not rbac and (not _SUBDOMAIN.match(name) or len(name) > longest):
        yield (
            "metadata.name",
            f'Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of a-z, 0-9, - or .',
        )
    yield from _labels("metadata.labels", found.get("labels") or {})
    for key in found.get("annotations") or {}:
        if not _LABEL_KEY.match(key):
            yield "metadata.annotations", f'Invalid value: "{key}"'


def _labels(field: str, found: Mapping[str, str]) -> Iterator[Cause]:
    for key, value in found.items():
        if not _LABEL_KEY.match(key) or len(key.rpartition("/")[2]) > 63:
            yield field, f'Invalid value: "{key}"'
        if not _LABEL_VALUE.match(value) or len(value) > 63:
            yield field, f'Invalid value: "{value}": a valid label must be an empty string or consist of alphanumeric'


def _deployment(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    spec = new["spec"]
    yield from _selecting(new, old)
    yield from _pod("spec.template.spec", spec["template"].get("spec") or {})
    if spec["template"].get("spec", {}).get("restartPolicy") != "Always":
        yield "spec.template.spec.restartPolicy", "Unsupported value: supported values: Always"
    rolling = spec.get("strategy", {}).get("rollingUpdate")
    if rolling and {str(rolling[each]).rstrip("%") for each in ("maxSurge", "maxUnavailable")} == {"0"}:
        yield "spec.strategy.rollingUpdate.maxUnavailable", "Invalid value: may not be 0 when `maxSurge` is 0"
    if rolling and spec["strategy"]["type"] == "Recreate":
        yield "spec.strategy.rollingUpdate", "Forbidden: may not be specified when strategy `type` is 'Recreate'"
    if spec.get("minReadySeconds", 0) >= spec.get("progressDeadlineSeconds", 600):
        yield "spec.progressDeadlineSeconds", "Invalid value: must be greater than minReadySeconds"


def _selecting(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    spec = new["spec"]
    labels = spec["template"].get("metadata", {}).get("labels") or {}
    if not selects(spec.get("selector"), labels):
        yield "spec.template.metadata.labels", f"Invalid value: {labels}: `selector` does not match template `labels`"
    yield from _labels("spec.template.metadata.labels", labels)
    if old and old["spec"].get("selector") != spec.get("selector"):
        yield "spec.selector", f"Invalid value: {spec.get('selector')}: field is immutable"


def _job(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    spec = new["spec"]
    pod = spec["template"].get("spec") or {}
    yield from _pod("spec.template.spec", pod)
    if pod.get("restartPolicy") not in {"Never", "OnFailure"}:
        yield "spec.template.spec.restartPolicy", 'Required value: valid values: "OnFailure", "Never"'
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        yield "spec.completions", "Required value: when completion mode is Indexed"
    for name in ("template", "selector", "completionMode", "completions"):
        if old and old["spec"].get(name) != spec.get(name):
            yield f"spec.{name}", "Invalid value: field is immutable"


def _pod_object(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    yield from _pod("spec", new["spec"])
    if old and _without_images(old["spec"]) != _without_images(new["spec"]):
        yield "spec", "Forbidden: pod updates may not change fields other than `spec.containers[*].image`"


def _without_images(spec: dict[str, Any]) -> dict[str, Any]:
    changeable = {"nodeName", "activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations"}
    kept = {name: value for name, value in spec.items() if name not in changeable}
    return kept | {"containers": [{**each, "image": ""} for each in spec["containers"]]}


def _pod(field: str, spec: dict[str, Any]) -> Iterator[Cause]:
    volumes = [each.get("name") for each in spec.get("volumes") or ()]
    containers = [("initContainers", each) for each in enumerate(spec.get("initContainers") or ())]
    containers += [("containers", each) for each in enumerate(spec.get("containers") or ())]
    if not spec.get("containers"):
        yield f"{field}.containers", "Required value"
    yield from _twice(f"{field}.volumes", volumes)
    yield from _twice(f"{field}.containers", [each.get("name") for _, (_, each) in containers])
    for kind, (number, each) in containers:
        yield from _container(f"{field}.{kind}[{number}]", each, volumes)


def _container(field: str, found: dict[str, Any], volumes: list[str]) -> Iterator[Cause]:
    if not found.get("image"):
        yield f"{field}.image", "Required value"
    for number, each in enumerate(found.get("volumeMounts") or ()):
        if each["name"] not in volumes:
            yield f"{field}.volumeMounts[{number}].name", f'Not found: "{each["name"]}"'
    yield from _twice(f"{field}.volumeMounts", [each["mountPath"] for each in found.get("volumeMounts") or ()])
    yield from _twice(f"{field}.ports", [each["name"] for each in found.get("ports") or () if each.get("name")])
    for number, each in enumerate(found.get("env") or ()):
        if each.get("value") and each.get("valueFrom"):
            yield f"{field}.env[{number}].valueFrom", "Invalid value: may not be specified when `value` is not empty"
    for name, limit in (found.get("resources", {}).get("limits") or {}).items():
        request = (found["resources"].get("requests") or {}).get(name)
        if request is not None and exceeds(request, limit):
            yield (
                f"{field}.resources.requests",
                f'Invalid value: "{request}": must be less than or equal to {name} limit',
            )
    for name in _PROBES:
        yield from _probe(f"{field}.{name}", found.get(name), [each.get("name") for each in found.get("ports") or ()])


def _probe(field: str, probe: dict[str, Any] | None, ports: list[str]) -> Iterator[Cause]:
    if probe is None:
        return
    handlers = [each for each in _HANDLERS if each in probe]
    if len(handlers) != 1:
        yield field, "Required value: must specify exactly one handler type"
        return
    port = (probe[handlers[0]] or {}).get("port")
    if isinstance(port, str) and port not in ports:
        yield f"{field}.{handlers[0]}.port", f'Not found: "{port}"'
    if not field.endswith("readinessProbe") and probe.get("successThreshold", 1) != 1:
        yield f"{field}.successThreshold", "Invalid value: must be 1"


def _twice(field: str, values: list[Any]) -> Iterator[Cause]:
    for value, count in Counter(values).items():
        if count > 1:
            yield field, f'Duplicate value: "{value}"'


def _service(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    ports = new["spec"].get("ports") or []
    if len(ports) > 1 and not all(each.get("name") for each in ports):
        yield "spec.ports.name", "Required value"
    if not ports and new["spec"].get("clusterIP") != "None":
        yield "spec.ports", "Required value"
    yield from _twice("spec.ports", [each["name"] for each in ports if each.get("name")])
    if old and old["spec"].get("clusterIP") != new["spec"].get("clusterIP"):
        yield "spec.clusterIPs[0]", "Invalid value: may not change once set"


def _config(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    for key in new.get("data") or {}:
        if not _CONFIG_KEY.match(key):
            yield f"data[{key}]", "Invalid value: a valid config key must consist of alphanumeric characters, -, _ or ."
    if old and old.get("immutable") and old.get("data") != new.get("data"):
        yield "data", "Forbidden: field is immutable when `immutable` is set"


def _secret(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    yield from _config(new, old)
    for key, value in (new.get("data") or {}).items():
        try:
            base64.b64decode(value.replace("\n", ""), validate=True)
        except binascii.Error:
            yield f"data[{key}]", "Invalid value: illegal base64 data"
    if old and old.get("type") != new.get("type"):
        yield "type", "Invalid value: field is immutable"


def _binding(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Cause]:
    if old and old["roleRef"] != new["roleRef"]:
        yield "roleRef", "Invalid value: cannot change roleRef"


_RULES = {
    "Deployment": _deployment,
    "ReplicaSet": _selecting,
    "Job": _job,
    "Pod": _pod_object,
    "Service": _service,
    "ConfigMap": _config,
    "Secret": _secret,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
}
