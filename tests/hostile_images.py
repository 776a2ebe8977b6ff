"""Files built to exhaust a decoder: small on the wire, large or slow to decode, or contradicting themselves."""

import io
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, kind: int = 2, bits: int = 8, extra: bytes = b"", rows: int | None = None) -> bytes:
    """A PNG of zeros, compressed a thousandfold; of as many ``rows`` as it promises, unless told otherwise."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    squeezing = zlib.compressobj(1)
    row = bytes(1 + (width * samples * bits + 7) // 8)
    body = b"".join(squeezing.compress(row) for _ in range(height if rows is None else rows)) + squeezing.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3)) if kind == 3 else b""
    return PNG + chunk(b"IHDR", head) + palette + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """``image`` as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    """An image that nothing compresses."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8))


def jpeg_of_scans(scans: int, side: int = 16) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = saved(Image.new("RGB", (side, side), (9, 90, 200)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * scans + data[-2:]


def promising(kind: str, width: int, height: int) -> bytes:
    """A small file of some format whose header promises ``width`` x ``height`` pixels."""
    size = struct.pack("<HH", min(width, 65535), min(height, 65535))
    small = saved(Image.new("RGB", (16, 16), (9, 90, 200)), kind)
    if kind == "GIF":
        return small[:6] + size + small[10:]
    if kind == "BMP":
        return small[:18] + struct.pack("<ii", width, height) + small[26:]
    if kind == "TIFF":
        return _tiff_promising(small, width, height)
    at = small.index(b"\xff\xc0")
    return small[: at + 5] + struct.pack(">HH", min(height, 65535), min(width, 65535)) + small[at + 9 :]


def webp(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is that large, and whose picture is small."""
    small = saved(Image.new("RGB", (16, 16), (9, 90, 200)), "WEBP")
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides + small[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_of_frames(frames: int, side: int = 16) -> bytes:
    """An animation."""
    pictures = [Image.new("P", (side, side), number % 250) for number in range(frames)]
    return saved(pictures[0], "GIF", save_all=True, append_images=pictures[1:])


@cache
def small() -> Mapping[str, bytes]:
    """Of each kind one that is quickly made and fits into 64 KiB."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10 << 20)))
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(10 << 20)))
    return {
        "long-text.png": png(8, 8, extra=text),
        "long-profile.png": png(8, 8, extra=profile),
        "more-rows-than-promised.png": png(64, 8, rows=4096),
        "fewer-rows-than-promised.png": png(64, 4096, rows=8),
        "one-row.png": png(60_000, 1),
        "one-column.png": png(1, 60_000),
        "scans.jpg": jpeg_of_scans(50),
        "large.gif": promising("GIF", 6000, 6000),
        "large.bmp": promising("BMP", 6000, 6000),
        "large.jpg": promising("JPEG", 6000, 6000),
        "large.tif": promising("TIFF", 6000, 6000),
        "large.webp": webp(6000, 6000),
        "frames.gif": gif_of_frames(50),
    }


def _tiff_promising(data: bytes, width: int, height: int) -> bytes:
    (directory,) = struct.unpack_from("<I", data, 4)
    for tag, side in ((256, width), (257, height), (278, height)):
        at = data.find(struct.pack("<H", tag), directory + 2)
        data = data[: at + 2] + struct.pack("<HII", 4, 1, side) + data[at + 12 :]
    return data
