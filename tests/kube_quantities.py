"""Amounts as Kubernetes writes them: ``500m``, ``2Gi``, ``25%``."""

import math
import re
from typing import Any

_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{name}i": 1024.0**power for power, name in enumerate("KMGTPE", 1)
}
_QUANTITY = re.compile(r"^([0-9.]+(?:[eE][0-9+-]+)?)([a-zA-Z]*)$")


def amount(quantity: Any) -> float:
    """A quantity as a number."""
    found = _QUANTITY.match(str(quantity))
    if not found or found[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is not a quantity")
    return float(found[1]) * _UNITS[found[2]]


def exceeds(one: Any, other: Any) -> bool:
    """Whether a quantity is larger than another one."""
    return amount(one) > amount(other)


def share(value: Any, total: int, *, up: bool) -> int:
    """A number, or a percentage of ``total`` rounded up or down."""
    if isinstance(value, int):
        return value
    exact = float(str(value).rstrip("%")) / 100 * total
    return math.ceil(exact) if up else math.floor(exact)
