"""What an encoded image says of itself: format, size, orientation and how it is stored, read without decoding a pixel.

- The first bytes decide the format, never a name. Only the six formats of ``FORMATS`` are read; others that people meet
  (HEIC, AVIF, JPEG XL, JPEG 2000) are recognised to be named.
- Sizes are checked before any decoder sees the bytes, and so is what would make a decoder work for nothing: PNG chunks
  without end, JPEGs of a thousand scans, TIFF directories that name the same bytes over and over.
- PNG and JPEG are walked to their end marker, so a cut file is refused here. A JPEG that lacks only its end marker is
  refused too: without decoding it cannot be told from a cut one.
- A PNG is reduced to its critical chunks (and a palette's transparency): profiles, texts, gamma and animation frames
  never reach the decoder, which would warn about some and apply others.
- EXIF orientation comes from JPEG's APP1, PNG's eXIf and WebP's EXIF (all honoured here) and from TIFF's own tag, which
  the decoders of TIFF apply themselves. A damaged EXIF block counts as absent.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import InvalidImage

MAX_PIXELS = 50_000_000
MAX_BYTES = 100 << 20

Format = Literal["PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF"]
SUPPORTED = "PNG, JPEG, WebP, BMP, TIFF, GIF"

MAX_PARTS = 100_000
"""Chunks of a PNG, segments of a JPEG: 50 million pixels in libpng's chunks of 8 KiB are 25,000 at most."""
MAX_SCANS = 100
"""Of a progressive JPEG: encoders write about ten; each one costs a pass over all pixels."""
MAX_TIFF_VALUES = 1 << 18
"""Of one TIFF tag that holds numbers: one strip per row of a very tall image stays well below."""

JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
"""The next marker, entropy-coded data skipped: not a stuffed zero, a fill byte, a restart or TEM."""
JPEG_FRAMES = {0xC0, 0xC1, 0xC2}
JPEG_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
PNG_GREY, PNG_RGB, PNG_PALETTE, PNG_GREY_ALPHA, PNG_RGBA = 0, 2, 3, 4, 6
PNG_DEPTHS = {
    PNG_GREY: (1, 2, 4, 8, 16),
    PNG_RGB: (8, 16),
    PNG_PALETTE: (1, 2, 4, 8),
    PNG_GREY_ALPHA: (8, 16),
    PNG_RGBA: (8, 16),
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_FIRST = b"\0\0\0\rIHDR"
TIFF_ORDERS = {b"II": "<", b"MM": ">"}
TIFF_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
TIFF_SHORT, TIFF_LONG = 3, 4
TIFF_DIRECTORIES = (0x8769, 0x8825, 0xA005)
ORIENTATION = 0x0112
BMP_RUN_LENGTHS = (1, 2)

FOREIGN = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftyphevc", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image before decoding.

    Attributes:
        format: one of the six.
        width: columns as stored, before orientation; for TIFF as its tags say.
        height: rows as stored.
        data: the bytes that a decoder shall see.
        kind: PNG's colour type, JPEG's number of components; 0 for formats that Pillow has to open first.
        bits: per sample, where ``kind`` is set.
        transparent: PNG's colour that stands for full transparency, one number per channel, or None.
        orientation: EXIF's 1 to 8, still to be applied.
    """

    format: Format
    width: int
    height: int
    data: bytes
    kind: int = 0
    bits: int = 8
    transparent: tuple[int, ...] | None = None
    orientation: int = 1


def examine(data: bytes) -> EncodedImage:
    """What ``data`` says of itself.

    Raises:
        InvalidImage: it is no image of the six formats, cut off, too large, or built to exhaust a decoder.
    """
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"{len(data) >> 20} MiB, the limit is {MAX_BYTES >> 20}")
    name = format_of(data)
    try:
        encoded = _READERS[name](data)
    except (struct.error, IndexError) as error:
        raise InvalidImage(f"truncated {name}") from error
    refuse_size(encoded.width, encoded.height)
    return encoded


def refuse_size(width: int, height: int) -> None:
    """Raise InvalidImage unless the size is one that is decoded."""
    if width <= 0 or height <= 0:
        raise InvalidImage(f"no pixels: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise InvalidImage(f"{width} x {height} pixels, the limit is {MAX_PIXELS // 1_000_000} million")


def format_of(data: bytes) -> Format:
    """The format that the first bytes name; InvalidImage says what they are where it is none of ours."""
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    raise InvalidImage(_why_unknown(data))


def _why_unknown(data: bytes) -> str:
    for offset, signature, name in FOREIGN:
        if data.startswith(signature, offset):
            return f"{name} is not supported: convert it to JPEG or PNG"
    if not data:
        return "empty file"
    return f"not an image of a supported format ({SUPPORTED})"


def _png(data: bytes) -> EncodedImage:
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    if data[8:16] != PNG_FIRST or bits not in PNG_DEPTHS.get(kind, ()):
        raise InvalidImage("damaged PNG")
    view = memoryview(data)
    kept: list[memoryview] = []
    dropped = False
    key = exif = b""
    for name, start, end in _png_chunks(data):
        if name == b"tRNS":
            key = data[start + 8 : end - 4]
        elif name == b"eXIf":
            exif = data[start + 8 : end - 4]
        if name[0] & 0x20 and not (name == b"tRNS" and kind == PNG_PALETTE):
            dropped = True
        else:
            kept.append(view[start:end])
    return EncodedImage(
        "PNG",
        width,
        height,
        b"".join((PNG_SIGNATURE, *kept)) if dropped else data,
        kind,
        bits,
        _png_transparent(kind, bits, key),
        _orientation(exif),
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk, IEND included."""
    start = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise InvalidImage("truncated PNG")
        if name == b"IHDR" and start != len(PNG_SIGNATURE):
            # A decoder might take its size from here.
            raise InvalidImage("damaged PNG")
        yield name, start, end
        if name == b"IEND":
            return
        start = end
    raise InvalidImage(f"PNG of more than {MAX_PARTS:,} chunks")


def _png_transparent(kind: int, bits: int, key: bytes) -> tuple[int, ...] | None:
    """The transparent colour in decoded samples: fewer than 8 bits are stretched to 0..255 as the decoder does."""
    channels = {PNG_GREY: 1, PNG_RGB: 3}.get(kind, 0)
    if not channels or len(key) != 2 * channels:
        return None
    values = struct.unpack(f">{channels}H", key)
    top = (1 << bits) - 1
    return tuple((value & top) * 255 // top if bits < 8 else value & top for value in values)


def _jpeg(data: bytes) -> EncodedImage:
    frame: EncodedImage | None = None
    orientation = None
    scans = 0
    for marker, start, end in _jpeg_segments(data):
        if marker in JPEG_FRAMES and frame is None:
            bits, height, width, components = struct.unpack_from(">BHHB", data, start)
            frame = EncodedImage("JPEG", width, height, data, components, bits)
        elif marker in JPEG_OTHER_FRAMES:
            raise InvalidImage("lossless or arithmetic-coded JPEG is not supported: convert it to PNG")
        elif marker == 0xE1 and orientation is None and data.startswith(b"Exif\0\0", start):
            orientation = _orientation(data[start + 6 : end])
        scans += marker == 0xDA
    if frame is None or not scans:
        raise InvalidImage("JPEG without a picture")
    if scans > MAX_SCANS:
        raise InvalidImage(f"JPEG of more than {MAX_SCANS} scans")
    if frame.bits != 8:
        raise InvalidImage(f"{frame.bits}-bit JPEG is not supported: convert it to 8 bits")
    return replace(frame, orientation=orientation or 1)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's content, up to the end marker of the first picture."""
    position = 2
    for _ in range(MAX_PARTS):
        found = JPEG_MARKER.search(data, position)
        if found is None:
            raise InvalidImage("truncated JPEG")
        marker = data[found.end() - 1]
        if marker == 0xD9:
            return
        if marker == 0xD8:
            position = found.end()
            continue
        (length,) = struct.unpack_from(">H", data, found.end())
        position = found.end() + length
        yield marker, found.end() + 2, position
    raise InvalidImage(f"JPEG of more than {MAX_PARTS:,} segments")


def _webp(data: bytes) -> EncodedImage:
    (size,) = struct.unpack_from("<I", data, 4)
    if 8 + size > len(data):
        raise InvalidImage("truncated WebP")
    width, height = _webp_size(data)
    return EncodedImage("WebP", width, height, data, orientation=_orientation(_webp_exif(data[: 8 + size])))


def _webp_size(data: bytes) -> tuple[int, int]:
    if data.startswith(b"VP8X", 12):
        width, low, high = struct.unpack_from("<IHB", data[24:27] + b"\0" + data[27:30], 0)
        return width + 1, low + (high << 16) + 1
    if data.startswith(b"VP8L", 12):
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _webp_exif(data: bytes) -> bytes:
    start = 12
    for _ in range(MAX_PARTS):
        if start + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, start)
        if name == b"EXIF":
            return data[start + 8 : start + 8 + length].removeprefix(b"Exif\0\0")
        start += 8 + length + (length & 1)
    return b""


def _gif(data: bytes) -> EncodedImage:
    width, height = struct.unpack_from("<HH", data, 6)
    return EncodedImage("GIF", width, height, data)


def _bmp(data: bytes) -> EncodedImage:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return EncodedImage("BMP", width, height, data)
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression in BMP_RUN_LENGTHS:
        # Pillow reads it byte by byte in Python: minutes for a large one.
        raise InvalidImage("run-length-coded BMP is not supported: convert it to PNG")
    return EncodedImage("BMP", width, abs(height), data)


def _tiff(data: bytes) -> EncodedImage:
    order = TIFF_ORDERS[data[:2]]
    version, first = struct.unpack_from(order + "HI", data, 2)
    if version != 42:
        raise InvalidImage("BigTIFF is not supported: convert it to TIFF or PNG")
    named = 0
    for _, kind, count, _ in _directories(data, order, first):
        unit = TIFF_TYPE_BYTES.get(kind, 1)
        named += unit * count
        if (unit > 1 and count > MAX_TIFF_VALUES) or named > 4 * len(data) + (1 << 20):
            raise InvalidImage("damaged TIFF: its directory names more than the file holds")
    width, height = (_tiff_size(data, order, first, tag) for tag in (TIFF_WIDTH, TIFF_HEIGHT))
    return EncodedImage("TIFF", width, height, data)


def _tiff_size(data: bytes, order: str, first: int, tag: int) -> int:
    """The one number that ``tag`` states; decoders differ where it is repeated or of another type."""
    found = [(kind, count, value) for name, kind, count, value in _directory(data, order, first) if name == tag]
    if len(found) != 1 or found[0][0] not in (TIFF_SHORT, TIFF_LONG) or found[0][1] != 1:
        raise InvalidImage("damaged TIFF")
    return _number(order, found[0][0], found[0][2])


def _directories(data: bytes, order: str, first: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Entries of the first directory and of those that it points to: tag, type, count, value or offset."""
    for entry in list(_directory(data, order, first)):
        yield entry
        if entry[0] in TIFF_DIRECTORIES:
            yield from _directory(data, order, struct.unpack(order + "I", entry[3])[0])


def _directory(data: bytes, order: str, offset: int) -> Iterator[tuple[int, int, int, bytes]]:
    (entries,) = struct.unpack_from(order + "H", data, offset)
    for index in range(entries):
        yield struct.unpack_from(order + "HHI4s", data, offset + 2 + 12 * index)


def _number(order: str, kind: int, value: bytes) -> int:
    return int(struct.unpack_from(order + ("H" if kind == TIFF_SHORT else "I"), value)[0])


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, or 1 where there is none that can be read."""
    order = TIFF_ORDERS.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        found = [
            _number(order, kind, value) for tag, kind, _, value in _directory(exif, order, first) if tag == ORIENTATION
        ]
    except struct.error:
        return 1
    return found[0] if found and 1 <= found[0] <= 8 else 1


_READERS: dict[Format, Callable[[bytes], EncodedImage]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WebP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
}
