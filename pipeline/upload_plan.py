"""What an import will upload, in a temporary SQLite file: memory does not grow with the number of images.

The file has no name, is deleted when the plan is closed or the process dies, and is used by one thread.

What is stored already is known by digest: an etag is the MD5 of the bytes. Where a store's etags are something else,
every image is written again, which changes nothing.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pipeline.progress import OnProgress, Progress
from pipeline.store import Store, StoredObject

REPORT_EVERY = 250

SCHEMA = """
PRAGMA journal_mode = OFF;
CREATE TABLE planned (key TEXT PRIMARY KEY, source BLOB, label TEXT, split TEXT) WITHOUT ROWID;
CREATE TABLE stored (key TEXT PRIMARY KEY, etag TEXT) WITHOUT ROWID;
CREATE TABLE named (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE left_out (name TEXT, reason TEXT);
"""
ROWS = """
SELECT planned.key, source, label, split, etag
FROM planned LEFT JOIN stored ON planned.key = stored.key ORDER BY planned.key
"""
MISSING = """
SELECT key FROM named
WHERE key NOT IN (SELECT key FROM planned) AND key NOT IN (SELECT key FROM stored) ORDER BY key
"""
MATCHING = """
SELECT key FROM named
WHERE key IN (SELECT key FROM planned) OR key IN (SELECT key FROM stored) LIMIT 1
"""
LEFT_OVER = "SELECT key FROM stored WHERE key NOT IN (SELECT key FROM planned)"


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to import.

    Attributes:
        key: in the images zone.
        source: what the importer needs to find its bytes again.
        label: its class.
        split: its given split, or empty.
        etag: of what the store holds under its key, or None where that is nothing.
    """

    key: str
    source: bytes
    label: str
    split: str
    etag: str | None


class UploadPlan:
    """Images to import into one dataset, and what else must be known of each: named, stored, left out."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self._database = sqlite3.connect("")
        self._database.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, key: str, source: bytes, label: str = "", split: str = "") -> bytes | None:
        """Plan an image; if the key is taken, leave it and return the source that took it."""
        try:
            self._database.execute("INSERT INTO planned VALUES (?, ?, ?, ?)", (key, source, label, split))
        except sqlite3.IntegrityError:
            taken: bytes = self._database.execute("SELECT source FROM planned WHERE key = ?", (key,)).fetchone()[0]
            return taken
        return None

    def name(self, key: str) -> None:
        """Note a key that a table of labels names."""
        self._database.execute("INSERT OR IGNORE INTO named VALUES (?)", (key,))

    def is_named(self, key: str) -> bool:
        """Whether a table of labels names this key."""
        return self._database.execute("SELECT 1 FROM named WHERE key = ?", (key,)).fetchone() is not None

    def leave_out(self, name: str, reason: str) -> None:
        """Note what is not imported, and why."""
        self._database.execute("INSERT INTO left_out VALUES (?, ?)", (name, reason))

    def left_out(self) -> Iterator[tuple[str, str]]:
        """Name and reason of what is not imported, in the order in which it was noted."""
        yield from self._database.execute("SELECT name, reason FROM left_out ORDER BY rowid")

    def note_stored(self, objects: Iterable[StoredObject]) -> None:
        """Note what the store holds."""
        rows = ((item.key, item.etag) for item in objects)
        self._database.executemany("INSERT OR REPLACE INTO stored VALUES (?, ?)", rows)

    def count(self) -> int:
        """How many images are planned."""
        (number,) = self._database.execute("SELECT count(*) FROM planned").fetchone()
        return int(number)

    def labels(self) -> list[str]:
        """The labels of the planned images, sorted."""
        return [label for (label,) in self._database.execute("SELECT DISTINCT label FROM planned ORDER BY label")]

    def images(self) -> Iterator[PlannedImage]:
        """The planned images, by key."""
        for row in self._database.execute(ROWS):
            yield PlannedImage(*row)

    def names_nothing(self) -> bool:
        """Whether not one named key is planned or stored."""
        return self._database.execute(MATCHING).fetchone() is None

    def missing(self) -> Iterator[str]:
        """Keys that are named, but neither planned nor stored."""
        for (key,) in self._database.execute(MISSING):
            yield key

    def left_over(self) -> Iterator[str]:
        """Keys that were stored before the upload and are not planned."""
        for (key,) in self._database.execute(LEFT_OVER):
            yield key


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Images written, images whose very bytes were there, and bytes written."""

    images: int
    already_there: int
    bytes: int


def upload(plan: UploadPlan, images: Store, read: Callable[[bytes], bytes | None], on_progress: OnProgress) -> Uploaded:
    """Write the planned images that ``images`` does not hold yet.

    Args:
        plan: what to write.
        images: the images zone.
        read: the bytes of an image, by its source, or None where they cannot be had.
        on_progress: told about images compared or written.
    """
    plan.note_stored(images.listing(plan.dataset))
    total = plan.count()
    already = written = 0

    def missing() -> Iterator[tuple[str, bytes]]:
        nonlocal already, written
        for number, image in enumerate(plan.images()):
            if number % REPORT_EVERY == 0:
                on_progress(Progress("importing", number, total))
            data = read(image.source)
            if data is not None and _is_stored(image, data):
                already += 1
            elif data is not None:
                written += len(data)
                yield image.key, data

    uploaded = sum(1 for _ in images.write_many(missing()))
    on_progress(Progress("importing", total, total))
    return Uploaded(uploaded, already, written)


def _is_stored(image: PlannedImage, data: bytes) -> bool:
    if image.etag is None:
        return False
    return image.etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
