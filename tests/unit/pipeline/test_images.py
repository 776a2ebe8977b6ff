"""Every kind of image gives the very pixels that its definition, or Pillow, gives."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from golden_images import CASES, GOLDEN, SMALL, noise, same_size
from hostile_images import saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline import bands, image_files, images
from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidImage


@pytest.fixture(scope="module")
def pixels() -> dict[str, Any]:
    """What each golden image must decode to, by the case's name."""
    with np.load(GOLDEN / "pixels.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_images_decode_to_the_very_pixels_that_were_defined(
    case: dict[str, Any], pixels: dict[str, Any]
) -> None:
    """Every kind of image gives the pixels that its definition gives, and its header tells size and channels."""
    data = (GOLDEN / case["file"]).read_bytes()
    decoded = images.decode(data, PixelSpec(**case["spec"]))
    np.testing.assert_array_equal(decoded, pixels[case["name"]])
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert images.read_header(data).channels == (1 if case["grey"] else 3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_cut_file_is_refused_or_complete(case: dict[str, Any], pixels: dict[str, Any]) -> None:
    """Cut anywhere, an image is refused, unless no pixel was lost; it never comes back partly grey."""
    data = (GOLDEN / case["file"]).read_bytes()
    for length in range(0, len(data), max(1, len(data) // 200)):
        try:
            decoded = images.decode(data[:length], PixelSpec(**case["spec"]))
        except InvalidImage:
            continue
        np.testing.assert_array_equal(decoded, pixels[case["name"]], f"cut at {length} of {len(data)}")


JPEG_OPTIONS = st.fixed_dictionaries(
    {
        "quality": st.sampled_from([10, 50, 75, 95, 100]),
        "progressive": st.booleans(),
        "restart_marker_blocks": st.integers(0, 4),
    },
    optional={"subsampling": st.sampled_from([0, 1, 2])},
)


@given(st.integers(1, 70), st.integers(1, 70), JPEG_OPTIONS, st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_jpegs_decode_as_by_pillow(width: int, height: int, options: dict[str, Any], seed: int) -> None:
    """Any 8-bit grey or colour JPEG gives the very pixels that Pillow gives."""
    colour = Image.fromarray(noise(seed, 4, 4, 3)).resize((width, height))
    data = saved(colour if "subsampling" in options else colour.convert("L"), "JPEG", **options)
    np.testing.assert_array_equal(_at_full_size(data), np.asarray(Image.open(io.BytesIO(data))))


@given(st.sampled_from(["L", "RGB"]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.integers(0, 2**32))
@settings(max_examples=80)
def test_pngs_decode_as_by_pillow(mode: str, width: int, height: int, level: int, seed: int) -> None:
    """Any 8-bit grey or RGB PNG gives the very pixels that Pillow gives."""
    image = Image.fromarray(noise(seed, 4, 4, 3)).resize((width, height)).convert(mode)
    data = saved(image, "PNG", compress_level=level)
    np.testing.assert_array_equal(_at_full_size(data), np.asarray(image))


def _at_full_size(data: bytes) -> Any:
    return _decoded_smaller(data, 1)


def _decoded_smaller(data: bytes, times: int) -> Any:
    """The pixels as decoded: sizes below a PixelSpec's least are worth comparing too."""
    return images._by_opencv(image_files.examine(data), times)  # noqa: SLF001 - see above


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([2, 4, 8]), JPEG_OPTIONS, st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_jpegs_are_decoded_smaller_as_by_pillow(
    width: int, height: int, times: int, options: dict[str, Any], seed: int
) -> None:
    """Any 8-bit grey or colour JPEG, decoded 2, 4 or 8 times smaller, gives the very pixels that Pillow gives."""
    colour = Image.fromarray(noise(seed, 4, 4, 3)).resize((width, height))
    data = saved(colour if "subsampling" in options else colour.convert("L"), "JPEG", **options)
    image = Image.open(io.BytesIO(data))
    image.draft(image.mode, (width // times, height // times))
    np.testing.assert_array_equal(_decoded_smaller(data, times), np.asarray(image))


def test_a_turned_jpeg_is_decoded_smaller_before_it_is_turned() -> None:
    """A lying picture that stands upright by EXIF comes out as Pillow's smaller decoding of it, turned."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    data = saved(Image.fromarray(noise(10, 20, 80, 3)).resize((640, 160)), "JPEG", exif=exif)
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (320, 80))
    turned = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(images.decode(data, PixelSpec(height=320, width=80, channels=3)), turned)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_applied_as_by_pillow(orientation: int, order: str) -> None:
    """All eight orientations, and a wrong one, in both byte orders, turn the picture as Pillow does."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = b"Exif\0\0" + mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    data = saved(Image.fromarray(noise(5, 24, 40, 3)), "JPEG", exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    header = images.read_header(data)
    assert (header.height, header.width) == turned.shape[:2]
    np.testing.assert_array_equal(images.decode(data, same_size(data)), turned)


def test_a_damaged_exif_block_changes_nothing() -> None:
    """EXIF that cannot be read counts as absent; the picture is decoded."""
    picture = Image.fromarray(noise(6, 16, 24, 3))
    plain = saved(picture, "JPEG")
    for exif in (b"II*\0\xff\xff\xff\x7f", b"MM", b"XX*\0", b"II*\0\x08\0\0\0\xff\xff"):
        data = saved(picture, "JPEG", exif=b"Exif\0\0" + exif)
        np.testing.assert_array_equal(images.decode(data, same_size(data)), images.decode(plain, same_size(plain)))


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 3]), st.integers(0, 2**32))
@settings(max_examples=60)
def test_encoding_loses_nothing(width: int, height: int, channels: int, seed: int) -> None:
    """PNG of any pixels, read by Pillow, gives those pixels."""
    stored = noise(seed, height, width, channels)
    reread = np.asarray(Image.open(io.BytesIO(images.encode_png(stored)))).reshape(stored.shape)
    np.testing.assert_array_equal(reread, stored)


def test_sixteen_bits_are_scaled_by_value() -> None:
    """Each of the 65,536 values becomes round(v * 255 / 65535)."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = saved(Image.fromarray(values), "PNG")
    exact = (values.astype(np.int64) * 510 + 65535) // 131070
    np.testing.assert_array_equal(images.decode(data, same_size(data))[:, :, 0], exact)


def test_alpha_over_white_is_rounded_exactly() -> None:
    """Each of the 65,536 pairs of value and alpha gives the rounded mean with white."""
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    data = saved(Image.merge("LA", [Image.fromarray(value), Image.fromarray(alpha)]), "PNG")
    exact = np.rint((value.astype(float) * alpha + 255.0 * (255 - alpha.astype(float))) / 255)
    np.testing.assert_array_equal(images.decode(data, same_size(data))[:, :, 0], exact)


def test_bytes_after_the_end_of_an_image_are_ignored() -> None:
    """Trailing bytes, as phones append, change no pixel."""
    for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF"):
        data = saved(Image.fromarray(noise(4, 16, 16)), kind)
        spec = same_size(data)
        np.testing.assert_array_equal(images.decode(data + b"appended" * 50, spec), images.decode(data, spec))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_large_image_is_converted_as_a_small_one(mode: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Band by band or at once, the pixels are the same."""
    image = Image.fromarray(noise(3, 37, 23, 4)).convert(mode if kind != "WEBP" else "RGBA")
    data = saved(image, kind, lossless=True)
    at_once = images.decode(data, SMALL)
    monkeypatch.setattr(bands, "BAND_PIXELS", 23 * 5)
    np.testing.assert_array_equal(images.decode(data, SMALL), at_once)


def test_threads_decode_alike() -> None:
    """Eight threads decoding different formats at once get what one thread gets."""
    files = [(GOLDEN / case["file"]).read_bytes() for case in CASES]
    alone = [images.decode(data, SMALL) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: images.decode(data, SMALL), files * 4))
    for index, decoded in enumerate(together):
        np.testing.assert_array_equal(decoded, alone[index % len(files)])


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("a.png", True),
        ("A B.JPG", True),
        ("cats/é.Jpeg", True),
        ("x.heic", True),
        ("x.AVIF", True),
        ("x.tif", True),
        ("Thumbs.db", False),
        (".DS_Store", False),
        ("._a.png", False),
        (".png", False),
        ("cats/.hidden.jpg", False),
        ("notes.txt", False),
        ("labels.csv", False),
        ("png", False),
        ("", False),
    ],
)
def test_names_claim_to_be_images_by_suffix(name: str, claims: bool) -> None:
    """Suffixes count in any case; hidden files, system files and texts do not claim to be images."""
    assert images.claims_to_be_image(name) is claims
