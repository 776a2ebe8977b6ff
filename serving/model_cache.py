"""The last version that answered, kept in a local folder: what a server starts from while the store is away.

- **One file for each model and alias** (or pinned version), replaced as a whole by a rename: there is nothing else to
  remove, several replicas may share the folder, and one that is killed leaves nothing half-written that counts.
- It is asked only where the store cannot be: to start with while no alias can be read, or to save the download of the
  very version that the alias names.
- It helps, and never harms: whatever is wrong with the folder is one warning in the log.
"""

import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipeline.errors import Corrupted
from serving.model_files import ModelFile
from serving.settings import ServingSettings

log = logging.getLogger(__name__)

SUFFIX: Final = ".model"
PARTIAL: Final = ".partial"
ABANDONED_S: Final = 600.0
"""After which a file that was never finished belongs to nobody."""
URL_BYTES: Final = 2
"""The length of the models zone's URL, big-endian, begins the file; the URL and the packed version follow."""


class ModelCache:
    """The file of one model in a folder; without a folder, nothing is ever kept."""

    def __init__(self, folder: Path | None, url: str, settings: ServingSettings) -> None:
        """Nothing is read yet; ``url`` is the models zone's, and what came from another one does not count."""
        self._folder = folder
        self._url = url.encode()
        self._name = f"{settings.model}@{settings.version or settings.alias}{SUFFIX}"
        self._model = settings.model
        self._warned: str | None = None

    def read(self) -> ModelFile | None:
        """The version that is kept, verified; None where there is none, or not a sound one."""
        if self._folder is None:
            return None
        path = self._folder / self._name
        try:
            with path.open("rb") as file:
                return self._parsed(file.fileno())
        except FileNotFoundError:
            return None
        except (OSError, Corrupted) as error:
            self._warn(f"{path} cannot be used: {_reason(error)}.")
            return None

    def keep(self, model: ModelFile) -> None:
        """Keep a version in place of the one before."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=self._name, suffix=PARTIAL, dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(len(self._url).to_bytes(URL_BYTES) + self._url)
                    file.flush()
                    model.write(file.fileno(), file.tell())
                    os.fsync(file.fileno())
                Path(name).replace(self._folder / self._name)
            finally:
                Path(name).unlink(missing_ok=True)
            self._clean()
        except OSError as error:
            self._warn(f"{self._folder} cannot keep the last model: {_reason(error)}.")

    def forget(self) -> None:
        """Keep nothing any more: what was taken back must not come back with a restart."""
        try:
            if self._folder is not None:
                (self._folder / self._name).unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"{self._folder} cannot forget the last model: {_reason(error)}.")

    def _parsed(self, file: int) -> ModelFile:
        size = int.from_bytes(os.pread(file, URL_BYTES, 0))
        if os.pread(file, size, URL_BYTES) != self._url:
            raise Corrupted("it was altered, or came from another store")
        found = ModelFile.read(file, URL_BYTES + size)
        if found.manifest.model != self._model:
            raise Corrupted("it is another model's")
        return found

    def _clean(self) -> None:
        """Remove what killed processes left; others may do so at the same moment."""
        for path in self._folder.glob(f"*{PARTIAL}") if self._folder else ():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()

    def _warn(self, text: str) -> None:
        if text != self._warned:
            log.warning("%s", text)
        self._warned = text


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
