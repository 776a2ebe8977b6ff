"""A person's folder, walked: every file once per way to it, and a count of everything that is left aside.

Links to files and folders are followed. A link to a folder that the link itself lies in would never end: it is counted
and left. Nothing is sorted and no list of files is held, so that a million files cost no memory.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pipeline.raw import HIDDEN, is_hidden

BROKEN_LINK = "broken link"
ENDLESS_LINK = "link to a folder that it lies in"
UNREADABLE = "unreadable"
NOT_A_FILE = "not a regular file"

Note: TypeAlias = Callable[[str, str], None]
"""Takes a printable path and the reason why the file is left aside."""


@dataclass(slots=True)
class LeftAside:
    """Files that are not imported, counted by reason; those that a person would miss are noted by name as well."""

    note: Note
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, path: str | None = None) -> None:
        """Count one, and note its ``path`` if that is given."""
        self.counts[reason] += 1
        if path is not None:
            self.note(shown(path), reason)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file: path below the scanned folder, parts joined by ``/``; size in bytes."""

    path: str
    size: int


def shown(path: str) -> str:
    """A path as text that can be printed and stored, whatever bytes it is made of."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to be read: path with a final ``/``, and the identities of itself and of all that it lies in."""

    path: str
    chain: tuple[tuple[int, int], ...]


def scan(folder: Path, aside: LeftAside) -> Iterator[FoundFile]:
    """Every file below ``folder``, in no order; what is not one is counted in ``aside``."""
    status = folder.stat()
    pending = [_Folder("", ((status.st_dev, status.st_ino),))]
    while pending:
        here = pending.pop()
        for entry in _entries(folder, here, aside):
            found = _examined(entry, here, aside)
            if isinstance(found, _Folder):
                pending.append(found)
            elif found:
                yield found


def _entries(folder: Path, here: _Folder, aside: LeftAside) -> Iterator[os.DirEntry[str]]:
    try:
        entries = os.scandir(folder / here.path)
    except OSError:
        aside.add(UNREADABLE, here.path)
        return
    with entries:
        yield from entries


def _examined(entry: os.DirEntry[str], here: _Folder, aside: LeftAside) -> FoundFile | _Folder | None:
    path = here.path + entry.name
    if is_hidden(entry.name):
        aside.add(HIDDEN)
        return None
    try:
        status = entry.stat()
    except OSError:
        aside.add(BROKEN_LINK if entry.is_symlink() else UNREADABLE, path)
        return None
    identity = (status.st_dev, status.st_ino)
    if stat.S_ISREG(status.st_mode):
        return FoundFile(path, status.st_size)
    if stat.S_ISDIR(status.st_mode) and identity not in here.chain:
        return _Folder(path + "/", (*here.chain, identity))
    aside.add(ENDLESS_LINK if stat.S_ISDIR(status.st_mode) else NOT_A_FILE, path)
    return None
