"""Writes the golden images, ``cases.json`` and ``pixels.npz``: ``python tests/unit/pipeline/golden/make.py``.

What an image must decode to is computed here from known samples by the definitions in the docstrings of
``pipeline/images.py`` and ``pipeline/resizing.py``, never by those modules; only lossy images are decoded, by Pillow.
Files are made in ``encoders``, resized pixels in ``resampling``. Written once, kept for ever: a decoder that answers
otherwise breaks every dataset and model made before, and must raise ``PIXEL_FORMAT``.
"""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from encoders import Array, chunk, exif, interlaced_png, picture, png, saved, tiff
from PIL import Image, ImageOps
from resampling import resampled

HERE = Path(__file__).parent
HEIGHT, WIDTH = 10, 12

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
