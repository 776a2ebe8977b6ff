"""What tests of the decoder share: images of which every pixel is known, and pixels to make others of."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import images
from pipeline.artifacts import PixelSpec

GOLDEN = Path(__file__).parent / "unit" / "pipeline" / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"]
SMALL = PixelSpec(height=8, width=8, channels=3)


def noise(seed: int, *shape: int) -> Any:
    """Random pixels, uint8 of ``shape``; another seed is another image."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def same_size(data: bytes) -> PixelSpec:
    """A spec that neither resizes an encoded image nor changes its channels."""
    header = images.read_header(data)
    return PixelSpec(height=header.height, width=header.width, channels=header.channels)
