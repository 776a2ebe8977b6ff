"""Resizing as docs/decisions/decoding.md defines it, computed in integers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def resampled(pixels: Array, rows: int, columns: int, *, averaged: bool = False) -> Array:
    """Pixels (H, W, 3) at another size; ``averaged`` says that each is a mean already."""
    height, width = pixels.shape[:2]
    smooth = pixels
    for length in (rows, columns):
        boxes = min(len(smooth), 2 * length)
        smooth = means(smooth, boxes).swapaxes(0, 1)
    smooth = np.floor(smooth + 0.5).astype(np.int64)
    for length, before in ((rows, height), (columns, width)):
        smooth = smoothed(smooth, len(smooth) / length, averaged or len(smooth) < before).swapaxes(0, 1)
    smooth = (smooth + 2 + (1 << 15)) >> 16
    first, weights = between(smooth.shape[1], columns)
    inside = (first >= 0) & (first < smooth.shape[1] - 1)
    weights = np.where(inside, weights, [[2048], [0]])[:, None, :, None]
    across = [smooth[:, (first + step).clip(0, smooth.shape[1] - 1)] for step in (0, 1)]
    line = across[0] * weights[0] + across[1] * weights[1]
    first, weights = between(len(smooth), rows)
    down = [line[(first + step).clip(0, len(smooth) - 1)] >> 4 for step in (0, 1)]
    parts = [part * weight[:, None, None] >> 16 for part, weight in zip(down, weights, strict=True)]
    return (parts[0] + parts[1] + 2) >> 2


def means(pixels: Array, boxes: int) -> Array:
    """The first axis cut into equal boxes, each one's mean."""
    edges = np.linspace(0, len(pixels), boxes + 1)
    at = np.arange(len(pixels))
    inside = (np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)).clip(0, 1)
    return np.tensordot(inside, pixels, 1) * boxes / len(pixels)


def smoothed(pixels: Array, ratio: float, averaged: bool) -> Array:
    """256 times the first axis under three taps."""
    side = 2 * round(128 * min(max(ratio - 1, 0) / 4, 1 / 6 if averaged else 1 / 4))
    padded = np.concatenate([pixels[:1], pixels, pixels[-1:]])
    return side * (padded[:-2] + padded[2:]) + (256 - 2 * side) * padded[1:-1]


def between(length: int, wanted: int) -> tuple[Array, Array]:
    """The first of the two neighbours of each wanted sample (``wanted``), and their weights in 2048ths (2, wanted)."""
    place = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(np.float32)
    first = np.floor(place)
    part = place - first
    return first.astype(np.int64), np.rint(np.stack([1 - part, part]) * 2048).astype(np.int64)
