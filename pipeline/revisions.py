"""What a Deployment, its revisions and its pods say, and how one is pinned to a model version: values in, values out.

- **The pin is the variable** ``SAFELIGHT_SERVING_VERSION`` of the container ``serving`` in the pod template. A template
  is a revision to Kubernetes, so each model version is one, and ``kubectl rollout undo`` is a model rollback.
- **Undone is what the former revision was, to the letter**, so that Kubernetes finds its ReplicaSet again and starts no
  pod that still runs. Where somebody else changed more than the pin meanwhile, the pin alone goes back.
- Objects are the API's own JSON, which newer and older clusters fill more or less: what is not needed is not read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.settings import SERVING_PREFIX

Object = Mapping[str, Any]
"""An object of the API, as JSON."""
CONTAINER = "serving"
VERSION, ALIAS, MODEL, PORT = (SERVING_PREFIX + name for name in ("VERSION", "ALIAS", "MODEL", "PORT"))
CAUSE = "kubernetes.io/change-cause"
REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
CANNOT_START = frozenset({
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
})  # fmt: skip
"""Reasons for which a node does not start a container, in its own words."""
PATIENCE_S = 15.0
"""For so long a container may not start before that is believed: a registry may be away, a Secret on its way."""
LAST_RESTART = 2
"""Restarts after which a container that ends again and again is given up."""
SAID = 300
"""Characters of a node's message that are quoted."""


@dataclass(frozen=True, slots=True)
class Former:
    """What a Deployment goes back to.

    Attributes:
        template: of its pods.
        cause: what was said to be the cause of that revision, if anything.
    """

    template: Object
    cause: str | None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not come up; after ``patience_s`` waiting does not help any more, None: it may."""

    what: str
    patience_s: float | None


def container(template: Object) -> Object | None:
    """The inference server's container; None where there is none."""
    return next((each for each in template["spec"]["containers"] if each["name"] == CONTAINER), None)


def variable(template: Object, name: str) -> str | None:
    """A variable of the inference server's container, where its value is written down."""
    found = (container(template) or {}).get("env") or ()
    return next((each.get("value") for each in found if each["name"] == name), None)


def pin(template: Object) -> str | None:
    """The version that the pods answer with; None where they follow an alias."""
    return variable(template, VERSION)


def port(template: Object) -> int:
    """At which the pods answer."""
    ports = (container(template) or {}).get("ports") or ()
    named = [each["containerPort"] for each in ports if each.get("name") == "http"]
    return int([*named, *(each["containerPort"] for each in ports), variable(template, PORT) or 8080][0])


def pinning(deployment: Object, version: str | None, cause: str | None) -> dict[str, Any]:
    """The strategic merge patch that pins a Deployment as it was read; None: that takes the pin away.

    An alias beside a pinned version is refused by the server, hence it goes.
    """
    wanted: dict[str, Any] = {"name": VERSION, "$patch": "delete"}
    if version is not None:
        wanted = {"name": VERSION, "value": version, "valueFrom": None}
    env = [wanted]
    if version is not None and _has(deployment["spec"]["template"], ALIAS):
        env.append({"name": ALIAS, "$patch": "delete"})
    return {
        "metadata": {"resourceVersion": _read_at(deployment), "annotations": {CAUSE: cause}},
        "spec": {"template": {"spec": {"containers": [{"name": CONTAINER, "env": env}]}}},
    }


def undoing(deployment: Object, former: Former) -> dict[str, Any] | list[dict[str, Any]]:
    """The patch by which a Deployment, as it was read, goes back: a JSON patch, or else a strategic one."""
    if _unpinned(deployment["spec"]["template"]) != _unpinned(former.template):
        return pinning(deployment, pin(former.template), former.cause)
    annotations = {**deployment["metadata"].get("annotations", {}), CAUSE: former.cause}
    kept = {name: value for name, value in annotations.items() if value is not None}
    return [
        {"op": "replace", "path": "/metadata/resourceVersion", "value": _read_at(deployment)},
        {"op": "add", "path": "/metadata/annotations", "value": kept},
        {"op": "replace", "path": "/spec/template", "value": former.template},
    ]


def of_deployment(deployment: Object) -> Former:
    """What a Deployment would go back to if it were changed now."""
    return Former(deployment["spec"]["template"], deployment["metadata"].get("annotations", {}).get(CAUSE))


def before(deployment: Object, sets: Iterable[Object], version: str) -> Former | None:
    """The newest revision of a Deployment that is not of ``version``; None if no such is remembered."""
    uid = deployment["metadata"]["uid"]
    owned = [each for each in sets if any(one["uid"] == uid for one in each["metadata"].get("ownerReferences") or ())]
    others = [each for each in owned if pin(each["spec"]["template"]) != version]
    if not others:
        return None
    newest = max(others, key=lambda each: int(each["metadata"].get("annotations", {}).get(REVISION, 0)))
    return Former(_unmarked(newest["spec"]["template"]), newest["metadata"].get("annotations", {}).get(CAUSE))


def is_rolled_out(deployment: Object) -> bool:
    """Whether all replicas that are wanted are those of the template, and no other is left."""
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status") or {}
    seen: int = status.get("observedGeneration", 0)
    counts = {status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas", "readyReplicas")}
    return seen >= deployment["metadata"]["generation"] and counts == {wanted}


def timed_out(deployment: Object) -> bool:
    """Whether Kubernetes has given this rollout up."""
    status = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return False
    return any(
        each["type"] == "Progressing" and each["status"] == "False" and each.get("reason") == "ProgressDeadlineExceeded"
        for each in status.get("conditions") or ()
    )


def counts(deployment: Object) -> tuple[Any, ...]:
    """What changes while a rollout comes forward."""
    status = deployment.get("status") or {}
    names = ("observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    return (deployment["spec"].get("replicas", 1), *(status.get(name, 0) for name in names))


def of_version(pods: Iterable[Object], version: str | None) -> list[Object]:
    """The pods that answer, or will answer, with a version, and are not about to go."""
    return [
        each
        for each in pods
        if "deletionTimestamp" not in each["metadata"]
        and container(each) is not None
        and pin(each) == version
        and each.get("status", {}).get("phase") not in {"Succeeded", "Failed"}
    ]


def addresses(pods: Iterable[Object]) -> list[str]:
    """Where those of the pods answer that run."""
    return sorted(each["status"]["podIP"] for each in pods if _runs(each) and each["status"].get("podIP"))


def troubles(pods: Iterable[Object]) -> Iterator[Trouble]:
    """Why pods do not come up, in Kubernetes' own words."""
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        for each in status.get("conditions") or ():
            if each["type"] == "PodScheduled" and each["status"] == "False":
                yield Trouble(f"no node takes pod {name}: {_quoted(each)}", None)
        for each in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            waiting = each.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in CANNOT_START:
                yield Trouble(f"pod {name} does not start, {waiting['reason']}: {_quoted(waiting)}", PATIENCE_S)
            elif waiting.get("reason") == "CrashLoopBackOff":
                yield _crashes(name, each)


def hindrance(deployment: Object, pods: Sequence[Object]) -> str:
    """What a rollout waits for, as a clause."""
    if deployment["spec"].get("paused"):
        return "it is paused (`kubectl rollout resume` lets it go on)"
    found = next(troubles(pods), None)
    if found:
        return found.what
    status = deployment.get("status") or {}
    ready = sum(_is_ready(each) for each in pods)
    left = max(0, status.get("replicas", 0) - status.get("updatedReplicas", 0))
    old = f", {left} of the former revision are left" if left else ""
    return f"{ready} of {deployment['spec'].get('replicas', 1)} replicas of the version are ready{old}"


def pinned_by(version: str, model: str) -> str:
    """What is said to be the cause of a revision."""
    return f"safelight: model {model} version {version}, {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _crashes(name: str, status: Object) -> Trouble:
    ended = status.get("lastState", {}).get("terminated") or {}
    restarts = status.get("restartCount", 0)
    said = f"; the last that it said: {_quoted(ended)}" if ended.get("message") else ""
    how = f"{ended.get('reason', 'Error')}, status {ended.get('exitCode', 'unknown')}"
    what = f"container {status['name']} of pod {name} ends again and again ({how}, {restarts} times){said}"
    return Trouble(what, 0.0 if restarts >= LAST_RESTART else None)


def _quoted(found: Object) -> str:
    lines = [line.strip() for line in str(found.get("message") or "").splitlines() if line.strip()]
    return (lines[-1] if lines else str(found.get("reason", "for no stated reason")))[-SAID:].rstrip(".")


def _runs(pod: Object) -> bool:
    found = [each for each in pod.get("status", {}).get("containerStatuses") or () if each["name"] == CONTAINER]
    return any("running" in each.get("state", {}) for each in found)


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _has(template: Object, name: str) -> bool:
    return any(each["name"] == name for each in (container(template) or {}).get("env") or ())


def _read_at(deployment: Object) -> str:
    return str(deployment["metadata"]["resourceVersion"])


def _unpinned(template: Object) -> dict[str, Any]:
    """A template without what says which version it is of."""
    containers = [
        {**each, "env": [one for one in each.get("env") or () if one["name"] not in {VERSION, ALIAS}]}
        if each["name"] == CONTAINER
        else each
        for each in template["spec"]["containers"]
    ]
    return {**_unmarked(template), "spec": {**template["spec"], "containers": containers}}


def _unmarked(template: Object) -> dict[str, Any]:
    """A ReplicaSet's template without the label by which its pods are told from those of others."""
    metadata = template.get("metadata") or {}
    labels = {name: value for name, value in (metadata.get("labels") or {}).items() if name != HASH}
    return {**template, "metadata": {**metadata, "labels": labels}}
