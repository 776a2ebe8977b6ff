"""What a verification has looked at and found wrong, however much others write meanwhile."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import SafelightError, StoreUnavailable
from pipeline.progress import OnProgress, Progress
from pipeline.store import Store

READINGS = 5
"""How often a pointer is read again that moved while what it pointed at was looked for."""


@dataclass(slots=True)
class Ledger:
    """What was checked so far."""

    on_progress: OnProgress
    counts: Counter[str] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)

    def count(self, kind: str) -> None:
        """One more object of that kind was looked at."""
        self.counts[kind] += 1
        self.on_progress(Progress("verifying the store", self.counts.total(), unit="objects", note=kind))

    def fault(self, store: Store, key: str, fault: object, named_by: str | None = None) -> None:
        """``key`` is broken, unless what names it has been deleted meanwhile: then it was on its way out."""
        if store.head(named_by or key) is not None:
            self.broken.setdefault(f"{store.url}/{key}", str(fault).removeprefix(f"{store.url}/{key} ").rstrip("."))


def verify_pointer(store: Store, key: str, fault: Callable[[], str | None], ledger: Ledger) -> None:
    """Report ``fault``, unless the pointer moved while it was looked for: then look again."""
    said: object = None
    for _ in range(READINGS):
        before = store.head(key)
        try:
            said = fault()
        except StoreUnavailable:
            raise
        except SafelightError as error:
            said = error
        after = store.head(key)
        if said is None or after is None or (before is not None and before.etag == after.etag):
            break
    if said is not None:
        ledger.fault(store, key, said)
