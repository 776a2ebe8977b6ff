"""A verified model version as one file: the manifest as it is stored, then ``model.onnx``.

- **Whoever reads such a file verifies it again**: the manifest by its seal, the model by the SHA-256 that the manifest
  names. Where it lay meanwhile (in the memory that a replica shares, or in its cache folder) needs no trust.
- The **shelf** is three nameless files which all processes of a replica hold: for the version that answers, for its
  challenger, and for the next one. A version is read from the store once per replica, all its processes load the very
  same bytes, and one that is started again later needs no store.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Self

from pipeline import registry
from pipeline.errors import Corrupted
from pipeline.registry import ModelManifest
from pipeline.sealing import sealed, unsealed
from pipeline.store import Store
from serving.board import nameless_file

MODEL_FILE: Final = "model.onnx"
SHELVED: Final = 3
"""Versions that are held at once at most: one goes live, or gets its share, after the other."""
SIZE_BYTES: Final = 8
"""The length of the manifest, big-endian, begins the file."""
LARGEST_MANIFEST: Final = 64 << 20
"""No real one comes near it; a damaged length must not ask for all memory."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A version's manifest and the bytes of its ``model.onnx``, verified."""

    manifest: ModelManifest
    onnx: bytes

    @classmethod
    def fetched(cls, models: Store, model: str, version: str) -> Self:
        """A version as the models zone holds it.

        Raises:
            NotFound: there is no such complete version.
            StoreError: the store does not answer, or holds something else than was registered.
        """
        manifest = registry.read_manifest(models, model, version)
        return cls(manifest, registry.load_file(models, manifest, MODEL_FILE))

    @classmethod
    def read(cls, file: int, start: int = 0) -> Self:
        """The version that ``write`` left in an open file.

        Raises:
            Corrupted: these are other bytes; the text is a clause.
            OSError: it cannot be read.
        """
        size = int.from_bytes(os.pread(file, SIZE_BYTES, start))
        manifest = unsealed(ModelManifest, os.pread(file, min(size, LARGEST_MANIFEST), start + SIZE_BYTES), MODEL_FILE)
        stored = manifest.files[MODEL_FILE]
        onnx = os.pread(file, stored.size, start + SIZE_BYTES + size)
        if hashlib.sha256(onnx).hexdigest() != stored.sha256:
            raise Corrupted("it was altered")
        return cls(manifest, onnx)

    def write(self, file: int, start: int = 0) -> None:
        """Put everything into an open file, from ``start`` on; no bytes are copied on the way, for they may be many.

        Raises:
            OSError: it cannot be written, or its disk is full.
        """
        manifest = sealed(self.manifest, MODEL_FILE, compact=True)
        for part in (len(manifest).to_bytes(SIZE_BYTES), manifest, self.onnx):
            left = memoryview(part)
            while left:
                written = os.pwrite(file, left, start)
                start, left = start + written, left[written:]


class Shelf:
    """The files that the processes of a replica share."""

    def __init__(self, files: Sequence[int]) -> None:
        """``files`` are descriptors that ``new`` made."""
        self.files = tuple(files)

    @classmethod
    def new(cls) -> Self:
        """Empty files."""
        return cls([nameless_file(f"safelight-model-{number}") for number in range(SHELVED)])

    def free(self, taken: Collection[int]) -> int:
        """A file that none of those in use is."""
        return next(file for file in range(len(self.files)) if file not in taken)

    def put(self, file: int, model: ModelFile) -> None:
        """Replace what a file holds. For the coordinator alone, and never the file that answers."""
        self.clear(file)
        model.write(self.files[file])

    def read(self, file: int) -> ModelFile:
        """What a file holds.

        Raises:
            Corrupted: it was cleared, or is being filled, or was altered.
        """
        return ModelFile.read(self.files[file])

    def clear(self, file: int) -> None:
        """Give a file's memory back."""
        os.ftruncate(self.files[file], 0)
