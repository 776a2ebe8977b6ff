"""Feeds the decoder with what libFuzzer makes of good images, until something else than InvalidImage comes out of it.

``make fuzz SECONDS=60``; needs atheris, which is no part of the test tools because it is there for few platforms.

- The seeds are the golden images and files built to exhaust a decoder; what a run finds interesting is kept in the
  corpus folder and is where the next run goes on.
- Found means: another exception, pixels of another shape, a header that another reading of the same bytes contradicts,
  more than ``MEMORY_MB`` resident, or longer than ``SECONDS`` for one input. The bytes are written into the working
  folder (``crash-…``, ``oom-…``, ``timeout-…``); they belong into a test.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline", "PIL"]):
    from pipeline import images
    from pipeline.artifacts import PixelSpec
    from pipeline.errors import InvalidImage

import cv2
import hostile_images

GOLDEN = Path(__file__).parents[1] / "unit" / "pipeline" / "golden"
MEMORY_MB, SECONDS, LARGEST = 2048, 10, 1 << 16
SPECS = tuple(
    PixelSpec(height=height, width=width, channels=channels, fit=fit)
    for height, width in ((28, 28), (8, 64))
    for channels in (1, 3)
    for fit in ("crop", "stretch")
)


def decodes_or_refuses(data: bytes) -> None:
    """Decode ``data`` in one of a few ways, which its last byte chooses."""
    spec = SPECS[data[-1] % len(SPECS)] if data else SPECS[0]
    try:
        header, pixels = images.decode_with_header(data, spec)
    except InvalidImage:
        return
    assert pixels.shape == (spec.height, spec.width, min(header.channels, spec.channels)), pixels.shape
    assert header == images.read_header(data)


def main(arguments: Sequence[str]) -> None:
    """Fuzz; ``arguments`` are a folder for the corpus, and libFuzzer's own flags."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        golden = {
            path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.suffix not in {".py", ".json", ".npz"}
        }
        for name, data in {**golden, **hostile_images.small()}.items():
            (Path(folder) / name).write_bytes(data)
        limits = [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS}", f"-max_len={LARGEST}"]
        atheris.Setup([sys.argv[0], *limits, *arguments, folder], decodes_or_refuses)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
