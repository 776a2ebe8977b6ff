"""Pixels that memory shall not hold: a local file without a name, which whoever reads it sees as an array.

- A row per image, in the order in which an array in memory has them: a reader is given the same array type with the
  same numbers, so that training ends with the same weights wherever the pixels lie.
- The file is mapped, not read: the operating system keeps of it what fits into memory that nobody else needs. Its pages
  count as the process's while they are mapped; ``release`` unmaps them, and what is still cached is mapped again at no
  cost.
- The file has no name, so that it is gone with the process, however that ends.
- Neither ``numpy.memmap`` nor ``torch.from_file`` would be less: rows written through a mapping answer a full disk with
  a signal instead of an error, memmap hides the map that ``release`` needs, and from_file wants a name.
"""

import mmap
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidInput


class PixelFile:
    """An array uint8 (N, height, width, channels) in a file: within its context write every row, then map it.

    Args:
        folder: where the file lies, made if it is missing; by default the system's own for temporary files.
        shape: of the array.

    Raises:
        InvalidInput: the folder lacks the space, or cannot be written.
    """

    def __init__(self, folder: Path | None, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._row = int(np.prod(shape[1:]))
        self._folder = folder or Path(tempfile.gettempdir())
        self._map: mmap.mmap | None = None
        self._size = shape[0] * self._row
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
            if self._size > free:
                raise self._unusable(f"{free >> 20:,} MiB are free")
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed by the context
        except OSError as error:
            raise self._unusable(error.strerror) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # a mapping lives on

    def write(self, positions: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Write rows, uint8 (n, height, width, channels), at ``positions``; safe in several threads.

        Raises:
            InvalidInput: the disk is full.
        """
        try:
            for position, row in zip(positions.tolist(), rows, strict=True):
                if os.pwrite(self._file.fileno(), row.tobytes(), position * self._row) != self._row:
                    raise self._unusable("the disk is full")  # the next write would have said so
        except OSError as error:
            raise self._unusable(error.strerror) from error

    def write_run(self, start: int, rows: NDArray[np.uint8]) -> None:
        """Write rows, uint8 (n, height, width, channels), from position ``start`` on; safe in several threads.

        Raises:
            InvalidInput: the disk is full.
        """
        try:
            left = memoryview(np.ascontiguousarray(rows).data).cast("B")
            at = start * self._row
            while left:
                written = os.pwrite(self._file.fileno(), left, at)
                at, left = at + written, left[written:]
        except OSError as error:
            raise self._unusable(error.strerror) from error

    def mapped_while_written(self) -> NDArray[np.uint8]:
        """The array, for reading only, before every row is written: those that were are seen, others are zeros."""
        os.truncate(self._file.fileno(), self._size)
        self._map = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, np.uint8).reshape(self._shape)

    def mapped(self) -> NDArray[np.uint8]:
        """The array, once every row is written; changing it changes no file."""
        self._map = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_COPY)
        return np.frombuffer(self._map, np.uint8).reshape(self._shape)

    def release(self) -> None:
        """Unmap the pages that were read; the array stays what it is."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _unusable(self, why: str | None) -> InvalidInput:
        return InvalidInput(
            f"{self._folder} cannot hold {-(-self._size >> 20):,} MiB of images that exceed "
            f"SAFELIGHT_TRAINING_MEMORY_MB ({why}): free some space, or raise that setting so that they stay in memory."
        )
