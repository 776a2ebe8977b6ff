"""Label and field selectors, as the Kubernetes API writes them in a query and in objects."""

import re
from collections.abc import Mapping
from typing import Any

from kube_refusals import bad_request

_SET = re.compile(r"^\s*(?P<key>\S+)\s+(?P<op>in|notin)\s+\((?P<values>[^)]*)\)\s*$")
_EQUALS = re.compile(r"^\s*(?P<key>[^=!\s]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^=!\s]*)\s*$")
_EXISTS = re.compile(r"^\s*(?P<not>!?)(?P<key>[^=!\s()]+)\s*$")


def labels_match(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether labels fulfil a selector as ``a=b,c!=d,e in (f,g),h,!i``."""
    return all(_fulfils(each, labels) for each in re.split(r",(?![^(]*\))", selector) if each.strip())


def fields_match(selector: str, found: Mapping[str, Any]) -> bool:
    """Whether an object's fields fulfil a selector as ``metadata.name=x,status.phase!=Running``."""
    for each in filter(str.strip, selector.split(",")):
        parts = _EQUALS.match(each)
        if not parts:
            raise bad_request(f"invalid field selector: {each!r}")
        if (str(_field(found, parts["key"])) == parts["value"]) is (parts["op"] == "!="):
            return False
    return True


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether labels fulfil an object's selector (``matchLabels`` and ``matchExpressions``)."""
    if not selector:
        return False
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_expressed(each, labels) for each in selector.get("matchExpressions") or ())


def _expressed(wanted: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = wanted["key"], wanted["operator"]
    if operator in {"Exists", "DoesNotExist"}:
        return (key in labels) is (operator == "Exists")
    return (labels.get(key) in wanted["values"]) is (operator == "In")


def _fulfils(wanted: str, labels: Mapping[str, str]) -> bool:
    if parts := _SET.match(wanted):
        values = {each.strip() for each in parts["values"].split(",")}
        return (labels.get(parts["key"]) in values) is (parts["op"] == "in")
    if parts := _EQUALS.match(wanted):
        return (labels.get(parts["key"]) == parts["value"]) is (parts["op"] != "!=")
    if parts := _EXISTS.match(wanted):
        return (parts["key"] in labels) is (not parts["not"])
    raise bad_request(f"unable to parse requirement: {wanted!r}")


def _field(found: Any, path: str) -> Any:
    for part in path.split("."):
        found = found.get(part, "") if isinstance(found, Mapping) else ""
    return found
