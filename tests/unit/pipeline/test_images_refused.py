"""What is no whole image, what lies about itself and what would exhaust a decoder is refused, and costs little."""

import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import hostile_images
import numpy as np
import pytest
from decoder_property import decodes_or_refuses
from golden_images import CASES, GOLDEN, SMALL, noise, same_size
from hostile_images import chunk, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import images
from pipeline.errors import InvalidImage

REJECTED: dict[str, str] = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["rejected"]
SIGNATURES = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"\xff\xd8\xff",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"GIF89a",
    b"BM",
)


@pytest.mark.parametrize(("file", "reason"), REJECTED.items())
def test_what_is_no_image_is_refused_with_its_reason(file: str, reason: str) -> None:
    """A file that cannot be decoded raises InvalidImage, whose text is the clause that a person reads."""
    with pytest.raises(InvalidImage) as refused:
        images.decode((GOLDEN / file).read_bytes(), SMALL)
    assert str(refused.value) == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_a_large_cut_photograph_is_refused(kind: str) -> None:
    """A photograph of some 100 KB cut at any of 200 places is called truncated."""
    data = saved(Image.fromarray(noise(1, 40, 60, 3)).resize((600, 400)), kind, quality=95)
    cuts = random.Random(2).sample(range(100, len(data) - 12), 200)
    for cut in cuts:
        with pytest.raises(InvalidImage, match=f"^truncated {kind}$"):
            images.decode(data[:cut], SMALL)


def test_a_jpeg_without_its_end_marker_is_refused() -> None:
    """A JPEG that lacks only its last two bytes counts as truncated."""
    data = saved(Image.fromarray(noise(3, 16, 16, 3)), "JPEG")
    with pytest.raises(InvalidImage, match=r"^truncated JPEG$"):
        images.decode(data[:-2], SMALL)


@given(st.binary(max_size=400), st.sampled_from([b"", *SIGNATURES]))
@settings(max_examples=300)
def test_random_bytes_raise_nothing_but_invalid_image(rest: bytes, prefix: bytes) -> None:
    """Random bytes, also behind a format's signature, are refused or decoded; no other error comes out."""
    _check_answers(prefix + rest)


@given(st.sampled_from(CASES), st.randoms(use_true_random=False))
@settings(max_examples=400)
def test_mutated_images_raise_nothing_but_invalid_image(case: dict[str, Any], chance: random.Random) -> None:
    """Golden images with bytes changed, removed and repeated are refused or decoded; no other error comes out."""
    data = bytearray((GOLDEN / case["file"]).read_bytes())
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data))
        change = chance.choice(("byte", "zero", "remove", "repeat"))
        if change == "remove":
            del data[at : at + chance.randint(1, 8)]
        elif change == "repeat":
            data[at:at] = data[at : at + chance.randint(1, 40)]
        else:
            data[at] = chance.randrange(256) if change == "byte" else 0
        if not data:
            return
    _check_answers(bytes(data))


def _check_answers(data: bytes) -> None:
    try:
        decoded = images.decode(data, SMALL)
    except InvalidImage:
        return
    assert decoded.shape == (8, 8, 3)
    assert images.read_header(data).width > 0


def test_a_header_is_read_without_decoding() -> None:
    """Reading the header of a 49-million-pixel image allocates less than a thousandth of its pixels."""
    data = _png_of_zeros(7000, 7000)
    tracemalloc.start()
    header = images.read_header(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (header.width, header.height) == (7000, 7000)
    assert peak < 49_000


def _png_of_zeros(width: int, height: int) -> bytes:
    return hostile_images.png(width, height, kind=0)


def test_an_image_just_below_the_limit_is_decoded() -> None:
    """A TIFF of 49 million pixels is decoded; one of 51 million is refused by its header."""
    large = saved(Image.new("L", (7000, 7000), 90), "TIFF", compression="tiff_lzw")
    assert (images.decode(large, SMALL) == 90).all()
    larger = saved(Image.new("L", (7100, 7200), 90), "TIFF", compression="tiff_lzw")
    with pytest.raises(InvalidImage, match=r"^7100 x 7200 pixels, the limit is 50 million$"):
        images.read_header(larger)


def test_an_image_at_the_limit_takes_a_bounded_amount_of_memory() -> None:
    """Of 49 million pixels with alpha, less than 7 bytes each beside those that the decoder itself gives."""
    code = (
        "import pathlib, sys, hostile_images; from pipeline import images; from pipeline.artifacts import PixelSpec\n"
        "def kib(what): return int(next(x for x in open('/proc/self/status') if x.startswith(what)).split()[1])\n"
        "data = hostile_images.png(7000, 7000, kind=6)\n"
        "spec = PixelSpec(height=28, width=28, channels=3)\n"
        "images.decode(hostile_images.png(9, 9), spec)\n"
        "pathlib.Path('/proc/self/clear_refs').write_text('5')\n"
        "before = kib('VmRSS')\n"
        "images.decode(data, spec)\n"
        "sys.exit((kib('VmHWM') - before) * 1024 > (4 + 7) * 7000 * 7000)"
    )
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    path = os.pathsep.join(map(str, (GOLDEN.parents[3], GOLDEN.parents[2])))
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True)


@pytest.mark.parametrize("name", hostile_images.small())
def test_hostile_files_are_decoded_or_refused(name: str) -> None:
    """What the fuzzer begins with keeps the decoder's promise, whole and cut."""
    data = hostile_images.small()[name]
    for size in (len(data), len(data) // 2, 40):
        decodes_or_refuses(data[:size])


def test_too_many_bytes_are_refused_unread() -> None:
    """More than 100 MiB are refused before anything looks at them."""
    with pytest.raises(InvalidImage, match=r"^101 MiB, the limit is 100$"):
        images.read_header(bytes(101 << 20))


def test_a_tiff_whose_directory_names_the_same_bytes_over_and_over_is_refused() -> None:
    """4,000 tags of 40 KB each in a file of 90 KB would take 160 MB of memory; they are refused."""
    entries = b"".join(struct.pack("<HHII", tag, 1, 40_000, 8) for tag in range(1000, 5000))
    data = b"II*\0" + struct.pack("<IH", 8, 4000) + entries + bytes(40_000)
    with pytest.raises(InvalidImage, match="its directory names more than the file holds"):
        images.read_header(data)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """A progressive JPEG whose scans are repeated a thousand times is refused before it is decoded."""
    data = saved(Image.fromarray(noise(8, 16, 16, 3)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidImage, match=r"^JPEG of more than 100 scans$"):
        images.decode(data[:start] + data[start:-2] * 1000 + data[-2:], SMALL)


def test_a_png_cannot_state_two_sizes() -> None:
    """A size that only a decoder would find, behind one that passes the limit, is refused unread."""
    bomb, small = _png_of_zeros(7100, 7200), _png_of_zeros(8, 8)
    false_first = bomb[:8] + chunk(b"teXt", small[16:29]) + bomb[8:]
    headless = bomb[:8] + chunk(b"teXt", small[16:29]) + bomb[33:]
    for data in (false_first, headless, small[:33] + bomb[8:33] + small[33:]):
        with pytest.raises(InvalidImage, match=r"^damaged PNG$"):
            images.read_header(data)


@pytest.mark.parametrize(("tag", "change"), [(278, struct.pack("<HH", 257, 4)), (257, struct.pack("<HH", 257, 16))])
def test_a_tiff_cannot_state_two_sizes(tag: int, change: bytes) -> None:
    """A height that is stated twice, or as another type than decoders agree on, is refused."""
    data = saved(Image.new("L", (16, 16)), "TIFF")
    at = data.index(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
    with pytest.raises(InvalidImage, match=r"^damaged TIFF$"):
        images.read_header(data[:at] + change + data[at + 4 :])


def test_a_png_of_endless_chunks_is_refused() -> None:
    """A PNG of more chunks than any encoder writes is refused."""
    data = _png_of_zeros(8, 8)
    with pytest.raises(InvalidImage, match=r"^PNG of more than 100,000 chunks$"):
        images.read_header(data[:-12] + chunk(b"teXt", b"") * 100_001 + data[-12:])


def _patched(kind: str, after: bytes, skip: int, change: bytes) -> bytes:
    """A small image with ``change`` written ``skip`` bytes after the first ``after``."""
    data = saved(Image.fromarray(noise(9, 16, 16, 3)), kind)
    at = data.index(after) + skip
    return data[:at] + change + data[at + len(change) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_patched("TIFF", b"II*", 2, b"+"), "BigTIFF is not supported: convert it to TIFF or PNG"),
        (_patched("JPEG", b"\xff\xc0", 4, b"\x0c"), "12-bit JPEG is not supported: convert it to 8 bits"),
        (
            _patched("JPEG", b"\xff\xc0", 1, b"\xc3"),
            "lossless or arithmetic-coded JPEG is not supported: convert it to PNG",
        ),
        (_patched("JPEG", b"\xff\xc0", 1, b"\xec"), "JPEG without a picture"),
        (_patched("BMP", b"BM", 30, b"\1"), "run-length-coded BMP is not supported: convert it to PNG"),
        (_patched("GIF", b"GIF8", 6, bytes(2)), "no pixels: 0 x 16"),
        (
            saved(Image.new("LAB", (9, 9)), "TIFF"),
            "TIFF of CIELAB samples is not supported: convert it to 8-bit RGB or grey",
        ),
        (
            saved(Image.new("I", (9, 9)), "TIFF"),
            "TIFF of signed or 32-bit samples is not supported: convert it to 8-bit RGB or grey",
        ),
    ],
)
def test_rare_kinds_are_refused_by_name(data: bytes, reason: str) -> None:
    """An image of a kind that is not read is named, with what to convert it to; its header is enough for that."""
    for read in (images.read_header, lambda encoded: images.decode(encoded, SMALL)):
        with pytest.raises(InvalidImage) as refused:
            read(data)
        assert str(refused.value) == reason


def test_texts_and_profiles_never_reach_the_decoder() -> None:
    """A PNG whose text and profile would inflate to 200 MB is decoded like the plain one."""
    bomb = zlib.compress(bytes(100 << 20), 9)
    data = _png_of_zeros(16, 16)
    loaded = data[:33] + chunk(b"iCCP", b"x\0\0" + bomb) + chunk(b"zTXt", b"y\0\0" + bomb) + data[33:]
    np.testing.assert_array_equal(images.decode(loaded, same_size(data)), images.decode(data, same_size(data)))
