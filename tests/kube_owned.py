"""Who owns what: what a controller made, and what goes when its owner has gone."""

from kube_objects import FOREGROUND, ORPHAN, Object, Objects
from kube_refusals import Refused
from kube_resources import RESOURCES, Resource


def owner_of(owner: Object) -> Object:
    """A reference to an owner that controls."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def made_by(objects: Objects, resource: Resource, owner: Object) -> list[Object]:
    """All objects of a kind that an owner controls."""
    uid, namespace = owner["metadata"]["uid"], owner["metadata"]["namespace"]
    return [each for each in objects.select(resource, namespace) if uid in _owners(each)]


def is_active(pod: Object) -> bool:
    """Whether a pod has neither ended nor is about to go."""
    return pod["status"]["phase"] not in {"Succeeded", "Failed"} and "deletionTimestamp" not in pod["metadata"]


def collect_garbage(objects: Objects) -> None:
    """Remove what lost its owner, and let owners go that wait for what they own."""
    every = [(resource, each) for resource in RESOURCES if resource.kind != "Event" for each in objects.each(resource)]
    alive = {each["metadata"]["uid"] for _, each in every}
    leaving = {each["metadata"]["uid"] for _, each in every if FOREGROUND in each["metadata"].get("finalizers", ())}
    left = {each["metadata"]["uid"] for _, each in every if ORPHAN in each["metadata"].get("finalizers", ())}
    for resource, each in every:
        owners = _owners(each)
        if owners & left:
            objects.change(resource, each, lambda found: _disown(found, left))
        elif owners and not (owners - leaving) & alive:
            _remove(objects, resource, each)
    owned = {uid for _, each in every for uid in _owners(each)}
    for resource, each in every:
        uid = each["metadata"]["uid"]
        if uid in left or (uid in leaving and uid not in owned):
            objects.change(resource, each, _release)
    _empty_namespaces(objects, every)


def _empty_namespaces(objects: Objects, every: list[tuple[Resource, Object]]) -> None:
    """Remove what was in a namespace that is gone."""
    there = {each["metadata"]["name"] for resource, each in every if resource.kind == "Namespace"}
    for resource, each in every:
        if each["metadata"].get("namespace", next(iter(there), "")) not in there:
            _remove(objects, resource, each)


def _remove(objects: Objects, resource: Resource, each: Object) -> None:
    metadata = each["metadata"]
    if "deletionTimestamp" in metadata:
        return
    options = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
    try:
        objects.delete(resource, metadata.get("namespace", ""), metadata["name"], options)
    except Refused:
        return  # gone meanwhile


def _owners(each: Object) -> set[str]:
    return {reference["uid"] for reference in each["metadata"].get("ownerReferences", ())}


def _disown(found: Object, owners: set[str]) -> None:
    kept = [each for each in found["metadata"].get("ownerReferences", ()) if each["uid"] not in owners]
    found["metadata"]["ownerReferences"] = kept
    if not kept:
        del found["metadata"]["ownerReferences"]


def _release(found: Object) -> None:
    kept = [each for each in found["metadata"].get("finalizers", ()) if each not in {FOREGROUND, ORPHAN}]
    if kept:
        found["metadata"]["finalizers"] = kept
    else:
        found["metadata"].pop("finalizers", None)
