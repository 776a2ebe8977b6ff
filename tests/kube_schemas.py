"""The published schemas of Kubernetes' objects, strict: what fields there are, and by which key a list is merged.

They come with kubernetes-validate. Its own functions read 1.8 MB for each object; here they are read once.
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import referencing
from kube_resources import CURRENT, Resource

_FOLDER = f"kubernetes-json-schema/v{CURRENT}.0-local-strict"
_MERGE_KEY = "x-kubernetes-patch-merge-key"
_MAP_KEYS = "x-kubernetes-list-map-keys"
_STRATEGY = "x-kubernetes-patch-strategy"


class Schema:
    """The schema of a part of an object; of a part that no schema describes, an empty one."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._own = found
        self._all = {**_resolved(found), **{name: value for name, value in found.items() if name != "$ref"}}

    def part(self, name: str) -> "Schema":
        """Of a field."""
        more = self._all.get("additionalProperties")
        return Schema(self._all.get("properties", {}).get(name) or (more if isinstance(more, dict) else {}))

    @property
    def items(self) -> "Schema":
        """Of the entries of a list."""
        return Schema(self._all.get("items") or {})

    @property
    def merge_key(self) -> str | None:
        """By which a strategic merge patch knows the entries of this list again; None: it replaces the list."""
        key: str | None = self._own.get(_MERGE_KEY) if "merge" in self._own.get(_STRATEGY, "") else None
        return key

    @property
    def is_merged_set(self) -> bool:
        """Whether a strategic merge patch adds to this list of plain values."""
        return "merge" in self._own.get(_STRATEGY, "") and _MERGE_KEY not in self._own

    @property
    def map_keys(self) -> tuple[str, ...]:
        """By which apply knows the entries of this list again; empty: it replaces the list."""
        return tuple(self._own.get(_MAP_KEYS) or ())


def schema_of(resource: Resource) -> Schema:
    """Of a whole object."""
    return Schema(_contents(_file_of(resource)))


@functools.cache
def validator(resource: Resource) -> jsonschema.protocols.Validator:
    """What finds everything in an object that is not as its schema says."""
    documents = (_contents(_file_of(resource)), _contents("_definitions.json"))
    registry = referencing.Registry()
    for each in documents:
        registry = referencing.Resource.from_contents(each) @ registry
    return jsonschema.validators.Draft202012Validator(documents[0], registry=registry)


@functools.cache
def _contents(name: str) -> dict[str, Any]:
    file = importlib.resources.files("kubernetes_validate").joinpath(f"{_FOLDER}/{name}")
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def _file_of(resource: Resource) -> str:
    group = resource.group.partition(".")[0]
    return f"{resource.kind.lower()}-{group + '-' if group else ''}{resource.version}.json"


def _resolved(found: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = found.get("$ref")
    if not reference:
        return found
    definition: dict[str, Any] = _contents("_definitions.json")["$defs"][reference.rpartition("/")[2]]
    return definition
