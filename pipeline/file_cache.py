"""A bounded folder of files that are named by their SHA-256: what was read once need not be asked of the store again.

Files are verified when they are read and replaced as a whole when they are written, so that several processes share the
folder and a killed one leaves nothing half-written that counts. A folder that cannot be written is only slower.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

LIMIT_BYTES = 1 << 30

log = logging.getLogger(__name__)


def read(folder: Path | None, sha256: str, fetch: Callable[[], bytes]) -> bytes:
    """The bytes whose SHA-256 is ``sha256``: from the folder, else from ``fetch``, which must have verified them."""
    if folder is None:
        return fetch()
    data = _kept(folder / sha256)
    if hashlib.sha256(data).hexdigest() == sha256:
        return data
    data = fetch()
    write(folder, data)
    return data


def write(folder: Path | None, data: bytes) -> None:
    """Keep ``data``; the files that were not used for longest go when the folder exceeds its bound."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(folder / hashlib.sha256(data).hexdigest())
        _prune(folder)
    except OSError as error:
        log.warning("%s cannot be used as a cache: %s", folder, error)


def clear(folder: Path) -> tuple[int, int]:
    """Forget all that is kept; how many files and bytes that was."""
    files = [path for path in folder.glob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    for path in files:
        path.unlink(missing_ok=True)
    return len(files), size


def _kept(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        path.touch()
    except OSError:
        return b""
    return data


def _prune(folder: Path) -> None:
    # Other processes prune too: a file that is gone by now is fine.
    files = []
    for entry in os.scandir(folder):
        try:
            stat = entry.stat()
        except FileNotFoundError:
            continue
        files.append((stat.st_mtime, stat.st_size, entry.path))
    excess = sum(size for _, size, _ in files) - LIMIT_BYTES
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        Path(path).unlink(missing_ok=True)
        excess -= size
