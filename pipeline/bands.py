"""Large pixels converted a band of rows at a time.

What a decoder gives takes up to 8 bytes per pixel, and some conversions several steps: of 50 million pixels each copy
of the whole would be hundreds of megabytes, which a small container does not have.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[Any]
"""(H, W) or (H, W, channels)."""

BAND_PIXELS = 1 << 20


def in_bands(samples: Pixels, convert: Callable[[Pixels], Pixels]) -> Pixels:
    """What ``convert`` makes of each pixel of ``samples``, as uint8."""
    height, width = samples.shape[:2]
    if height * width <= BAND_PIXELS:
        return convert(samples)
    return joined((height, width), (convert(samples[top:bottom]) for top, bottom in bands_of(height, width)))


def bands_of(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Where each band begins and ends, of about ``BAND_PIXELS`` and at least one row."""
    rows = max(1, BAND_PIXELS // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def joined(size: tuple[int, int], bands: Iterable[Pixels]) -> Pixels:
    """uint8 bands, each below the other, as one image of ``size``: height and width."""
    whole: Pixels | None = None
    top = 0
    for band in bands:
        if len(band) == size[0]:
            return band
        if whole is None:
            whole = np.empty((*size, *band.shape[2:]), np.uint8)
        whole[top : top + len(band)] = band
        top += len(band)
    if whole is None:
        raise ValueError("there is no band")
    return whole
