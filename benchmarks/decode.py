"""How fast images become pixels on one core, and how far they are from Pillow's: ``python -m benchmarks.decode``.

Beside ``images.decode`` run the ways that people know, on the same bytes, in rounds that take turns: torchvision's
ImageNet transforms on a Pillow image and on a tensor, to uint8; the same with ToTensor and Normalize, as a training
loop has them (here they are the model's first layer); and the product's own crop and size by both libraries. OpenCV's
decoding alone, at full size, shows what no resizing can undercut there. Figures are medians of microseconds of CPU time
per image. Photographs are made here: noise whose spectrum falls with the frequency as a photograph's does, ``detailed``
or ``soft``. Needs the extra ``pipeline``, for torchvision.
"""

import io
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import io as torch_io
from torchvision import transforms
from torchvision.transforms import v2

from pipeline.artifacts import PixelSpec
from pipeline.images import decode, decode_with_header, encode_png, read_header

ROUNDS = 9
ROUND_SECONDS = 0.05
SIDE = 224
TARGET = PixelSpec(height=SIDE, width=SIDE, channels=3)
DETAIL = {"detailed": 1.2, "soft": 1.5}
ENCODINGS = {
    (500, 375): ((75, "4:2:0"), (85, "4:2:0"), (90, "4:2:0"), (90, "4:4:4"), (95, "4:2:0")),
    (1000, 750): ((85, "4:2:0"), (90, "4:4:4")),
    (4000, 3000): ((85, "4:2:0"),),
}
BILINEAR = Image.Resampling.BILINEAR
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def main() -> None:
    """Print microseconds per image, ratios to ours, and differences of pixels."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    _small()
    for size in ENCODINGS:
        _photographs(size)
    _differences()


def _small() -> None:
    pixels = np.zeros((28, 28, 1), np.uint8)
    pixels[4:24, 6:22, 0] = np.random.default_rng(0).integers(0, 256, (20, 16))
    data, spec = encode_png(pixels), PixelSpec(height=28, width=28, channels=1)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: decode(data, spec),
        "header": lambda: read_header(data),
        "both": lambda: decode_with_header(data, spec),
        "Pillow": lambda: np.asarray(Image.open(io.BytesIO(data))),
    }
    print(f"28x28 grey PNG: {_told(_medians(ways))}")


def _photographs(size: tuple[int, int]) -> None:
    idioms = _idioms()
    print(f"\n{size[0]}x{size[1]} JPEG to {SIDE}x{SIDE}")
    for name, fall in DETAIL.items():
        picture = _picture(*size, fall)
        for quality, subsampling in ENCODINGS[size]:
            data = _jpeg(picture, quality, subsampling)
            ways = {way: _bound(idiom, data) for way, idiom in idioms.items()}
            print(f"{name} q{quality} {subsampling} {len(data) >> 10} KB: {_told(_medians(ways))}", flush=True)


def _idioms() -> dict[str, Callable[[bytes], Any]]:
    """Encoded bytes to pixels, in the ways that people know."""
    resize_and_crop = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIDE)])
    to_floats = transforms.Compose([resize_and_crop, transforms.ToTensor(), transforms.Normalize(**IMAGENET)])
    tensor_resize_and_crop = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(SIDE)])
    tensor_resize = v2.Resize(SIDE, antialias=True)
    return {
        "ours": lambda data: decode(data, TARGET),
        "PIL idiom": lambda data: np.asarray(resize_and_crop(_opened(data))),
        "PIL idiom to normalised floats": lambda data: to_floats(_opened(data)),
        "PIL, our crop": lambda data: np.asarray(_by_pillow(_opened(data), SIDE)),
        "torchvision.io idiom": lambda data: tensor_resize_and_crop(_tensor(data)),
        "torchvision.io, our crop": lambda data: tensor_resize(_square(_tensor(data))),
        "imdecode alone": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
    }


def _bound(idiom: Callable[[bytes], object], data: bytes) -> Callable[[], object]:
    return lambda: idiom(data)


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _tensor(data: bytes) -> torch.Tensor:
    return torch_io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _square(pixels: torch.Tensor) -> torch.Tensor:
    square: torch.Tensor = v2.functional.center_crop(pixels, [min(pixels.shape[1:])])
    return square


def _by_pillow(image: Image.Image, side: int) -> Image.Image:
    """The same crop and size by Pillow's bilinear filter."""
    least = min(image.size)
    left, top = (image.width - least) // 2, (image.height - least) // 2
    return image.resize((side, side), BILINEAR, box=(left, top, left + least, top + least))


def _differences() -> None:
    """How far pixels are from Pillow's bilinear filter on the same crop, mean and greatest, of 255.

    Sizes are multiples of 16, so that a smaller decoded picture is cropped at the very same place.
    """
    print("\nabsolute difference to Pillow's bilinear filter, mean/max: ours; OpenCV's INTER_AREA, INTER_LINEAR")
    for width, height in ((512, 384), (1024, 768), (4096, 3072)):
        for name, fall in DETAIL.items():
            data = _jpeg(_picture(width, height, fall), 90, "4:2:0")
            for side in (64, 128, 224, 320):
                told = "; ".join(f"{np.mean(found):.2f}/{np.max(found)}" for found in _distances(data, side))
                print(f"{name} {width}x{height} to {side}: {told}", flush=True)


def _distances(data: bytes, side: int) -> list[NDArray[Any]]:
    image = _opened(data)
    theirs = np.asarray(_by_pillow(image, side)).astype(int)
    edge = (image.width - image.height) // 2
    crop = np.ascontiguousarray(np.asarray(image)[:, edge : edge + image.height])
    made: list[NDArray[Any]] = [decode(data, PixelSpec(height=side, width=side, channels=3))]
    made += [cv2.resize(crop, (side, side), interpolation=how) for how in (cv2.INTER_AREA, cv2.INTER_LINEAR)]
    return [np.abs(pixels - theirs) for pixels in made]


def photograph(number: int) -> bytes:
    """A JPEG of 500x375, detailed, of quality 85; another one for each number."""
    return _jpeg(_picture(500, 375, DETAIL["detailed"], seed=number), 85, "4:2:0")


def _picture(width: int, height: int, fall: float, seed: int = 1) -> Image.Image:
    """Noise whose amplitude falls with the frequency to the power of ``fall``; colour varies less than brightness."""
    frequency = np.hypot(np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None])
    frequency[0, 0] = np.inf
    random = np.random.default_rng(seed)
    planes = np.empty((height, width, 3), np.uint8)
    for channel, spread in enumerate((50, 12, 12)):
        waves = random.normal(size=frequency.shape) + 1j * random.normal(size=frequency.shape)
        plane = np.fft.irfft2(waves / frequency**fall, s=(height, width))
        planes[:, :, channel] = (128 + spread * plane / plane.std()).clip(0, 255)
    return Image.fromarray(planes, "YCbCr").convert("RGB")


def _jpeg(picture: Image.Image, quality: int, subsampling: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def _medians(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of CPU time per call, each way's median over rounds that take turns."""
    calls = {}
    for name, work in ways.items():
        work()
        calls[name] = max(1, int(ROUND_SECONDS / _seconds(work, 3)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, work in ways.items():
            found[name].append(_seconds(work, calls[name]))
    return {name: 1e6 * statistics.median(seconds) for name, seconds in found.items()}


def _seconds(work: Callable[[], object], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - start) / calls


def _told(medians: Mapping[str, float]) -> str:
    ours = medians["ours"]
    return ", ".join(f"{name} {taken:,.0f} us ({taken / ours:.2f})" for name, taken in medians.items())


if __name__ == "__main__":
    main()
