import io
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hostile_images
import numpy as np
import pytest
from decoder_property import decodes_or_refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline import bands, image_files, images
from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidImage

GOLDEN = Path(__file__).parent / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"]
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
SMALL = PixelSpec(height=8, width=8, channels=3)


@pytest.fixture(scope="module")
def pixels() -> dict[str, Any]:
    """What each golden image must decode to, by the case's name."""
    with np.load(GOLDEN / "pixels.npz") as stored:
        return dict(stored)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _same_size(data: bytes) -> PixelSpec:
    header = images.read_header(data)
    return PixelSpec(height=header.height, width=header.width, channels=header.channels)


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


@pytest.mark.parametrize(("file", "reason"), REJECTED.items())
def test_what_is_no_image_is_refused_with_its_reason(file: str, reason: str) -> None:
    """A file that cannot be decoded raises InvalidImage, whose text is the clause that a person reads."""
    with pytest.raises(InvalidImage) as refused:
        images.decode((GOLDEN / file).read_bytes(), SMALL)
    assert str(refused.value) == reason


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_a_large_cut_photograph_is_refused(kind: str) -> None:
    """A photograph of some 100 KB cut at any of 200 places is called truncated."""
    data = _saved(Image.fromarray(_noise(1, 40, 60, 3)).resize((600, 400)), kind, quality=95)
    cuts = random.Random(2).sample(range(100, len(data) - 12), 200)
    for cut in cuts:
        with pytest.raises(InvalidImage, match=f"^truncated {kind}$"):
            images.decode(data[:cut], SMALL)


def test_a_jpeg_without_its_end_marker_is_refused() -> None:
    """A JPEG that lacks only its last two bytes counts as truncated."""
    data = _saved(Image.fromarray(_noise(3, 16, 16, 3)), "JPEG")
    with pytest.raises(InvalidImage, match=r"^truncated JPEG$"):
        images.decode(data[:-2], SMALL)


def test_bytes_after_the_end_of_an_image_are_ignored() -> None:
    """Trailing bytes, as phones append, change no pixel."""
    for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF"):
        data = _saved(Image.fromarray(_noise(4, 16, 16)), kind)
        spec = _same_size(data)
        np.testing.assert_array_equal(images.decode(data + b"appended" * 50, spec), images.decode(data, spec))


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
    colour = Image.fromarray(_noise(seed, 4, 4, 3)).resize((width, height))
    data = _saved(colour if "subsampling" in options else colour.convert("L"), "JPEG", **options)
    np.testing.assert_array_equal(_at_full_size(data), np.asarray(Image.open(io.BytesIO(data))))


@given(st.sampled_from(["L", "RGB"]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.integers(0, 2**32))
@settings(max_examples=80)
def test_pngs_decode_as_by_pillow(mode: str, width: int, height: int, level: int, seed: int) -> None:
    """Any 8-bit grey or RGB PNG gives the very pixels that Pillow gives."""
    image = Image.fromarray(_noise(seed, 4, 4, 3)).resize((width, height)).convert(mode)
    data = _saved(image, "PNG", compress_level=level)
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
    colour = Image.fromarray(_noise(seed, 4, 4, 3)).resize((width, height))
    data = _saved(colour if "subsampling" in options else colour.convert("L"), "JPEG", **options)
    image = Image.open(io.BytesIO(data))
    image.draft(image.mode, (width // times, height // times))
    np.testing.assert_array_equal(_decoded_smaller(data, times), np.asarray(image))


def test_a_turned_jpeg_is_decoded_smaller_before_it_is_turned() -> None:
    """A lying picture that stands upright by EXIF comes out as Pillow's smaller decoding of it, turned."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    data = _saved(Image.fromarray(_noise(10, 20, 80, 3)).resize((640, 160)), "JPEG", exif=exif)
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
    data = _saved(Image.fromarray(_noise(5, 24, 40, 3)), "JPEG", exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    header = images.read_header(data)
    assert (header.height, header.width) == turned.shape[:2]
    np.testing.assert_array_equal(images.decode(data, _same_size(data)), turned)


def test_a_damaged_exif_block_changes_nothing() -> None:
    """EXIF that cannot be read counts as absent; the picture is decoded."""
    picture = Image.fromarray(_noise(6, 16, 24, 3))
    plain = _saved(picture, "JPEG")
    for exif in (b"II*\0\xff\xff\xff\x7f", b"MM", b"XX*\0", b"II*\0\x08\0\0\0\xff\xff"):
        data = _saved(picture, "JPEG", exif=b"Exif\0\0" + exif)
        np.testing.assert_array_equal(images.decode(data, _same_size(data)), images.decode(plain, _same_size(plain)))


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 3]), st.integers(0, 2**32))
@settings(max_examples=60)
def test_encoding_loses_nothing(width: int, height: int, channels: int, seed: int) -> None:
    """PNG of any pixels, read by Pillow, gives those pixels."""
    stored = _noise(seed, height, width, channels)
    reread = np.asarray(Image.open(io.BytesIO(images.encode_png(stored)))).reshape(stored.shape)
    np.testing.assert_array_equal(reread, stored)


def test_sixteen_bits_are_scaled_by_value() -> None:
    """Each of the 65,536 values becomes round(v * 255 / 65535)."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = _saved(Image.fromarray(values), "PNG")
    exact = (values.astype(np.int64) * 510 + 65535) // 131070
    np.testing.assert_array_equal(images.decode(data, _same_size(data))[:, :, 0], exact)


def test_alpha_over_white_is_rounded_exactly() -> None:
    """Each of the 65,536 pairs of value and alpha gives the rounded mean with white."""
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    data = _saved(Image.merge("LA", [Image.fromarray(value), Image.fromarray(alpha)]), "PNG")
    exact = np.rint((value.astype(float) * alpha + 255.0 * (255 - alpha.astype(float))) / 255)
    np.testing.assert_array_equal(images.decode(data, _same_size(data))[:, :, 0], exact)


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


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
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes((width + 1) * height), 1)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", head) + _png_chunk(b"IDAT", body) + _png_chunk(b"IEND", b"")


def test_an_image_just_below_the_limit_is_decoded() -> None:
    """A TIFF of 49 million pixels is decoded; one of 51 million is refused by its header."""
    large = _saved(Image.new("L", (7000, 7000), 90), "TIFF", compression="tiff_lzw")
    assert (images.decode(large, SMALL) == 90).all()
    larger = _saved(Image.new("L", (7100, 7200), 90), "TIFF", compression="tiff_lzw")
    with pytest.raises(InvalidImage, match=r"^7100 x 7200 pixels, the limit is 50 million$"):
        images.read_header(larger)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_large_image_is_converted_as_a_small_one(mode: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Band by band or at once, the pixels are the same."""
    image = Image.fromarray(_noise(3, 37, 23, 4)).convert(mode if kind != "WEBP" else "RGBA")
    data = _saved(image, kind, lossless=True)
    at_once = images.decode(data, SMALL)
    monkeypatch.setattr(bands, "BAND_PIXELS", 23 * 5)
    np.testing.assert_array_equal(images.decode(data, SMALL), at_once)


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
    data = _saved(Image.fromarray(_noise(8, 16, 16, 3)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidImage, match=r"^JPEG of more than 100 scans$"):
        images.decode(data[:start] + data[start:-2] * 1000 + data[-2:], SMALL)


def test_a_png_cannot_state_two_sizes() -> None:
    """A size that only a decoder would find, behind one that passes the limit, is refused unread."""
    bomb, small = _png_of_zeros(7100, 7200), _png_of_zeros(8, 8)
    false_first = bomb[:8] + _png_chunk(b"teXt", small[16:29]) + bomb[8:]
    headless = bomb[:8] + _png_chunk(b"teXt", small[16:29]) + bomb[33:]
    for data in (false_first, headless, small[:33] + bomb[8:33] + small[33:]):
        with pytest.raises(InvalidImage, match=r"^damaged PNG$"):
            images.read_header(data)


@pytest.mark.parametrize(("tag", "change"), [(278, struct.pack("<HH", 257, 4)), (257, struct.pack("<HH", 257, 16))])
def test_a_tiff_cannot_state_two_sizes(tag: int, change: bytes) -> None:
    """A height that is stated twice, or as another type than decoders agree on, is refused."""
    data = _saved(Image.new("L", (16, 16)), "TIFF")
    at = data.index(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
    with pytest.raises(InvalidImage, match=r"^damaged TIFF$"):
        images.read_header(data[:at] + change + data[at + 4 :])


def test_a_png_of_endless_chunks_is_refused() -> None:
    """A PNG of more chunks than any encoder writes is refused."""
    data = _png_of_zeros(8, 8)
    with pytest.raises(InvalidImage, match=r"^PNG of more than 100,000 chunks$"):
        images.read_header(data[:-12] + _png_chunk(b"teXt", b"") * 100_001 + data[-12:])


def _patched(kind: str, after: bytes, skip: int, change: bytes) -> bytes:
    """A small image with ``change`` written ``skip`` bytes after the first ``after``."""
    data = _saved(Image.fromarray(_noise(9, 16, 16, 3)), kind)
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
            _saved(Image.new("LAB", (9, 9)), "TIFF"),
            "TIFF of CIELAB samples is not supported: convert it to 8-bit RGB or grey",
        ),
        (
            _saved(Image.new("I", (9, 9)), "TIFF"),
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
    loaded = data[:33] + _png_chunk(b"iCCP", b"x\0\0" + bomb) + _png_chunk(b"zTXt", b"y\0\0" + bomb) + data[33:]
    np.testing.assert_array_equal(images.decode(loaded, _same_size(data)), images.decode(data, _same_size(data)))


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
