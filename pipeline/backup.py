"""A copy of everything that a store holds, made while others write to it, and a store filled from such a copy.

Decisions:

- **What names others is looked for first and written last.** An alias names a version's manifest, a manifest names
  files; each was stored after what it names, is never changed, and is removed before it. So whatever is written or
  removed meanwhile, each object that the copy holds finds in the copy what it names: as of some moment while it was
  made. A copy that breaks off anywhere is whole in this sense, too, and the next one goes on from it.
- **Only ``store gc --delete`` must not run meanwhile**: what an alias named a minute ago may be garbage now. And of a
  training run under way the checkpoint that was looked for may be gone when it is read: then the copy has none, and
  the run begins anew after a restore.
- **Nothing is removed from a copy**, so what was deleted from the store by mistake is still there. To forget an image,
  begin a new copy and remove the old one.
- **What is there is not copied again**: of the same size, and stored there well after it was last changed here. Bytes
  that fall ill later are for ``store verify`` to find, after a restore.
- Any store and any folder can hold a copy, since it needs no conditional writes: the zones are its folders.
- In memory is, of each object, what a listing says; and the aliases, leases and other pointers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import AwareDatetime

from pipeline import store_check
from pipeline.artifacts import Record
from pipeline.errors import InvalidInput
from pipeline.progress import OnProgress, Progress, silent
from pipeline.settings import Settings, Zone
from pipeline.store import Store, StoredObject, open_store
from pipeline.zones import Zones

ORDER: tuple[Zone, ...] = ("models", "checkpoints", "datasets", "images", "predictions")
"""What changes fastest comes first."""
NAMING: tuple[Zone, ...] = (*ORDER[:3], "predictions")
"""The zones whose objects name others; of predictions those of batches, whose manifest names its parts."""
POINTER = re.compile(r"[^/]+/(aliases/[^/]+|latest|lease|preparing|deploying)\.json")
"""What changes: aliases, the newest dataset version, leases, whose fences must not begin anew."""
COMPLETES = re.compile(r".*/(manifest|result)\.json")
"""What says that a version or a training run is complete: it may name other records."""
POINTERS, COMPLETE, RECORDS, CONTENT = range(4)
LATER = timedelta(minutes=5)
"""By which a copy must be younger to be taken for unchanged: more than two stores' clocks differ."""
DONE = "backup.json"

Place = Mapping[Zone, Store]


class Backup(Record):
    """What a complete copy says of itself: when it was begun."""

    begun_at: AwareDatetime


class Copied(Record):
    """By zone, how many objects were copied and how many were there already; and the bytes that were copied."""

    copied: dict[str, int]
    there: dict[str, int]
    size: int


def back_up(zones: Zones, settings: Settings, url: str, *, on_progress: OnProgress = silent) -> Copied:
    """Copy all zones into folders below ``url``, where earlier copies may be.

    Args:
        zones: what is copied; others may write meanwhile.
        settings: with which the copy's store is opened, if ``url`` is one of S3.
        url: ``file:///folder`` or ``s3://bucket/prefix``.
        on_progress: told of every object.

    Raises:
        InvalidInput: a folder cannot be made, or ``url`` is in the store itself.
        InvalidSettings: ``url`` cannot be understood.
        StoreError: one of the two stores did not answer, or refuses.
    """
    begun = Backup(begun_at=datetime.now(UTC))
    _refuse_itself(_places(zones), url)
    _make_folders(url)
    done = _Copying(_places(zones), _below(url, settings), on_progress).run()
    open_store(url, settings).put(DONE, begun.to_json())
    return done


def restore(url: str, settings: Settings, zones: Zones, *, on_progress: OnProgress = silent) -> tuple[Backup, Copied]:
    """Fill an empty store from the copy below ``url``; broken off, it can be repeated.

    Args:
        url: of the copy.
        settings: with which the copy's store is opened, if it is one of S3.
        zones: opened with the right to write everything.
        on_progress: told of every object.

    Returns:
        what the copy says of itself, and what was copied.

    Raises:
        InvalidInput: there is no complete copy, or the store holds something that the copy does not.
        StoreError: one of the two stores did not answer, or refuses.
    """
    said = None if _is_missing(url) else open_store(url, settings).get_if_present(DONE)
    if said is None:
        raise InvalidInput(f"{url} holds no complete copy of a store: name one that 'safelight store backup' made.")
    copying = _Copying(_below(url, settings), _places(zones), on_progress)
    _refuse_others(copying)
    return Backup.from_json(said), copying.run()


def rank(zone: Zone, key: str) -> int:
    """When an object is looked for, from ``POINTERS`` to ``CONTENT``; it is written in the other order."""
    if zone not in NAMING or not key.endswith(".json"):
        return CONTENT
    if POINTER.fullmatch(key):
        return POINTERS
    return COMPLETE if COMPLETES.fullmatch(key) else RECORDS


def is_unchanged(source: StoredObject, target: StoredObject | None) -> bool:
    """Whether what is in the copy is what is in the store."""
    return target is not None and source.size == target.size and source.modified + LATER <= target.modified


class _Copying:
    """One copy from place to place."""

    def __init__(self, source: Place, target: Place, on_progress: OnProgress) -> None:
        self.source, self.target = source, target
        self.there = {zone: {each.key: each for each in _listed(target[zone])} for zone in ORDER}
        self._on_progress = on_progress
        self._copied, self._unchanged, self._size = Counter[str](), Counter[str](), 0

    def run(self) -> Copied:
        """Copy zone by zone: none names what is in another, and what comes and goes is read at once."""
        for zone in ORDER:
            self._copy(zone)
        return Copied(copied=dict(self._copied), there=dict(self._unchanged), size=self._size)

    def _copy(self, zone: Zone) -> None:
        """Copy a zone in the order that keeps the target whole."""
        pointers = self._read_pointers(zone)
        complete, records = (list(self._found(zone, wanted)) for wanted in (COMPLETE, RECORDS))
        for found in (self._found(zone, CONTENT), records, complete):
            self._transfer(zone, found)
        self._write(zone, pointers)

    def _found(self, zone: Zone, wanted: int) -> Iterator[StoredObject]:
        return (each for each in _listed(self.source[zone]) if rank(zone, each.key) == wanted)

    def _read_pointers(self, zone: Zone) -> list[tuple[str, bytes]]:
        """As they are now: what they name later may not be in the copy."""
        found = self.source[zone].read_many(self._found(zone, POINTERS))
        return [(each.key, data) for each, data in found if data is not None]

    def _transfer(self, zone: Zone, found: Iterable[StoredObject]) -> None:
        """Copy what is missing; what is gone by now was removed after all that names it."""
        self._write(
            zone,
            (
                (each.key, data)
                for each, data in self.source[zone].read_many(self._missing(zone, found))
                if data is not None
            ),
        )

    def _missing(self, zone: Zone, found: Iterable[StoredObject]) -> Iterator[StoredObject]:
        for each in found:
            if is_unchanged(each, self.there[zone].get(each.key)):
                self._count(zone, self._unchanged)
            else:
                yield each

    def _write(self, zone: Zone, items: Iterable[tuple[str, bytes]]) -> None:
        for _ in self.target[zone].write_many(self._measured(items)):
            self._count(zone, self._copied)

    def _measured(self, items: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        for key, data in items:
            self._size += len(data)
            yield key, data

    def _count(self, zone: Zone, counter: Counter[str]) -> None:
        counter[zone] += 1
        done = self._copied.total() + self._unchanged.total()
        self._on_progress(Progress("copying the store", done, unit="objects", note=zone))


def _refuse_itself(source: Place, url: str) -> None:
    """Refuse a copy into the store: a pointer put onto itself would undo what others wrote since it was read."""
    for store, zone in product(source.values(), ORDER):
        ours, copy = f"{store.url}/", f"{_zone_url(url, zone)}/"
        if copy.startswith(ours) or ours.startswith(copy):
            raise InvalidInput(f"{url} is in the store that is to be copied: name another place for the copy.")


def _refuse_others(copying: _Copying) -> None:
    """Refuse a store that is not as the copy is: what would come of both is neither."""
    for zone in ORDER[:3]:  # what is logged meanwhile, by a server that is restored already, is in nobody's way
        ours = {each.key for each in _listed(copying.source[zone])}
        others = copying.there[zone].keys() - ours
        pointers = [key for key in copying.there[zone] if rank(zone, key) == POINTERS]
        others |= {
            key for key in pointers if key in ours and copying.source[zone].get(key) != copying.target[zone].get(key)
        }
        if others:
            where = f"{copying.target[zone].url}/{min(others)}"
            raise InvalidInput(f"{where} is not in the copy, or is otherwise there: restore into an empty store.")


def _listed(store: Store) -> Iterator[StoredObject]:
    """What counts of a zone: not the proof that its own store keeps its promises."""
    own = (store_check.MARKER, f"{store_check.FOLDER}/")
    return (each for each in store.listing() if not each.key.startswith(own))


def _places(zones: Zones) -> Place:
    return {zone: getattr(zones, zone) for zone in ORDER}


def _below(url: str, settings: Settings) -> Place:
    return {zone: open_store(_zone_url(url, zone), settings) for zone in ORDER}


def _zone_url(url: str, zone: Zone) -> str:
    return f"{url.rstrip('/')}/{zone}"


def _folder(url: str) -> Path | None:
    """The folder of a ``file:`` URL."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _is_missing(url: str) -> bool:
    folder = _folder(url)
    return folder is not None and not all((folder / zone).is_dir() for zone in ORDER)


def _make_folders(url: str) -> None:
    if (folder := _folder(url)) is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # people's images are for nobody else to see
        for zone in ORDER:
            (folder / zone).mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{folder} cannot hold a copy: {error.strerror}.") from error
