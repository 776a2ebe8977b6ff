"""The Deployment controller of the tests: revisions as ReplicaSets, rolled out step by step, and how far that is.

The arithmetic is that of the real one: at most ``maxSurge`` pods too many, at most ``maxUnavailable`` too few, broken
old pods first. Not built: sharing out the replicas among revisions in proportion when a Deployment is scaled meanwhile
(the newest gets what is missing).
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from kube_events import tell
from kube_objects import Object, Objects, moment, now
from kube_owned import made_by, owner_of
from kube_quantities import share
from kube_resources import BY_KIND

REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
_NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
}
_DEPLOYMENT, _SET, _POD = BY_KIND["Deployment"], BY_KIND["ReplicaSet"], BY_KIND["Pod"]
_NEVER = 2**31 - 1


def look(objects: Objects) -> None:
    """Take every Deployment a step on."""
    for found in objects.each(_DEPLOYMENT):
        if "deletionTimestamp" not in found["metadata"]:
            _step(objects, found)


def _step(objects: Objects, found: Object) -> None:
    sets = made_by(objects, _SET, found)
    newest = next((each for each in sets if _template(each) == _template(found)), None)
    paused = found["spec"].get("paused", False)
    made = False
    if newest is None and not paused:
        newest, made = _new_set(objects, found, sets), True
    elif newest is not None and not paused:
        _number(objects, found, newest, sets)
    sets = made_by(objects, _SET, found)
    newest = next((each for each in sets if newest and each["metadata"]["uid"] == newest["metadata"]["uid"]), None)
    old = [each for each in sets if each is not newest]
    if paused:
        _scale_all(objects, found, newest, old)
    elif newest is not None:
        _roll(objects, found, newest, old)
    _say(objects, found, newest, sets, made=made)
    _forget(objects, found, old)


def _template(found: Object) -> Object:
    """A template without the mark by which the pods of revisions are told apart."""
    template: Object = json.loads(json.dumps(found["spec"]["template"]))
    template["metadata"].get("labels", {}).pop(HASH, None)
    return template


def _new_set(objects: Objects, found: Object, sets: Sequence[Object]) -> Object:
    name, template = found["metadata"]["name"], _template(found)
    mark = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
    template["metadata"].setdefault("labels", {})[HASH] = mark
    selector = json.loads(json.dumps(found["spec"]["selector"]))
    selector.setdefault("matchLabels", {})[HASH] = mark
    revision = str(_highest(sets) + 1)
    made = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{name}-{mark}",
            "labels": template["metadata"]["labels"],
            "annotations": _copied(found) | {REVISION: revision},
            "ownerReferences": [owner_of(found)],
        },
        "spec": {
            "replicas": 0,
            "selector": selector,
            "template": template,
            "minReadySeconds": found["spec"].get("minReadySeconds", 0),
        },
    }
    created = objects.create(_SET, found["metadata"]["namespace"], made)
    _annotate(objects, found, revision)
    return created


def _number(objects: Objects, found: Object, newest: Object, sets: Sequence[Object]) -> None:
    """Let the revision that is wanted have the highest number, and what its Deployment is annotated with."""
    highest = _highest([each for each in sets if each is not newest])
    number = _revision(newest)
    if number <= highest:
        number = highest + 1

    def change(live: Object) -> None:
        kept = {key: value for key, value in live["metadata"].get("annotations", {}).items() if key in _NOT_COPIED}
        live["metadata"]["annotations"] = kept | _copied(found) | {REVISION: str(number)}
        live["spec"]["minReadySeconds"] = found["spec"].get("minReadySeconds", 0)

    objects.change(_SET, newest, change)
    _annotate(objects, found, str(number))


def _annotate(objects: Objects, found: Object, revision: str) -> None:
    def change(live: Object) -> None:
        live["metadata"].setdefault("annotations", {})[REVISION] = revision

    objects.change(_DEPLOYMENT, found, change)


def _copied(found: Object) -> dict[str, str]:
    annotations = found["metadata"].get("annotations", {})
    return {key: value for key, value in annotations.items() if key not in _NOT_COPIED}


def _revision(found: Object) -> int:
    return int(found["metadata"].get("annotations", {}).get(REVISION, 0))


def _highest(sets: Sequence[Object]) -> int:
    return max(map(_revision, sets), default=0)


def _roll(objects: Objects, found: Object, newest: Object, old: list[Object]) -> None:
    spec = found["spec"]
    wanted = spec["replicas"]
    if spec["strategy"]["type"] == "Recreate":
        for each in old:
            _scale(objects, found, each, 0)
        if not any(made_by(objects, _POD, each) for each in old):
            _scale(objects, found, newest, wanted)
        return
    surge, lacking = limits(spec)
    total = sum(each["spec"]["replicas"] for each in [newest, *old])
    have = newest["spec"]["replicas"]
    if have > wanted:
        _scale(objects, found, newest, wanted)
    elif have < wanted:
        _scale(objects, found, newest, have + max(0, min(wanted + surge - total, wanted - have)))
    _shrink(objects, found, newest, old, wanted - lacking)


def limits(spec: Object) -> tuple[int, int]:
    """How many pods too many there may be, and how many too few."""
    rolling, wanted = spec["strategy"]["rollingUpdate"], spec["replicas"]
    surge = share(rolling["maxSurge"], wanted, up=True)
    lacking = share(rolling["maxUnavailable"], wanted, up=False)
    return (surge, lacking) if surge or lacking else (surge, 1)


def _shrink(objects: Objects, found: Object, newest: Object, old: list[Object], least: int) -> None:
    """Take pods from old revisions, broken ones first, as long as ``least`` of all are available."""
    total = sum(each["spec"]["replicas"] for each in [newest, *old])
    spare = total - least - (newest["spec"]["replicas"] - _available(newest))
    sizes = {each["metadata"]["uid"]: each["spec"]["replicas"] for each in old}
    for each in sorted(old, key=_revision):
        broken = min(max(0, spare), each["spec"]["replicas"] - min(_available(each), each["spec"]["replicas"]))
        sizes[each["metadata"]["uid"]] -= broken
        spare -= broken
    left = _available(newest) + sum(map(_available, old)) - least
    for each in sorted(old, key=_revision):
        healthy = min(max(0, left), max(0, spare), sizes[each["metadata"]["uid"]])
        sizes[each["metadata"]["uid"]] -= healthy
        left, spare = left - healthy, spare - healthy
    for each in old:
        _scale(objects, found, each, sizes[each["metadata"]["uid"]])


def _scale_all(objects: Objects, found: Object, newest: Object | None, old: Sequence[Object]) -> None:
    """A paused Deployment rolls nothing out, but is still scaled."""
    live = [each for each in ([newest] if newest else []) + list(old) if each["spec"]["replicas"]]
    if len(live) <= 1 and (live or newest):
        _scale(objects, found, (live or [newest])[0], found["spec"]["replicas"])


def _scale(objects: Objects, found: Object, each: Object | None, replicas: int) -> None:
    if each is None or each["spec"]["replicas"] == replicas:
        return
    direction = "up" if replicas > each["spec"]["replicas"] else "down"
    message = f"Scaled {direction} replica set {each['metadata']['name']} from {each['spec']['replicas']} to {replicas}"
    each["spec"]["replicas"] = replicas

    def change(live: Object) -> None:
        live["spec"]["replicas"] = replicas

    objects.change(_SET, each, change)
    tell(objects, found, "ScalingReplicaSet", message)


def _available(each: Object) -> int:
    return int(each.get("status", {}).get("availableReplicas", 0))


def _say(objects: Objects, found: Object, newest: Object | None, sets: Sequence[Object], *, made: bool) -> None:
    """Make the Deployment's status true."""
    spec = found["spec"]

    def total(name: str) -> int:
        return sum(int(each.get("status", {}).get(name, 0)) for each in sets)

    available = total("availableReplicas")
    status = {
        "observedGeneration": found["metadata"]["generation"],
        "replicas": total("replicas"),
        "updatedReplicas": int((newest or {}).get("status", {}).get("replicas", 0)),
        "readyReplicas": total("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, sum(each["spec"]["replicas"] for each in sets) - available),
    }
    least = spec["replicas"] - (limits(spec)[1] if spec["strategy"]["type"] == "RollingUpdate" else 0)
    complete = status["updatedReplicas"] == status["replicas"] == available == spec["replicas"]

    def change(live: Object) -> None:
        before = live.get("status", {})
        moved = any(before.get(name, 0) != value for name, value in status.items() if name.endswith("Replicas"))
        conditions = {each["type"]: each for each in before.get("conditions", ())}
        told = _progress(found, newest, conditions.get("Progressing"), made=made, moved=moved, complete=complete)
        _put(conditions, "Available", *_availability(available, least))
        if told:
            _put(conditions, "Progressing", *told, renew=moved or made)
        live["status"] = status | {"conditions": list(conditions.values())}

    objects.change(_DEPLOYMENT, found, change, status=True)


def _availability(available: int, least: int) -> tuple[str, str, str]:
    if available >= least:
        return "True", "MinimumReplicasAvailable", "Deployment has minimum availability."
    return "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."


def _progress(
    found: Object, newest: Object | None, before: Object | None, *, made: bool, moved: bool, complete: bool
) -> tuple[str, str, str] | None:
    """The condition Progressing: status, reason and message; None while it stays as it is."""
    spec, name = found["spec"], newest["metadata"]["name"] if newest else ""
    if spec["progressDeadlineSeconds"] == _NEVER:
        return None
    if spec.get("paused"):
        return "Unknown", "DeploymentPaused", "Deployment is paused"
    return _moving(name, spec, before, made=made, moved=moved, complete=complete)


def _moving(
    name: str, spec: Object, before: Object | None, *, made: bool, moved: bool, complete: bool
) -> tuple[str, str, str] | None:
    if made:
        return "True", "NewReplicaSetCreated", f'Created new replica set "{name}"'
    if complete:
        return "True", "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.'
    if before is None or before["reason"] in {"NewReplicaSetAvailable", "DeploymentPaused"}:
        return "True", "FoundNewReplicaSet", f'Found new replica set "{name}"'
    if moved:
        return "True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.'
    deadline = moment(before["lastUpdateTime"]) + timedelta(seconds=spec["progressDeadlineSeconds"])
    if datetime.now(UTC) > deadline:
        return "False", "ProgressDeadlineExceeded", f'ReplicaSet "{name}" has timed out progressing.'
    return None


def _put(
    conditions: dict[str, Object], kind: str, status: str, reason: str, message: str, *, renew: bool = False
) -> None:
    before = conditions.get(kind)
    if before and (before["status"], before["reason"], before["message"]) == (status, reason, message) and not renew:
        return
    since = before["lastTransitionTime"] if before and before["status"] == status else now()
    conditions[kind] = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastUpdateTime": now(),
        "lastTransitionTime": since,
    }


def _forget(objects: Objects, found: Object, old: Sequence[Object]) -> None:
    """Remove revisions of long ago."""
    ended = [each for each in old if not each["spec"]["replicas"] and not each.get("status", {}).get("replicas")]
    ended.sort(key=_revision)
    for each in ended[: max(0, len(ended) - found["spec"]["revisionHistoryLimit"])]:
        objects.delete(_SET, each["metadata"]["namespace"], each["metadata"]["name"], {})
