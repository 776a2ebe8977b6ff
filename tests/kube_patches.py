"""The four ways to change an object in part: JSON merge patch, JSON patch, strategic merge patch, and apply.

By which key the entries of a list are known again is in the published schemas. Apply does without the detection of
conflicts between appliers: the last one wins, as with ``--force-conflicts``; what an applier leaves out that it had
applied before goes away.
"""

import copy
from collections.abc import Sequence
from typing import Any

import jsonpatch
from kube_refusals import Refused, bad_request
from kube_schemas import Schema

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = ("application/apply-patch+yaml", "application/apply-patch+json")


def patched(kind: str, live: dict[str, Any], patch: Any, schema: Schema) -> dict[str, Any]:
    """``live`` with a patch of a content type applied.

    Raises:
        Refused: it is no such patch, or cannot be applied.
    """
    if kind == JSON:
        return _json(live, patch)
    if kind == MERGE:
        changed: dict[str, Any] = _merged(live, patch)
        return changed
    if kind == STRATEGIC:
        return _strategic(live, patch, schema)
    raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}")


def applied(live: dict[str, Any], new: dict[str, Any], before: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """``live`` with what an applier wants now, and without what it wanted before and does not any more."""
    return _united(_pruned(copy.deepcopy(live), new, before, schema), new, schema)


def _json(live: dict[str, Any], patch: Any) -> dict[str, Any]:
    try:
        changed: dict[str, Any] = jsonpatch.apply_patch(live, patch)
    except jsonpatch.JsonPatchTestFailed as error:
        raise Refused(
            422, "Invalid", f"the server rejected our request due to an error in our request: {error}"
        ) from error
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        raise bad_request(f"the patch is not one: {error}") from error
    return changed


def _merged(live: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    changed = dict(live) if isinstance(live, dict) else {}
    for name, value in patch.items():
        if value is None:
            changed.pop(name, None)
        else:
            changed[name] = _merged(changed.get(name), value)
    return changed


def _strategic(live: Any, patch: dict[str, Any], schema: Schema) -> dict[str, Any]:
    patch = dict(patch)
    directive = patch.pop("$patch", "merge")
    if directive == "replace":
        return patch
    if directive != "merge":
        raise bad_request(f"unknown patch directive {directive!r}")
    changed = dict(live) if isinstance(live, dict) else {}
    kept = patch.pop("$retainKeys", None)
    if kept is not None:
        changed = {name: value for name, value in changed.items() if name in kept}
    orders = {name: patch.pop(name) for name in list(patch) if name.startswith("$setElementOrder/")}
    gone = {name: patch.pop(name) for name in list(patch) if name.startswith("$deleteFromPrimitiveList/")}
    for name, values in gone.items():
        field = name.partition("/")[2]
        changed[field] = [each for each in changed.get(field, ()) if each not in values]
    for name, value in patch.items():
        if value is None:
            changed.pop(name, None)
        else:
            changed[name] = _strategic_value(changed.get(name), value, schema.part(name))
    for name, order in orders.items():
        field = name.partition("/")[2]
        if field in changed:
            changed[field] = _ordered(changed[field], order, schema.part(field).merge_key)
    return changed


def _strategic_value(live: Any, patch: Any, schema: Schema) -> Any:
    if isinstance(patch, dict):
        return _strategic(live, patch, schema)
    if not isinstance(patch, list):
        return patch
    if schema.merge_key:
        return _strategic_list(list(live or ()), patch, schema.merge_key, schema.items)
    if schema.is_merged_set:
        return [*(live or ()), *(each for each in patch if each not in (live or ()))]
    return [each for each in patch if not (isinstance(each, dict) and "$patch" in each)]


def _strategic_list(live: list[Any], patch: list[Any], key: str, schema: Schema) -> list[Any]:
    if any(each == {"$patch": "replace"} for each in patch):
        return [each for each in patch if "$patch" not in each]
    for each in patch:
        if key not in each:
            raise bad_request(f"map: {each} does not contain declared merge key: {key}")
        found = next((number for number, one in enumerate(live) if one.get(key) == each[key]), None)
        if each.get("$patch") == "delete":
            live = [one for one in live if one.get(key) != each[key]]
        elif found is None:
            live = [*live, _strategic({}, each, schema)]
        else:
            live = [*live[:found], _strategic(live[found], each, schema), *live[found + 1 :]]
    return live


def _ordered(live: list[Any], order: list[Any], key: str | None) -> list[Any]:
    wanted = [each.get(key) if key and isinstance(each, dict) else each for each in order]

    def place(each: Any) -> int:
        value = each.get(key) if key and isinstance(each, dict) else each
        return wanted.index(value) if value in wanted else len(wanted)

    return sorted(live, key=place)


def _united(live: Any, new: Any, schema: Schema) -> Any:
    if isinstance(new, dict):
        found = dict(live) if isinstance(live, dict) else {}
        return found | {name: _united(found.get(name), value, schema.part(name)) for name, value in new.items()}
    if isinstance(new, list) and schema.map_keys and isinstance(live, list):
        found = list(live)
        for each in new:
            number = _place(found, each, schema.map_keys)
            if number is None:
                found.append(each)
            else:
                found[number] = _united(found[number], each, schema.items)
        return found
    return new


def _pruned(live: Any, new: Any, before: Any, schema: Schema) -> Any:
    if isinstance(live, dict) and isinstance(before, dict) and isinstance(new, dict):
        for name, value in before.items():
            if name in live and name not in new:
                del live[name]
            elif name in live:
                live[name] = _pruned(live[name], new[name], value, schema.part(name))
    elif isinstance(live, list) and isinstance(before, list) and isinstance(new, list) and schema.map_keys:
        gone = [each for each in before if _place(new, each, schema.map_keys) is None]
        return [each for each in live if _place(gone, each, schema.map_keys) is None]
    return live


def _place(found: Sequence[Any], wanted: Any, keys: Sequence[str]) -> int | None:
    def identity(each: Any) -> list[Any]:
        return [each.get(key, "TCP" if key == "protocol" else None) for key in keys]

    return next((number for number, each in enumerate(found) if identity(each) == identity(wanted)), None)
