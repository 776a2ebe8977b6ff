"""The objects of the Kubernetes API of the tests: what etcd and the API's registry do together.

Every write, also a controller's, is validated, gets a new resourceVersion, and is remembered for those who watch. A
write that says which version it was made from is refused when that is not the newest any more.
"""

import copy
import secrets
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import kube_defaults
import kube_refusals
import kube_selectors
import kube_validation
from kube_resources import BY_KIND, Resource

Object = dict[str, Any]
REMEMBERED = 5000
"""Changes that a watch can go back by; after that it is told that it is too late (410)."""
FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_KEPT = (
    "uid",
    "creationTimestamp",
    "namespace",
    "name",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)


@dataclass(frozen=True, slots=True)
class Change:
    """A write; ``old`` is None of what was created, ``new`` of what was removed."""

    version: int
    resource: Resource
    old: Object | None
    new: Object | None

    def told(self, wanted: Callable[[Object], bool]) -> tuple[str, Object] | None:
        """As a watch tells it that is interested in some objects only."""
        before = self.old is not None and wanted(self.old)
        if self.new is not None and wanted(self.new):
            return ("MODIFIED" if before else "ADDED"), self.new
        if before and self.old is not None:
            gone = self.new or self.old
            return "DELETED", gone | {"metadata": gone["metadata"] | {"resourceVersion": str(self.version)}}
        return None


def now() -> str:
    """The time, as objects carry it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """The other way round."""
    return datetime.fromisoformat(text)


class Objects:
    """All objects; ``changed`` is notified after every write, and is the lock."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 1000
        self.history: deque[Change] = deque(maxlen=REMEMBERED)
        self._found: dict[tuple[str, str, str], Object] = {}

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """An object.

        Raises:
            Refused: 404.
        """
        with self.changed:
            found = self._found.get((resource.plural, namespace, name))
            if found is None:
                raise kube_refusals.not_found(resource, name)
            return copy.deepcopy(found)

    def select(self, resource: Resource, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        """Objects of a kind, of one namespace or of all."""
        wanted = chooser(namespace, labels, fields)
        return [each for each in self.each(resource) if wanted(each)]

    def each(self, resource: Resource) -> Iterator[Object]:
        """Copies of all objects of a kind, by name."""
        with self.changed:
            found = sorted(key for key in self._found if key[0] == resource.plural)
            return iter([copy.deepcopy(self._found[key]) for key in found])

    def create(self, resource: Resource, namespace: str, new: Object, *, dry_run: bool = False) -> Object:
        """Store a new object.

        Raises:
            Refused: it is not valid, or there is one.
        """
        kube_validation.refuse_undecodable(resource, new)
        made = kube_defaults.without_nulls(copy.deepcopy(new))
        with self.changed:
            self._begin(resource, namespace, made)
            kube_defaults.fill(made)
            kube_validation.refuse_contradictory(resource, made, None)
            name = made["metadata"]["name"]
            if (resource.plural, namespace, name) in self._found:
                raise kube_refusals.already_exists(resource, name)
            return made if dry_run else self._put(resource, None, made)

    def update(
        self, resource: Resource, namespace: str, name: str, new: Object, *, status: bool = False, dry_run: bool = False
    ) -> Object:
        """Replace an object, or its status alone.

        Raises:
            Refused: it is not valid, there is none, or it has changed since ``new`` was read.
        """
        kube_validation.refuse_undecodable(resource, new)
        made = kube_defaults.without_nulls(copy.deepcopy(new))
        with self.changed:
            live = self.get(resource, namespace, name)
            _refuse_outdated(resource, name, made, live)
            merged = live | {"status": made.get("status", {})} if status else _kept(resource, made, live)
            kube_defaults.fill(merged)
            kube_validation.refuse_contradictory(resource, merged, live)
            if merged.get("spec") != live.get("spec") and "generation" in live["metadata"]:
                merged["metadata"]["generation"] = live["metadata"]["generation"] + 1
            if dry_run or merged == live:
                return merged
            if _may_go(resource, merged):
                return self._put(resource, live, None)
            return self._put(resource, live, merged)

    def change(
        self, resource: Resource, found: Object, how: Callable[[Object], None], *, status: bool = False
    ) -> Object | None:
        """Let ``how`` change an object that may have changed meanwhile; None if it is gone. For controllers."""
        with self.changed:
            metadata = found["metadata"]
            live = self._found.get((resource.plural, metadata.get("namespace", ""), metadata["name"]))
            if live is None or live["metadata"]["uid"] != metadata["uid"]:
                return None
            new = copy.deepcopy(live)
            how(new)
            if kube_defaults.without_nulls(new) == live:
                return new
            return self.update(resource, metadata.get("namespace", ""), metadata["name"], new, status=status)

    def delete(self, resource: Resource, namespace: str, name: str, options: Object) -> Object:
        """Remove an object, or mark it as one that is to go once those who look after it are done.

        Raises:
            Refused: there is none, or not the one that is meant.
        """
        with self.changed:
            live = self.get(resource, namespace, name)
            wanted = options.get("preconditions") or {}
            if wanted.get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
                raise kube_refusals.conflict(resource, name, "the UID in the precondition does not match")
            if (
                wanted.get("resourceVersion", live["metadata"]["resourceVersion"])
                != live["metadata"]["resourceVersion"]
            ):
                raise kube_refusals.conflict(resource, name, "the ResourceVersion in the precondition does not match")
            if options.get("dryRun"):
                return live
            marked = _marked(resource, live, options)
            self._put(resource, live, None if _may_go(resource, marked) else marked)
            return marked

    def since(self, version: int) -> list[Change]:
        """What was written after a version.

        Raises:
            Refused: 410, nobody remembers that far back.
        """
        with self.changed:
            if self.history and version < self.history[0].version - 1 and len(self.history) == REMEMBERED:
                raise kube_refusals.expired()
            return [each for each in self.history if each.version > version]

    def forget(self) -> None:
        """Forget the history, as a real API does after five minutes: who watches from before is too late."""
        with self.changed:
            self.history = deque([Change(self.version, BY_KIND["Event"], None, None)] * REMEMBERED, maxlen=REMEMBERED)

    def _begin(self, resource: Resource, namespace: str, made: Object) -> None:
        metadata = made.setdefault("metadata", {})
        if "name" not in metadata and "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        if "name" not in metadata:
            raise kube_refusals.invalid(resource, "", [("metadata.name", "Required value: name or generateName")])
        if resource.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise kube_refusals.bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            self.get(BY_KIND["Namespace"], "", namespace)
        for name in ("deletionTimestamp", "managedFields", "resourceVersion", "selfLink"):
            metadata.pop(name, None)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if "spec" in made:
            metadata["generation"] = 1
        if "status" in resource.subresources:
            made.pop("status", None)

    def _put(self, resource: Resource, old: Object | None, new: Object | None) -> Object:
        found = new or old or {}
        key = (resource.plural, found["metadata"].get("namespace", ""), found["metadata"]["name"])
        self.version += 1
        if new is None:
            del self._found[key]
        else:
            new["metadata"]["resourceVersion"] = str(self.version)
            self._found[key] = new
        self.history.append(Change(self.version, resource, old, new))
        self.changed.notify_all()
        return copy.deepcopy(found)


def chooser(namespace: str, labels: str, fields: str) -> Callable[[Object], bool]:
    """Whether an object is one that a list or a watch asks for."""

    def wanted(each: Object) -> bool:
        metadata = each["metadata"]
        return (
            namespace in {"", metadata.get("namespace", "")}
            and kube_selectors.labels_match(labels, metadata.get("labels") or {})
            and kube_selectors.fields_match(fields, each)
        )

    return wanted


def _refuse_outdated(resource: Resource, name: str, made: Object, live: Object) -> None:
    metadata = made.setdefault("metadata", {})
    if metadata.get("resourceVersion") not in {None, "", live["metadata"]["resourceVersion"]}:
        raise kube_refusals.conflict(resource, name)
    if metadata.get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
        raise kube_refusals.conflict(
            resource, name, f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: "
            f"{live['metadata']['uid']}"
        )  # fmt: skip
    if metadata.get("name", name) != name:
        raise kube_refusals.bad_request("the name of the object does not match the name on the URL")


def _kept(resource: Resource, made: Object, live: Object) -> Object:
    """A new state, with what no client can change as it was."""
    system = {name: live["metadata"][name] for name in _KEPT if name in live["metadata"]}
    system["resourceVersion"] = live["metadata"]["resourceVersion"]
    kept = {name: value for name, value in made["metadata"].items() if name not in _KEPT}
    merged = made | {"metadata": kept | system}
    if "status" in resource.subresources:
        merged.pop("status", None)
        if "status" in live:
            merged["status"] = live["status"]
    return merged


def _marked(resource: Resource, live: Object, options: Object) -> Object:
    """An object that somebody wants to go: when, and what has to happen before."""
    marked = copy.deepcopy(live)
    metadata = marked["metadata"]
    grace = 0
    if resource.kind == "Pod":
        asked = options.get("gracePeriodSeconds")
        grace = live["spec"]["terminationGracePeriodSeconds"] if asked is None else asked
        if not live["spec"].get("nodeName"):
            grace = 0  # nothing runs yet
    # batch/v1 keeps what a Job made unless it is told otherwise, for clients of long ago
    default = "Orphan" if resource.kind == "Job" else "Background"
    how = options.get("propagationPolicy") or default
    extra = {"Foreground": FOREGROUND, "Orphan": ORPHAN}.get(how)
    finalizers = [each for each in metadata.get("finalizers", ()) if each not in {FOREGROUND, ORPHAN}]
    if extra:
        finalizers.append(extra)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    earlier = metadata.get("deletionGracePeriodSeconds")
    if "deletionTimestamp" not in metadata or (earlier is not None and grace < earlier):
        at = datetime.now(UTC) + timedelta(seconds=grace)
        metadata |= {"deletionTimestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "deletionGracePeriodSeconds": grace}
    return marked


def _may_go(resource: Resource, found: Object) -> bool:
    metadata = found["metadata"]
    if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
        return False
    return resource.kind != "Pod" or metadata["deletionGracePeriodSeconds"] == 0
