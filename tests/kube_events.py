"""Events: what controllers and nodes tell of an object, for ``kubectl describe`` and those who wonder."""

import itertools

from kube_objects import Object, Objects, now
from kube_resources import BY_KIND, of

_numbers = itertools.count()


def tell(objects: Objects, about: Object, reason: str, message: str, *, kind: str = "Normal") -> None:
    """Write down that something happened to an object."""
    metadata = about["metadata"]
    namespace = metadata.get("namespace", "default")
    resource = of(about)
    reference = {"kind": resource.kind if resource else "", "namespace": namespace, "name": metadata["name"]}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{next(_numbers):016x}"},
        "involvedObject": reference | {"uid": metadata["uid"]},
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "source": {"component": "tests"},
    }
    objects.create(BY_KIND["Event"], namespace, event)
