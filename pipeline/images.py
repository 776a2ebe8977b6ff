"""Encoded bytes → checked uint8 pixels: the one decode path of preparation and of serving.

How each kind of image becomes pixels (``artifacts.PIXEL_FORMAT`` is raised whenever one of these changes):

- EXIF orientation is applied first. An animation gives its first frame, a multi-page TIFF its first page. Colour
  profiles and gamma are not applied.
- 16-bit samples become ``round(v * 255 / 65535)``; alpha is then composed over white, in 8 bits, rounded exactly.
- A palette becomes RGB, even if all its colours are grey. BMP and GIF know no other grey, so there a palette that is
  the grey ramp itself counts as grey. Grey of 1, 2 or 4 bits is stretched to 0..255.
- CMYK and YCCK become RGB by ``(255 - c) * (255 - k) / 255``. Floating-point, signed and 32-bit samples have no defined
  range and are refused by name, and so are CIELAB, 12-bit samples and other rarities.
- Grey from colour is ITU-R BT.601 luma, at full size; RGB from grey repeats the channel.
- An 8-bit grey or colour JPEG is decoded at 1/2, 1/4 or 1/8 of its size (by libjpeg, from fewer DCT coefficients)
  where the part that is used stays at least as large as the target. ``resizing`` makes the target's size of it.

PNG, 8-bit JPEG and deep TIFF are decoded by OpenCV, the rest by Pillow: for what both read, both give the same pixels
(a test proves it), and OpenCV is faster. Damage that a decoder notices is an error, never a grey area; what a
JPEG decoder conceals by the format's own rules (flipped bits in the middle of a scan) stays unseen.

Nothing is set globally here. Who decodes in several threads calls ``cv2.setNumThreads(1)`` once, at start-up: resizing
would otherwise start threads of its own in each of them.
"""

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.artifacts import PixelSpec
from pipeline.bands import bands_of, in_bands, joined
from pipeline.errors import InvalidImage
from pipeline.image_files import (
    MAX_BYTES,
    MAX_PIXELS,
    PNG_GREY,
    PNG_GREY_ALPHA,
    EncodedImage,
    examine,
    format_of,
    refuse_size,
)
from pipeline.resizing import Pixels, fitted, largest_reduction

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageHeader",
    "claims_to_be_image",
    "decode",
    "decode_examined",
    "decode_with_header",
    "encode_png",
    "examined",
    "read_header",
]

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
)
FOREIGN_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2"})
PILLOW: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "GIF": GifImageFile,
}
GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B"})
COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
GREY_KINDS = {"PNG": (PNG_GREY, PNG_GREY_ALPHA), "JPEG": (1,)}
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_EXTRA_SAMPLES = 258, 262, 338
WHITE_IS_ZERO = 0
UNSPECIFIED, PREMULTIPLIED = (0,), (1,)
REDUCTIONS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: cv2.IMREAD_GRAYSCALE,
}
"""OpenCV's flags by how many times smaller it decodes a JPEG, the largest first; with a flag for colour, in colour."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a header says: size after EXIF orientation, and 1 channel when stored in grey, with or without alpha."""

    format: str
    width: int
    height: int
    channels: Literal[1, 3]


def claims_to_be_image(name: str) -> bool:
    """Whether a file's name says that it is an image; formats that ``read_header`` refuses by name included."""
    path = PurePosixPath(name)
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES | FOREIGN_SUFFIXES


def read_header(data: bytes) -> ImageHeader:
    """Format, size and channels of an encoded image; decodes no pixel.

    Raises:
        InvalidImage: the bytes are not an image that ``decode`` reads; its text is a clause that says why.
    """
    image = examined(data)
    try:
        return _header(image, None if _is_for_opencv(image) else _opened(image))
    except InvalidImage:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes
        raise _invalid(data, error) from error


def decode(data: bytes, spec: PixelSpec) -> NDArray[np.uint8]:
    """The pixels of an encoded image, as ``spec`` wants them.

    Args:
        data: an encoded image.
        spec: size, channels and fit of the result.

    Returns:
        uint8 (spec.height, spec.width, spec.channels), C-contiguous, RGB where it has 3 channels.

    Raises:
        InvalidImage: the bytes cannot be decoded; its text is a clause that says why.
    """
    return decode_examined(examined(data), spec)


def examined(data: bytes) -> EncodedImage:
    """The first half of ``decode``, in microseconds: format, size and limits, before any pixel is decoded.

    Raises:
        InvalidImage: the bytes are no image that may be decoded; its text is a clause that says why.
    """
    try:
        return examine(data)
    except InvalidImage:
        raise
    except Exception as error:
        raise _invalid(data, error) from error


def decode_examined(image: EncodedImage, spec: PixelSpec) -> NDArray[np.uint8]:
    """The second half of ``decode``."""
    return _in_channels(_decoded(image, spec)[1], spec.channels)


def decode_with_header(data: bytes, spec: PixelSpec) -> tuple[ImageHeader, NDArray[np.uint8]]:
    """What ``read_header`` says, and what ``decode`` gives, but with 1 channel where the image is stored in grey.

    Raises:
        InvalidImage: the bytes cannot be decoded; its text is a clause that says why.
    """
    return _decoded(examined(data), spec)


def _decoded(image: EncodedImage, spec: PixelSpec) -> tuple[ImageHeader, NDArray[np.uint8]]:
    try:
        opened = None if _is_for_opencv(image) else _opened(image)
        header = _header(image, opened)
        offered = REDUCTIONS if _is_plain_jpeg(image) else ()
        reduction = largest_reduction(header.height, header.width, spec, offered)
        pixels = _by_opencv(image, reduction) if opened is None else _by_pillow(image, opened)
        return header, fitted(_upright(pixels, image.orientation), spec, reduction)
    except InvalidImage:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes, KeyError and MemoryError included
        raise _invalid(image.data, error) from error


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 (H, W, 1 or 3) as PNG, without loss; equal bytes for equal pixels and library versions."""
    stored = pixels[:, :, 0] if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(stored))
    if not done:
        raise ValueError(f"cannot encode {pixels.shape} pixels as PNG")
    return bytes(encoded)


def _invalid(data: bytes, error: Exception) -> InvalidImage:
    """Whatever a decoder raised, as InvalidImage."""
    return InvalidImage(_reason(format_of(data), error))


def _reason(format_name: str, error: Exception) -> str:
    text = str(error).lower()
    if any(sign in text for sign in ("unknown pixel mode", "unknown data organization", "unsupported bmp")):
        return f"this kind of {format_name} is not supported: convert it to 8-bit RGB or grey"
    cut = isinstance(error, EOFError) or any(sign in text for sign in ("truncated", "not enough", "end of file"))
    return f"{'truncated' if cut else 'damaged'} {format_name}"


def _is_for_opencv(image: EncodedImage) -> bool:
    return image.format == "PNG" or _is_plain_jpeg(image)


def _is_plain_jpeg(image: EncodedImage) -> bool:
    return image.format == "JPEG" and image.kind in (1, 3)


def _header(image: EncodedImage, opened: ImageFile | None) -> ImageHeader:
    """The header of an image that Pillow opened, or that OpenCV will decode."""
    if opened is None:
        width, height, grey = image.width, image.height, image.kind in GREY_KINDS[image.format]
    else:
        (width, height), grey = opened.size, opened.mode in GREY_MODES
    if image.orientation > 4:
        width, height = height, width
    return ImageHeader(image.format, width, height, 1 if grey else 3)


def _by_opencv(image: EncodedImage, reduction: int = 1) -> Pixels:
    if image.format == "JPEG":
        colour = cv2.IMREAD_COLOR_RGB if image.kind == 3 else 0
        return _imdecoded(image, REDUCTIONS[reduction] | colour | cv2.IMREAD_IGNORE_ORIENTATION, reduction)
    return in_bands(_imdecoded(image, cv2.IMREAD_UNCHANGED), partial(_png_pixels, image))


def _png_pixels(image: EncodedImage, samples: NDArray[Any]) -> Pixels:
    """Some rows of a PNG."""
    pixels = _opaque(samples)
    if image.transparent is not None:
        key = image.transparent[::-1]
        pixels = _over_white(pixels, cv2.bitwise_not(cv2.inRange(samples, key, key)))
    # OpenCV repeats grey in three channels where it comes with alpha.
    return pixels[:, :, 0] if image.kind == PNG_GREY_ALPHA else pixels


def _imdecoded(image: EncodedImage, flags: int, reduction: int = 1) -> NDArray[Any]:
    """OpenCV's samples, BGR(A) unless ``flags`` say otherwise; a TIFF comes upright."""
    samples: NDArray[Any] | None = cv2.imdecode(np.frombuffer(image.data, np.uint8), flags)
    expected = sorted(-(-side // reduction) for side in (image.height, image.width))
    if samples is None or sorted(samples.shape[:2]) != expected:
        raise InvalidImage(f"damaged {image.format}")
    return samples


def _by_pillow(image: EncodedImage, opened: ImageFile) -> Pixels:
    if opened.mode.startswith("I;16"):
        pixels = _eight_bits(np.asarray(opened).astype(np.uint16))
        return cv2.bitwise_not(pixels) if _tag(opened, TIFF_PHOTOMETRIC) == WHITE_IS_ZERO else pixels
    if _bits(opened) == 16:
        # Pillow would cut the lower byte off.
        samples = _imdecoded(image, cv2.IMREAD_UNCHANGED)
        return in_bands(samples[:, :, :3] if _tag(opened, TIFF_EXTRA_SAMPLES) == UNSPECIFIED else samples, _opaque)
    opened.load()
    # Pillow's own bands, since an array of all of it would be one more copy.
    bands = (opened.crop((0, top, opened.width, bottom)) for top, bottom in bands_of(opened.height, opened.width))
    return joined((opened.height, opened.width), map(_pillow_pixels, bands))


def _pillow_pixels(rows: Image) -> Pixels:
    """Some rows of an image that Pillow has decoded."""
    plain = "L" if rows.mode in GREY_MODES else "RGB"
    if not rows.has_transparency_data:
        return np.asarray(rows.convert(plain))
    pixels = np.asarray(rows.convert(plain + "A"))
    colour = pixels[:, :, 0] if plain == "L" else pixels[:, :, :3]
    return _over_white(np.ascontiguousarray(colour), np.ascontiguousarray(pixels[:, :, -1]))


def _opened(image: EncodedImage) -> ImageFile:
    """The image as Pillow sees it, header read and found to be one that we decode."""
    opened = PILLOW[image.format](BytesIO(image.data))
    refuse_size(*opened.size)
    bits = _bits(opened)
    deep = opened.mode in ("RGB", "RGBA") and _tag(opened, TIFF_EXTRA_SAMPLES) != PREMULTIPLIED
    if opened.mode not in GREY_MODES | COLOUR_MODES:
        what = {"F": "floating-point", "I": "signed or 32-bit", "LAB": "CIELAB"}.get(opened.mode, opened.mode)
    elif bits > 8 and not (bits == 16 and (deep or opened.mode.startswith("I;16"))):
        premultiplied = "premultiplied " if _tag(opened, TIFF_EXTRA_SAMPLES) == PREMULTIPLIED else ""
        what = f"{premultiplied}{bits}-bit {opened.mode}"
    else:
        return opened
    raise InvalidImage(f"{image.format} of {what} samples is not supported: convert it to 8-bit RGB or grey")


def _bits(opened: ImageFile) -> int:
    """Bits per sample as a TIFF states them; 8 for the other formats, which know no more."""
    return max(_tag(opened, TIFF_BITS) or (1,)) if isinstance(opened, TiffImageFile) else 8


def _tag(opened: ImageFile, tag: int) -> Any:
    return opened.tag_v2.get(tag) if isinstance(opened, TiffImageFile) else None


def _eight_bits(samples: NDArray[Any]) -> Pixels:
    """Samples of 8 or 16 bits as ``round(v * 255 / 65535)``."""
    return cv2.convertScaleAbs(samples, alpha=1 / 257) if samples.dtype == np.uint16 else samples


def _opaque(samples: NDArray[Any]) -> Pixels:
    """OpenCV's grey, BGR or BGRA samples as uint8 grey or RGB, over white."""
    pixels = _eight_bits(samples)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return _over_white(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB), np.ascontiguousarray(pixels[:, :, 3]))


def _over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    """``colour`` (H, W[, 3]) with opacity ``alpha`` (H, W) on white: 255 - (255 - colour) * alpha / 255, rounded."""
    spread = alpha if colour.ndim == 2 else cv2.merge([alpha] * 3)
    return cv2.bitwise_not(cv2.multiply(cv2.bitwise_not(colour), spread, scale=1 / 255))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """EXIF orientation applied (CIPA DC-008, tag 274)."""
    if orientation == 1:
        return pixels
    turned = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(turned[::rows, ::columns])


def _in_channels(pixels: Pixels, channels: int) -> Pixels:
    return pixels if pixels.shape[2] == channels else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
