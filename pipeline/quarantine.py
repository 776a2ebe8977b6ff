"""Lists of what was left out, and why: written by imports and preparations, read by people.

One line of JSON per file or image, in ``<dataset>/quarantine/<digest>.jsonl`` of the datasets zone. A list is named by
its content, so that a repeated run finds it instead of writing another one.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from pipeline.artifacts import utc_now
from pipeline.errors import NotFound
from pipeline.store import Store

FRESH = timedelta(days=1)
"""How long a repeated list is not written again. ``garbage`` removes lists by their age, 30 days by default: written
again after a day, a list that is still reported stays, and preparations that are minutes apart write nothing."""
KEY = re.compile(r"[a-z0-9_-]+/quarantine/[0-9a-f]{16}\.jsonl")


def line(key: str, reason: str, etag: str | None = None, size: int | None = None) -> dict[str, Any]:
    """What a list says of one image; ``size`` in bytes."""
    return {"key": key, "reason": reason, "etag": etag, "size": size}


def write(datasets: Store, dataset: str, lines: Iterable[dict[str, Any]]) -> str | None:
    """The key of a list of these lines, stored; None where there is nothing to list."""
    data = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines).encode()
    if not data:
        return None
    key = f"{dataset}/quarantine/{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
    found = datasets.head(key)
    if found is None or utc_now() - found.modified > FRESH:
        datasets.put(key, data)  # again: its age, by which ``garbage`` goes, counts from when it was last reported
    return key


def read(datasets: Store, address: str) -> list[dict[str, Any]]:
    """The lines of a list: key, reason, etag and size (bytes) of each image.

    Args:
        datasets: the datasets zone.
        address: the list's key there, or its URL.

    Raises:
        NotFound: there is no such list.
    """
    # The sentence that names a list ends with a full stop, which is easily copied along.
    key = address.removeprefix(f"{datasets.url}/").removesuffix(".")
    data = datasets.get_if_present(key) if KEY.fullmatch(key) else None
    if data is None:
        raise NotFound(f"{address!r} is no list of what was left out: give the address that import or prepare printed.")
    return [json.loads(each) for each in data.splitlines()]


def hint(key: str) -> str:
    """How a person sees a list."""
    return f"what was left out, and why: safelight quarantine {key}"
