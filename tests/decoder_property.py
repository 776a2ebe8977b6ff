"""What the decoder does with any bytes at all; a fuzzer and a test ask the same."""

from pipeline import images
from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidImage

SPECS = tuple(
    PixelSpec(height=height, width=width, channels=channels, fit=fit)
    for height, width in ((28, 28), (8, 64))
    for channels in (1, 3)
    for fit in ("crop", "stretch")
)


def decodes_or_refuses(data: bytes) -> None:
    """Decode ``data`` in one of a few ways, which its last byte chooses.

    Raises:
        AssertionError: the pixels are of another shape, or two readings of the header differ.
        Exception: anything but InvalidImage.
    """
    spec = SPECS[data[-1] % len(SPECS)] if data else SPECS[0]
    try:
        header, pixels = images.decode_with_header(data, spec)
    except InvalidImage:
        return
    assert pixels.shape == (spec.height, spec.width, min(header.channels, spec.channels)), pixels.shape
    assert header == images.read_header(data)
