"""Encoders for the golden images: known samples as PNG and TIFF of every kind, byte by byte; the rest by Pillow."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


def chunk(name: bytes, body: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def packed(row: Array, bits: int) -> bytes:
    """One row of samples, as PNG and TIFF pack them."""
    if bits == 16:
        return row.astype(">u2").tobytes()
    planes = row.reshape(-1, 1) >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(planes.astype(np.uint8).ravel()).tobytes()


def png(values: Array, kind: int, bits: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of one IDAT, no filter."""
    rows = b"".join(b"\0" + packed(row, bits) for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + after
        + chunk(b"IEND", b"")
    )


def interlaced_png(values: Array) -> bytes:
    """8-bit grey in Adam7's seven passes."""
    rows = b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        for row in values[top::down, left::right]:
            rows += b"\0" + row.astype(np.uint8).tobytes() if row.size else b""
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int, order: str = "<") -> bytes:
    """EXIF that holds an orientation and nothing else."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def tiff(
    values: Array, bits: int, photometric: int, order: str = "<", *, extra: int | None = None, orientation: int = 1
) -> bytes:
    """One uncompressed strip."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    strip = b"".join(row.astype(order + "u2").tobytes() if bits == 16 else packed(row, bits) for row in values)
    tags = [(256, 4, width), (257, 4, height), (258, 3, None), (259, 3, 1), (262, 3, photometric), (273, 4, None)]
    tags += [(274, 3, orientation), (277, 3, channels), (278, 4, height), (279, 4, len(strip))]
    tags += [(338, 3, extra)] if extra is not None else []
    after = 8 + 2 + 12 * len(tags) + 4
    depths = struct.pack(f"{order}{channels}H", *[bits] * channels)
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    for tag, kind, number in tags:
        count = channels if tag == 258 else 1
        if tag == 258:
            value = depths.ljust(4, b"\0") if len(depths) <= 4 else struct.pack(order + "I", after)
        elif tag == 273:
            value = struct.pack(order + "I", after + len(depths))
        else:
            value = struct.pack(order + ("I" if kind == 4 else "H"), number).ljust(4, b"\0")
        out += struct.pack(order + "HHI", tag, kind, count) + value
    return out + bytes(4) + depths + strip


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """What Pillow's encoder writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(values: Array) -> Image.Image:
    """An array as Pillow's image."""
    return Image.fromarray(values.astype(np.uint8))
