import io
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import images, resizing
from pipeline.artifacts import PixelSpec


@pytest.mark.parametrize(
    ("height", "width", "wanted", "times"),
    [
        (480, 640, (60, 60), 8),
        (480, 640, (61, 61), 4),
        (480, 640, (240, 320), 2),
        (480, 640, (241, 320), 1),
        (640, 160, (320, 80), 2),
        (640, 160, (80, 320), 1),
        (480, 640, (600, 60), 1),
    ],
)
def test_an_image_is_decoded_no_smaller_than_wanted(
    height: int, width: int, wanted: tuple[int, int], times: int
) -> None:
    """An image is decoded smaller as far as no side gets shorter than the target's, and never where none can."""
    spec = PixelSpec(height=wanted[0], width=wanted[1], channels=3, fit="stretch")
    assert resizing.largest_reduction(height, width, spec, (8, 4, 2, 1)) == times
    assert resizing.largest_reduction(height, width, spec, ()) == 1


def test_only_what_is_used_must_stay_large_enough() -> None:
    """Of a wide picture that is cropped, the cropped part counts, not the whole."""
    spec = PixelSpec(height=100, width=100, channels=3)
    assert resizing.largest_reduction(200, 4000, spec, (8, 4, 2, 1)) == 2


def _photograph(width: int, height: int) -> Image.Image:
    """Noise like a photograph's: its spectrum falls with the frequency, and colours vary less than brightness."""
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    frequency = np.hypot(across, down)
    frequency[0, 0] = np.inf
    waves = np.random.default_rng(11).normal(size=(3, 2, *frequency.shape))
    planes = np.fft.irfft2((waves[:, 0] + 1j * waves[:, 1]) / frequency, s=(height, width))
    scaled = planes / planes.std() * np.array([50, 15, 15])[:, None, None]
    return Image.fromarray((128 + scaled).clip(0, 255).astype(np.uint8).transpose(1, 2, 0), "YCbCr").convert("RGB")


@pytest.mark.parametrize(("kind", "bound"), [("PNG", 2.5), ("JPEG", 5)])
@pytest.mark.parametrize("side", [300, 224, 193, 188, 150, 112, 100, 64, 47, 32])
def test_resizing_is_close_to_pillows_bilinear_filter(kind: str, bound: float, side: int) -> None:
    """At any ratio even a picture full of detail differs in the mean by little from what Pillow makes of it."""
    file = io.BytesIO()
    _photograph(512, 384).save(file, kind, quality=90)
    ours = images.decode(file.getvalue(), PixelSpec(height=side, width=side, channels=3)).astype(int)
    theirs = Image.open(file).resize((side, side), Image.Resampling.BILINEAR, box=(64, 0, 448, 384))
    assert np.abs(ours - np.asarray(theirs)).mean() < bound


def test_every_vector_unit_gives_the_same_pixels() -> None:
    """With AVX2 and without, where a processor has it, resizing gives the same bytes at every ratio."""
    program = """
import hashlib, numpy as np
from pipeline.artifacts import PixelSpec
from pipeline.resizing import fitted
random, told = np.random.default_rng(12), hashlib.sha256()
for side in range(8, 120):
    noise = random.integers(0, 256, (101, 119, 3), np.uint8)
    told.update(fitted(noise, PixelSpec(height=side, width=side, channels=3), 1).tobytes())
print(told.hexdigest())
"""
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"OPENCV_CPU_DISABLE": disabled},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for disabled in ("", "AVX2,AVX,FP16")
    ]
    assert digests[0] == digests[1]


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), st.integers(8, 40), st.sampled_from(["crop", "stretch"])
)
@settings(max_examples=150)
def test_a_plain_colour_stays_plain(width: int, height: int, rows: int, columns: int, fit: Any) -> None:
    """Whatever the sizes, an image of one colour becomes exactly that colour."""
    stored = np.full((height, width, 3), (13, 200, 77), np.uint8)
    resized = resizing.fitted(stored, PixelSpec(height=rows, width=columns, channels=3, fit=fit), 1)
    assert resized.shape == (rows, columns, 3)
    assert resized.flags.c_contiguous
    assert (resized == (13, 200, 77)).all()


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_fitting_image_is_never_resampled(fit: Any) -> None:
    """At the target's size the pixels are the stored ones, for crop and stretch alike."""
    stored = np.random.default_rng(7).integers(0, 256, (32, 48, 3), np.uint8)
    np.testing.assert_array_equal(
        resizing.fitted(stored, PixelSpec(height=32, width=48, channels=3, fit=fit), 1), stored
    )


@pytest.mark.parametrize(("stored", "wanted", "channels"), [((), 3, 1), ((), 1, 1), ((3,), 1, 1), ((3,), 3, 3)])
def test_colour_is_never_made_of_grey(stored: tuple[int, ...], wanted: int, channels: int) -> None:
    """One channel comes out where the stored or the wanted pixels have one, at the target's size and at another."""
    for side in (16, 20):
        resized = resizing.fitted(
            np.zeros((20, 20, *stored), np.uint8), PixelSpec(height=side, width=side, channels=wanted), 1
        )
        assert resized.shape == (side, side, channels)


@pytest.mark.parametrize(("width", "height"), [(100, 40), (40, 100), (101, 40), (41, 101)])
def test_crop_takes_the_largest_centred_part(width: int, height: int) -> None:
    """What lies outside the centred square leaves no trace; what lies inside is all used."""
    side = min(width, height)
    stored = np.zeros((height, width), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    stored[top : top + side, left : left + side] = 255
    assert (resizing.fitted(stored, PixelSpec(height=16, width=16, channels=1), 1) == 255).all()


def test_one_axis_shrinks_while_the_other_grows_without_aliasing() -> None:
    """Stripes of one pixel along a shrinking axis average to grey, also when the other axis grows."""
    stored = np.zeros((8, 64), np.uint8)
    stored[:, ::2] = 200
    spec = PixelSpec(height=16, width=8, channels=1, fit="stretch")
    assert (resizing.fitted(stored, spec, 1) == 100).all()
