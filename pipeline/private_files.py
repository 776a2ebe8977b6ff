"""Files below ``SAFELIGHT_HOME`` that are their owner's alone, and the locks that commands of one home share."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import LocalServiceFailed


@contextmanager
def locked(home: Path, name: str) -> Iterator[None]:
    """Hold the lock ``name`` of ``home``; waits for whoever holds it, in this process or in another.

    The system releases an ``flock`` when its holder dies. It works alike on Linux, macOS and WSL 2 on a local disk; on
    a network share two machines could both believe that they hold it, so a home belongs on a local disk.

    Raises:
        LocalServiceFailed: the home cannot be written.
    """
    path = private_folder(home / "run") / f"{name}.lock"
    try:
        path.touch(mode=0o600)
        file = path.open("w")
    except OSError as error:
        raise unusable(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def private_folder(path: Path) -> Path:
    """``path`` as a folder; what has to be created of it, only its owner can enter.

    Raises:
        LocalServiceFailed: it cannot be created.
    """
    for folder in reversed([path, *path.parents]):
        try:
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise unusable(folder, error) from error
    return path


def write_private(path: Path, text: str) -> None:
    """Replace the file ``path`` by ``text``, atomically, readable by its owner alone.

    Raises:
        LocalServiceFailed: the folder cannot be written, or its disk is full.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        beside.touch(mode=0o600)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):  # the folder itself may be out of reach
            beside.unlink(missing_ok=True)
        raise unusable(path, error) from error


def unusable(path: Path, error: OSError) -> LocalServiceFailed:
    """What to raise where ``path`` could not be written."""
    reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
    return LocalServiceFailed(
        f"{path} cannot be written ({reason}): make room or give access there, or choose another folder with "
        "SAFELIGHT_HOME."
    )
