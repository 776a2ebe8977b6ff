"""Feeds the decoder with what libFuzzer makes of good and of hostile images, until one breaks its promise.

``make fuzz SECONDS=60``; needs atheris, which is no part of the test tools because it is there for few platforms.

- The seeds are the golden images and files built to exhaust a decoder; what a run finds interesting is kept in the
  corpus folder, where the next run goes on.
- Broken is: another exception than InvalidImage, pixels of another shape, a header that another reading of the same
  bytes contradicts, more than ``MEMORY_MB`` resident, or longer than ``SECONDS`` for one input. The bytes are written
  into the working folder (``crash-…``, ``oom-…``, ``timeout-…``); they belong into a test.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline", "PIL"]):
    from decoder_property import decodes_or_refuses

import cv2
import hostile_images

GOLDEN = Path(__file__).parents[1] / "unit" / "pipeline" / "golden"
OTHER_FILES = {".py", ".json", ".npz"}
MEMORY_MB, SECONDS, LARGEST = 2048, 10, 1 << 16


def main(arguments: Sequence[str]) -> None:
    """Fuzz; ``arguments`` are a folder for the corpus, and libFuzzer's own flags."""
    cv2.setNumThreads(1)
    found = [path for path in GOLDEN.iterdir() if path.is_file() and path.suffix not in OTHER_FILES]
    seeds = {path.name: path.read_bytes() for path in found}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (seeds | dict(hostile_images.small())).items():
            (Path(folder) / name).write_bytes(data)
        limits = [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS}", f"-max_len={LARGEST}"]
        atheris.Setup([sys.argv[0], *limits, *arguments, folder], decodes_or_refuses)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
