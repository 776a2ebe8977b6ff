"""A loaded model version, where its answers are computed, and what one answer is.

**Where a model is computed is decided by what it costs**, which is measured on noise before it goes live:

- A model that takes less than ``INLINE_S`` for an image is computed by the event loop itself, between two looks at the
  network: whatever arrived meanwhile is one batch, and no thread has to be woken for it.
- A slower one is computed by a thread of its own, so that the loop goes on answering. It is loaded twice where several
  processes share the cores: once for this process's share, and once for all of them. A request that is alone on the
  machine gets every core, and when all processes are busy each keeps to its share (``cores``).
"""

import time
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import PixelSpec
from pipeline.errors import Corrupted
from pipeline.onnx_model import OnnxModel
from pipeline.registry import ModelManifest
from serving.counts import Role

INLINE_S: Final = 0.001
"""For one image, by one thread: a slower model is not computed by the event loop."""
ROUND_S: Final = 0.004
"""How long the event loop computes at a stretch."""
SLOW_ROUND_S: Final = 0.05
"""The same of the thread that computes slow models; a longer batch is hardly cheaper, and makes who comes next wait."""
LARGEST_BATCH: Final = 64
WARM_UPS: Final = 3
DECIMALS: Final = 6
"""Of a probability in an answer; float32 carries no more."""


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A loaded model version.

    Attributes:
        model: computes with this process's share of the cores.
        wide: computes with all cores; None where that is the same, or the model too quick to need it.
        image_s: what an image takes in a batch, by ``model``, in seconds.
        inline: the event loop itself computes it.
    """

    manifest: ModelManifest
    model: OnnxModel
    wide: OnnxModel | None = None
    image_s: float = 0.0
    inline: bool = True

    @classmethod
    def loaded(cls, manifest: ModelManifest, onnx: bytes, share: int, cores: int) -> Self:
        """A version, loaded, measured and warm.

        Args:
            manifest: of the version.
            onnx: its ``model.onnx``.
            share: cores of this process.
            cores: cores of all processes together.

        Raises:
            Corrupted: it is no model, or does not give one distribution over the classes for each image.
        """
        pixels, classes = manifest.pixels, len(manifest.classes)
        model = OnnxModel(onnx)
        if warm_up(model, pixels, classes, 1) < INLINE_S:
            return cls(manifest, model, image_s=warm_up(model, pixels, classes, 16) / 16)
        if share > 1:
            model = OnnxModel(onnx, threads=share)
        wide = OnnxModel(onnx, threads=cores) if cores > share else None
        if wide:
            warm_up(wide, pixels, classes, 1)
        return cls(manifest, model, wide, warm_up(model, pixels, classes, 2) / 2, inline=False)

    @property
    def batch(self) -> int:
        """How many images are computed together at most."""
        within = ROUND_S if self.inline else SLOW_ROUND_S
        return max(1, min(LARGEST_BATCH, int(within / max(self.image_s, 1e-6))))


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model version says of all images of one call.

    Attributes:
        probabilities: float32 (N, classes).
        best: of each image, the most probable classes by index, best first.
        likely: their probabilities, as they are shown: rounded to ``DECIMALS``.
        digests: SHA-256 of each image as it was sent; of pixels, of their bytes.
    """

    live: LiveModel
    role: Role
    probabilities: NDArray[np.float32]
    best: list[list[int]]
    likely: list[list[float]]
    digests: list[bytes]


def warm_up(model: OnnxModel, pixels: PixelSpec, classes: int, images: int) -> float:
    """Make the first answers, on noise, so that no client waits for them; the quickest one's seconds of this thread.

    What other programs take of the machine meanwhile does not count: it is no reason to take a quick model for slow.

    Raises:
        Corrupted: the model does not give one distribution over the classes for each image.
    """
    shape = (images, pixels.height, pixels.width, pixels.channels)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    took = []
    for _ in range(WARM_UPS):
        begun = time.thread_time()
        answer = model.probabilities(noise)
        took.append(time.thread_time() - begun)
        if answer.shape != (images, classes) or not np.allclose(answer.sum(axis=1), 1, atol=1e-3):
            raise Corrupted(f"The model does not answer with probabilities of its {classes} classes.")
    return min(took)


def best_of(probabilities: NDArray[np.float32], top_k: int) -> tuple[list[list[int]], list[list[float]]]:
    """The ``top_k`` most probable classes of each row, best first (of equals, the first), and their probabilities."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    likely = np.take_along_axis(probabilities, best, 1).astype(np.float64).round(DECIMALS)
    return best.tolist(), np.minimum(likely, 1.0).tolist()
