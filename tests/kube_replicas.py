"""The ReplicaSet controller of the tests: as many pods as are wanted, no more, and how many of them are of use."""

import secrets
from datetime import UTC, datetime, timedelta

from kube_events import tell
from kube_objects import Object, Objects, moment
from kube_owned import is_active, made_by, owner_of
from kube_resources import BY_KIND

_SET, _POD = BY_KIND["ReplicaSet"], BY_KIND["Pod"]


def look(objects: Objects) -> None:
    """Take every ReplicaSet a step on."""
    for found in objects.each(_SET):
        if "deletionTimestamp" not in found["metadata"]:
            _step(objects, found)


def _step(objects: Objects, found: Object) -> None:
    wanted = found["spec"]["replicas"]
    active = [each for each in made_by(objects, _POD, found) if is_active(each)]
    for _ in range(wanted - len(active)):
        _create(objects, found)
    for each in sorted(active, key=_worth)[: max(0, len(active) - wanted)]:
        objects.delete(_POD, each["metadata"]["namespace"], each["metadata"]["name"], {})
        tell(objects, found, "SuccessfulDelete", f"Deleted pod: {each['metadata']['name']}")
    active = [each for each in made_by(objects, _POD, found) if is_active(each)]
    least = found["spec"].get("minReadySeconds", 0)
    status = {
        "replicas": len(active),
        "fullyLabeledReplicas": len(active),
        "readyReplicas": sum(ready_since(each) is not None for each in active),
        "availableReplicas": sum(_is_available(each, least) for each in active),
        "observedGeneration": found["metadata"]["generation"],
    }
    objects.change(_SET, found, lambda live: live.update(status=status), status=True)


def ready_since(pod: Object) -> datetime | None:
    """Since when a pod has been ready; None while it is not."""
    for each in pod["status"].get("conditions", ()):
        if each["type"] == "Ready" and each["status"] == "True":
            return moment(each["lastTransitionTime"])
    return None


def _is_available(pod: Object, least: int) -> bool:
    since = ready_since(pod)
    return since is not None and since + timedelta(seconds=least) <= datetime.now(UTC)


def _worth(pod: Object) -> tuple[bool, float]:
    """Those that are not ready go first, then the youngest."""
    return ready_since(pod) is not None, -moment(pod["metadata"]["creationTimestamp"]).timestamp()


def _create(objects: Objects, found: Object) -> None:
    template, name = found["spec"]["template"], f"{found['metadata']['name']}-{secrets.token_hex(3)[:5]}"
    kept = {key: value for key, value in template["metadata"].items() if key in {"labels", "annotations"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": kept | {"name": name, "ownerReferences": [owner_of(found)]},
        "spec": template["spec"],
    }
    objects.create(_POD, found["metadata"]["namespace"], pod)
    tell(objects, found, "SuccessfulCreate", f"Created pod: {name}")
