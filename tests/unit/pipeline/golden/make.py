"""Writes the golden images, ``cases.json`` and ``pixels.npz``: ``python tests/unit/pipeline/golden/make.py``.

What an image must decode to is computed here from known samples by the definitions in the docstrings of
``pipeline/images.py`` and ``pipeline/resizing.py``, never by those modules; only lossy images are decoded, by Pillow.
What is resized is computed in integers, as docs/decisions/decoding.md defines it. Written once, kept for ever: a
decoder that answers otherwise breaks every dataset and model made before, and must raise ``PIXEL_FORMAT``.
"""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

HERE = Path(__file__).parent
HEIGHT, WIDTH = 10, 12

Array = NDArray[Any]
rng = np.random.default_rng(20_261_101)
cases: list[dict[str, Any]] = []
expected: dict[str, Array] = {}


def case(file: str, data: bytes, pixels: Array, *, grey: bool, spec: dict[str, Any] | None = None) -> None:
    """Record an image, whether its header must say grey, and what it must decode to under ``spec``."""
    height, width = pixels.shape[:2]
    wanted = spec or {"height": height, "width": width, "channels": 1 if pixels.ndim == 2 else 3, "fit": "stretch"}
    name = (
        file if spec is None else f"{file} as {wanted['height']}x{wanted['width']}x{wanted['channels']} {wanted['fit']}"
    )
    (HERE / file).write_bytes(data)
    cases.append({"name": name, "file": file, "grey": grey, "spec": wanted})
    expected[name] = pixels.reshape(wanted["height"], wanted["width"], wanted["channels"]).astype(np.uint8)


def samples(*channels: int, top: int = 255) -> Array:
    """Random samples of the golden size, 0 to ``top``."""
    return rng.integers(0, top + 1, (HEIGHT, WIDTH, *channels))


def eight(values: Array) -> Array:
    """16-bit samples by value, in exact integers."""
    return (values.astype(np.int64) * 255 * 2 + 65535) // (2 * 65535)


def over_white(colour: Array, alpha: Array) -> Array:
    """8-bit colour with 8-bit alpha on white, rounded."""
    alpha = alpha if colour.ndim == 2 else alpha[:, :, None]
    return np.rint((colour * alpha + 255.0 * (255 - alpha)) / 255)


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


def by_pillow(data: bytes, mode: str) -> Array:
    """Upright pixels, decoded by Pillow."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode)).astype(np.int64)


def smooth() -> Array:
    """A picture without noise, for lossy formats."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 20, y * 25, 255 - x * 10 - y * 10], axis=2)


def pngs() -> None:
    """Every colour type and depth."""
    for bits in (1, 2, 4, 8):
        grey = samples(top=2**bits - 1)
        case(f"grey{bits}.png", png(grey, 0, bits), grey * 255 // (2**bits - 1), grey=True)
    deep = samples(top=65535)
    case("grey16.png", png(deep, 0, 16), eight(deep), grey=True)
    rgb, deep = samples(3), samples(3, top=65535)
    case("rgb8.png", png(rgb, 2, 8), rgb, grey=False)
    case("rgb16.png", png(deep, 2, 16), eight(deep), grey=False)
    two, deep = samples(2), samples(2, top=65535)
    case("grey-alpha8.png", png(two, 4, 8), over_white(two[..., 0], two[..., 1]), grey=True)
    case("grey-alpha16.png", png(deep, 4, 16), over_white(eight(deep[..., 0]), eight(deep[..., 1])), grey=True)
    four, deep = samples(4), samples(4, top=65535)
    case("rgba8.png", png(four, 6, 8), over_white(four[..., :3], four[..., 3]), grey=False)
    case("rgba16.png", png(deep, 6, 16), over_white(eight(deep[..., :3]), eight(deep[..., 3])), grey=False)
    palettes()
    keys()
    ancillary()


def palettes() -> None:
    """Palettes, with and without transparency."""
    for bits in (1, 4, 8):
        size = 2**bits
        index, colours = samples(top=size - 1), rng.integers(0, 256, (size, 3))
        table = chunk(b"PLTE", colours.astype(np.uint8).tobytes())
        case(f"palette{bits}.png", png(index, 3, bits, table), colours[index], grey=False)
    opacity = rng.integers(0, 256, size - 10)
    table += chunk(b"tRNS", opacity.astype(np.uint8).tobytes())
    alpha = np.append(opacity, [255] * 10)[index]
    case("palette8-alpha.png", png(index, 3, 8, table), over_white(colours[index], alpha), grey=False)
    ramp = np.repeat(np.arange(256), 3).reshape(256, 3)
    case(
        "palette-of-greys.png",
        png(index, 3, 8, chunk(b"PLTE", ramp.astype(np.uint8).tobytes())),
        ramp[index],
        grey=False,
    )


def keys() -> None:
    """One colour that stands for transparency."""
    for bits in (4, 8, 16):
        grey = samples(top=2**bits - 1)
        key = int(grey[3, 4])
        shown = eight(grey) if bits == 16 else grey * 255 // (2**bits - 1)
        shown = np.where(grey == key, 255, shown)
        case(f"grey{bits}-key.png", png(grey, 0, bits, chunk(b"tRNS", struct.pack(">H", key))), shown, grey=True)
    for bits in (8, 16):
        rgb = samples(3, top=2**bits - 1)
        rgb[0, 0] = rgb[3, 4]
        shown = np.where((rgb == rgb[3, 4]).all(axis=2, keepdims=True), 255, eight(rgb) if bits == 16 else rgb)
        case(f"rgb{bits}-key.png", png(rgb, 2, bits, chunk(b"tRNS", struct.pack(">3H", *rgb[3, 4]))), shown, grey=False)


def ancillary() -> None:
    """What surrounds a PNG's pixels: orientation, gamma, profile, animation."""
    grey = samples()
    case("interlaced.png", interlaced_png(grey), grey, grey=True)
    case("orientation6.png", png(grey, 0, 8, chunk(b"eXIf", exif(6))), np.rot90(grey, -1), grey=True)
    case("orientation8-late.png", png(grey, 0, 8, after=chunk(b"eXIf", exif(8, ">"))), np.rot90(grey), grey=True)
    before = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
    case("gamma-and-profile.png", png(grey, 0, 8, before), grey, grey=True)
    frames = [picture(samples()) for _ in range(3)]
    animated = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    case("animated.png", animated, np.asarray(frames[0]).astype(np.int64), grey=True)


def jpegs() -> None:
    """Grey, colour, CMYK, YCCK, and every orientation."""
    colour = picture(smooth())
    for name, options in (
        ("baseline", {}),
        ("progressive", {"progressive": True}),
        ("full-chroma", {"subsampling": 0}),
    ):
        data = saved(colour, "JPEG", quality=90, **options)
        case(f"{name}.jpg", data, by_pillow(data, "RGB"), grey=False)
    data = saved(colour.convert("L"), "JPEG", quality=90)
    case("grey.jpg", data, by_pillow(data, "L"), grey=True)
    for orientation in range(1, 9):
        data = saved(colour, "JPEG", quality=90, exif=b"Exif\0\0" + exif(orientation, "<>"[orientation % 2]))
        case(f"orientation{orientation}.jpg", data, by_pillow(data, "RGB"), grey=False)
    data = saved(colour.convert("CMYK"), "JPEG", quality=90)
    ink = np.asarray(Image.open(io.BytesIO(data))).astype(np.float64)
    case("cmyk.jpg", data, by_pillow(data, "RGB"), grey=False)
    difference = np.abs(expected["cmyk.jpg"] - (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255)
    if difference.max() > 1:
        raise SystemExit("cmyk.jpg is not what the formula says")
    # The same scan, said to be YCCK by Adobe's marker.
    at = data.index(b"Adobe") + 11
    data = data[:at] + b"\2" + data[at + 1 :]
    case("ycck.jpg", data, by_pillow(data, "RGB"), grey=False)


def webps() -> None:
    """Lossless, lossy, alpha, animated, turned."""
    rgb, four = samples(3), samples(4)
    case("lossless.webp", saved(picture(rgb), "WEBP", lossless=True), rgb, grey=False)
    data = saved(picture(four), "WEBP", lossless=True, exact=True)
    case("lossless-alpha.webp", data, over_white(four[..., :3], four[..., 3]), grey=False)
    data = saved(picture(rgb), "WEBP", lossless=True, exif=exif(6))
    case("orientation6.webp", data, np.rot90(rgb, -1), grey=False)
    data = saved(picture(rgb), "WEBP", lossless=True, save_all=True, append_images=[picture(samples(3))])
    case("animated.webp", data, rgb, grey=False)
    data = saved(picture(smooth()), "WEBP", quality=80)
    case("lossy.webp", data, by_pillow(data, "RGB"), grey=False)


def bmps() -> None:
    """Colour, palette, grey palette, bilevel."""
    rgb, grey = samples(3), samples()
    case("rgb.bmp", saved(picture(rgb), "BMP"), rgb, grey=False)
    case("grey.bmp", saved(picture(grey), "BMP"), grey, grey=True)
    bits = samples(top=1)
    case("bilevel.bmp", saved(picture(bits * 255).convert("1"), "BMP"), bits * 255, grey=True)
    colours = rng.integers(0, 256, (256, 3))
    image = picture(grey)
    image.putpalette(colours.astype(np.uint8).tobytes())
    case("palette.bmp", saved(image, "BMP"), colours[grey], grey=False)


def tiffs() -> None:
    """Depths, byte orders, photometric interpretations, alpha, pages."""
    grey, rgb, four = samples(), samples(3), samples(4)
    case("grey.tif", tiff(grey, 8, 1), grey, grey=True)
    case("white-is-zero.tif", tiff(grey, 8, 0), 255 - grey, grey=True)
    case("lzw.tif", saved(picture(rgb), "TIFF", compression="tiff_lzw"), rgb, grey=False)
    case("alpha.tif", tiff(four, 8, 2, extra=2), over_white(four[..., :3], four[..., 3]), grey=False)
    shown = (255 - four[..., :3]) * (255 - four[..., 3:])
    data = tiff(four, 8, 5)
    case("cmyk.tif", data, by_pillow(data, "RGB"), grey=False)
    if np.abs(expected["cmyk.tif"] - shown / 255).max() > 1:
        raise SystemExit("cmyk.tif is not what the formula says")
    bits = samples(top=1)
    case("group4.tif", saved(picture(bits * 255).convert("1"), "TIFF", compression="group4"), bits * 255, grey=True)
    for name, order in (("little", "<"), ("big", ">")):
        deep = samples(top=65535)
        case(f"grey16-{name}.tif", tiff(deep, 16, 1, order), eight(deep), grey=True)
        deep = samples(3, top=65535)
        case(f"rgb16-{name}.tif", tiff(deep, 16, 2, order), eight(deep), grey=False)
    deep = samples(top=65535)
    case("white-is-zero16.tif", tiff(deep, 16, 0), 255 - eight(deep), grey=True)
    deep = samples(4, top=65535)
    case("alpha16.tif", tiff(deep, 16, 2, extra=2), over_white(eight(deep[..., :3]), eight(deep[..., 3])), grey=False)
    case("unspecified16.tif", tiff(deep, 16, 2, extra=0), eight(deep[..., :3]), grey=False)
    case("orientation6.tif", tiff(rgb, 8, 2, orientation=6), np.rot90(rgb, -1), grey=False)
    deep = samples(3, top=65535)
    case("orientation8-16.tif", tiff(deep, 16, 2, orientation=8), np.rot90(eight(deep)), grey=False)
    pages = [picture(samples()) for _ in range(2)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    case("two-pages.tif", data, np.asarray(pages[0]).astype(np.int64), grey=True)


def gifs() -> None:
    """Palette, transparent, animated."""
    index, colours = samples(), rng.integers(0, 256, (256, 3))
    image = picture(index)
    image.putpalette(colours.astype(np.uint8).tobytes())
    case("palette.gif", saved(image, "GIF"), colours[index], grey=False)
    clear = int(index[2, 3])
    shown = np.where((index == clear)[..., None], 255, colours[index])
    case("transparent.gif", saved(image, "GIF", transparency=clear), shown, grey=False)
    case(
        "animated.gif",
        saved(image, "GIF", save_all=True, append_images=[picture(samples())]),
        colours[index],
        grey=False,
    )


def resized() -> None:
    """Crop, stretch, shrink, grow, smaller decoding, and changes of colour."""
    blocks = rng.integers(0, 256, (8, 8, 3))
    large = blocks.repeat(4, axis=0).repeat(4, axis=1)
    wide = np.concatenate([np.zeros((32, 9, 3), int), large, np.full((32, 10, 3), 255)], axis=1)
    spec = {"height": 8, "width": 8, "channels": 3, "fit": "crop"}
    case("wide.png", png(wide, 2, 8), resampled(large, 8, 8), grey=False, spec=spec)
    case("tall.png", png(wide.swapaxes(0, 1), 2, 8), resampled(large, 8, 8).swapaxes(0, 1), grey=False, spec=spec)
    stretched = blocks.repeat(2, axis=0).repeat(7, axis=1)
    case("stretched.png", png(stretched, 2, 8), resampled(stretched, 8, 8), grey=False, spec=spec | {"fit": "stretch"})
    luma = np.rint(blocks @ [0.299, 0.587, 0.114])
    case("blocks.png", png(blocks, 2, 8), luma, grey=False, spec=spec | {"channels": 1})
    grey = blocks[..., 0]
    case("grey-blocks.png", png(grey, 0, 8), np.repeat(grey[..., None], 3, axis=2), grey=True, spec=spec)
    photo = picture(smooth()).resize((29, 23))
    pixels = np.asarray(photo).astype(np.int64)
    case(
        "odd-29x23.png", png(pixels, 2, 8), resampled(pixels[:, 3:26], 16, 16), grey=False, spec=wanted(16, 16, "crop")
    )
    pixels = samples(3)
    case("odd-12x10.png", png(pixels, 2, 8), resampled(pixels, 17, 9), grey=False, spec=wanted(17, 9))
    for times, size in ((2, (41, 35)), (4, (70, 74)), (8, (163, 150))):
        data = saved(picture(smooth()).resize(size), "JPEG", quality=90, exif=b"Exif\0\0" + exif(6))
        pixels = resampled(decoded_smaller(data, times), 17, 16, averaged=True)
        case(f"{times}-times-smaller.jpg", data, pixels, grey=False, spec=wanted(17, 16))


def wanted(height: int, width: int, fit: str = "stretch") -> dict[str, Any]:
    """A colour spec."""
    return {"height": height, "width": width, "channels": 3, "fit": fit}


def decoded_smaller(data: bytes, times: int) -> Array:
    """A JPEG, upright, decoded by Pillow from fewer coefficients."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (image.width // times, image.height // times))
    return np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)


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


def rejected() -> dict[str, str]:
    """Files that are no image for us, with the reason that a person reads."""
    good, photo = png(samples(), 0, 8), saved(picture(smooth()), "JPEG", quality=90)
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    floats = saved(Image.fromarray(rng.random((HEIGHT, WIDTH)).astype(np.float32)), "TIFF")
    flipped = bytearray(good)
    flipped[60] ^= 0xFF
    glass = tiff(samples(4, top=65535), 16, 2, extra=1)
    files = {
        "empty.png": (b"", "empty file"),
        "page.jpg": (
            b"<!doctype html><title>Not found</title>",
            "not an image of a supported format (PNG, JPEG, WebP, BMP, TIFF, GIF)",
        ),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not supported: convert it to JPEG or PNG"),
        "cut.png": (good[:-30], "truncated PNG"),
        "cut.jpg": (photo[: len(photo) // 2], "truncated JPEG"),
        "damaged.png": (bytes(flipped), "damaged PNG"),
        "bomb.png": (bomb, "20000 x 20000 pixels, the limit is 50 million"),
        "premultiplied16.tif": (
            glass,
            "TIFF of premultiplied 16-bit RGBA samples is not supported: convert it to 8-bit RGB or grey",
        ),
        "float.tif": (floats, "TIFF of floating-point samples is not supported: convert it to 8-bit RGB or grey"),
    }
    for name, (data, _) in files.items():
        (HERE / name).write_bytes(data)
    return {name: reason for name, (_, reason) in files.items()}


def main() -> None:
    """Write all of it."""
    for family in (pngs, jpegs, webps, bmps, tiffs, gifs, resized):
        family()
    rows = [json.dumps(row) for row in cases]
    text = '{\n"cases": [\n' + ",\n".join(rows) + '\n],\n"rejected": ' + json.dumps(rejected(), indent=1) + "\n}\n"
    (HERE / "cases.json").write_text(text, encoding="utf-8")
    np.savez_compressed(HERE / "pixels.npz", **expected)


if __name__ == "__main__":
    main()
