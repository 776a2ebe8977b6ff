"""Decoded pixels of any size → the size that is wanted: crop and resizing, arrays in, arrays out.

How it is done (``artifacts.PIXEL_FORMAT`` is raised whenever one of these changes):

- ``crop`` takes the largest centred part of the target's shape of what was decoded. Resizing is an antialiased bilinear
  filter, close to Pillow's (docs/decisions/decoding.md has the differences): an axis of more than twice the target's
  length is averaged to twice of it, a shrinking axis is smoothed by three taps, then all is interpolated bilinearly.
  An image of the target's size is never resampled.
- Grey from colour is made before any of it, at full size.
- All but the average of a long axis, which sums in 32-bit floats, is integer arithmetic: the same on every machine.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import PixelSpec

Pixels: TypeAlias = NDArray[Any]
"""uint8 (H, W) in grey or (H, W, 3) in RGB; OpenCV's type stubs know no dtype that narrow."""

NO_TIE = 2 / (1 << 16)
"""Added before rounding. OpenCV smooths bytes in 16-bit fixed point and rounds halves up or to even, whichever its
vector unit does; sums of even weights plus this are never halves, so that all machines round alike."""


def largest_reduction(height: int, width: int, spec: PixelSpec, offered: Iterable[int]) -> int:
    """How many times smaller an image can be decoded while no side of what is used gets shorter than the target's.

    Args:
        height: of the image at full size, seen upright, in pixels.
        width: the same.
        spec: what is wanted.
        offered: how many times smaller a decoder can do it, the largest first.

    Returns:
        The first of ``offered`` that does so; 1 where none does.
    """
    rows, columns = _shown(height, width, spec)
    return next((times for times in offered if rows >= times * spec.height and columns >= times * spec.width), 1)


def fitted(pixels: Pixels, spec: PixelSpec, reduction: int) -> Pixels:
    """Pixels as ``spec`` wants them, but in grey where they are grey: colour is never made of it here.

    Args:
        pixels: uint8 (H, W) or (H, W, 3), upright.
        spec: size, channels and fit of the result.
        reduction: how many times smaller than stored they were decoded.

    Returns:
        uint8 (spec.height, spec.width, 1 or 3), C-contiguous; 1 channel where ``pixels`` or ``spec`` have one.
    """
    if spec.channels == 1 and pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if pixels.shape[:2] != (spec.height, spec.width):
        pixels = _resized(_cropped(pixels, spec), spec, reduction)
    return np.ascontiguousarray(pixels).reshape(spec.height, spec.width, -1)


def _cropped(pixels: Pixels, spec: PixelSpec) -> Pixels:
    """The part that is used; an odd rest goes right or below."""
    height, width = pixels.shape[:2]
    rows, columns = _shown(height, width, spec)
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]


def _shown(height: int, width: int, spec: PixelSpec) -> tuple[int, int]:
    """Rows and columns of the part that is used: all, or the largest of the target's shape."""
    if spec.fit == "stretch":
        return height, width
    rows = min(height, max(1, round(width * spec.height / spec.width)))
    columns = min(width, max(1, round(height * spec.width / spec.height)))
    return rows, columns


def _resized(pixels: Pixels, spec: PixelSpec, reduction: int) -> Pixels:
    """An antialiased bilinear filter; ``reduction`` tells how many times smaller the image was decoded.

    At a ratio of 2 the taps below and bilinear interpolation together are the triangle filter itself, 1 3 3 1. Where
    pixels are means of several already, a narrower filter comes closer to the triangle.
    """
    height, width = pixels.shape[:2]
    rows, columns = min(height, 2 * spec.height), min(width, 2 * spec.width)
    if (rows, columns) != (height, width):
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    across = _taps(columns / spec.width, averaged=reduction > 1 or columns < width)
    down = _taps(rows / spec.height, averaged=reduction > 1 or rows < height)
    if across[0] or down[0]:
        pixels = cv2.sepFilter2D(pixels, -1, across, down, delta=NO_TIE, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(pixels, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR)


def _taps(ratio: float, *, averaged: bool) -> NDArray[Any]:
    """Three weights that smooth an axis before it shrinks by ``ratio``, 2 at most; in even 256ths, see NO_TIE."""
    side = 2 * round(128 * min(max(ratio - 1, 0) / 4, 1 / 6 if averaged else 1 / 4))
    return np.array([side, 256 - 2 * side, side], np.float32) / 256
