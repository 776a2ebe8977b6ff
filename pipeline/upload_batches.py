"""When uploads are worth a training: many of them make one batch, decided purely from what a listing showed.

- **A dataset's content is one digest** of the keys, etags and sizes that a listing shows, in the listing's order: no
  key is kept, and whatever changed (added, replaced, removed) changes it.
- **A batch is complete when nothing changed for a while** (``quiet_s``), or when changes went on for long enough
  (``longest_s``): a thousand uploads make one batch, and uploads without end make one now and then.
- What changes while a dataset's run is under way waits for its end, and is one more batch then.
- Each batch has a number and a digest, so that starting its run twice starts it once.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.artifacts import Record
from pipeline.store import StoredObject


@dataclass(frozen=True, slots=True)
class Content:
    """What a listing showed of a dataset: 64 hexadecimal digits, and how many objects."""

    digest: str
    objects: int


class Batch(Record):
    """The last batch of a dataset for which a run was started; 0 is what was there when the watching began."""

    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """A dataset's content that no run was started for; times are monotonic seconds of this process."""

    content: Content
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Rules:
    """How long to wait, in seconds: without a change, and at most."""

    quiet_s: float
    longest_s: float


NOTHING = Content("", 0)
IDLE_FACTOR = 19
"""Looking takes a twentieth of the time at most."""


def contents(listing: Iterable[StoredObject]) -> dict[str, Content]:
    """What is stored for each dataset, given a listing of the images zone (or of a part of it)."""
    digests: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for found in listing:
        dataset, _, path = found.key.partition("/")
        if path:
            digest = digests.setdefault(dataset, hashlib.sha256())
            digest.update(f"{path}\0{found.etag}\0{found.size}\n".encode(errors="surrogateescape"))
            counts[dataset] += 1
    return {dataset: Content(digest.hexdigest(), counts[dataset]) for dataset, digest in digests.items()}


def seen(before: Change | None, known: Batch | None, content: Content, now: float) -> Change | None:
    """The change of a dataset after a look at it; None where its last batch holds all of it."""
    if known is not None and content.digest == known.digest:
        return None
    if before is None:
        return Change(content, now, now)
    return before if before.content == content else replace(before, content=content, last=now)


def is_due(change: Change, rules: Rules, now: float) -> bool:
    """Whether the change is a batch now; what was emptied is none, since there is nothing to train on."""
    if change.content.objects == 0:
        return False
    return now - change.last >= rules.quiet_s or now - change.first >= rules.longest_s


def batch_of(change: Change, known: Batch | None) -> Batch:
    """The next batch of a dataset."""
    return Batch(number=(known.number if known else 0) + 1, digest=change.content.digest)


def next_look_s(changes: Mapping[str, Change], rules: Rules, poll_s: float, cost_s: float) -> float:
    """Seconds until the next look at everything, of which the last took ``cost_s``.

    Sooner while something has changed, and later where a look takes long.
    """
    wanted = min(poll_s, rules.quiet_s) if changes else poll_s
    return max(wanted, IDLE_FACTOR * cost_s)
