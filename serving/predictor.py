"""decode → predict → encode: from the bytes of images to answers, on threads of its own.

- Decoding and ONNX Runtime release the GIL, so threads use all cores; each image stays on one thread from the first
  byte to the answer, and both libraries are told to bring no threads of their own. The event loop only moves bytes.
- A request is answered by one ``LiveModel``, taken when its turn comes and kept until it is answered, whatever goes
  live meanwhile: the version in the answer is the version that computed it.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.artifacts import PixelSpec
from pipeline.errors import Corrupted, InvalidImage
from pipeline.onnx_model import OnnxModel
from pipeline.registry import ModelManifest
from serving.schemas import ClassProbability, Prediction
from serving.uploads import Upload, uploads

BATCH = 16
"""Images of one request that are classified together."""
DECIMALS = 6
"""Of a probability in an answer; float32 carries no more."""


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A loaded model version."""

    manifest: ModelManifest
    model: OnnxModel


class NothingLive(Exception):
    """No version answers at this moment."""


class Predictor:
    """The threads that answer."""

    def __init__(self, live: Callable[[], LiveModel | None], threads: int, top_k: int) -> None:
        """``live`` tells the model that answers at the moment; it may block."""
        cv2.setNumThreads(1)
        self._live = live
        self._top_k = top_k
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")

    async def answer(self, content_type: str, body: bytes) -> list[Prediction]:
        """A prediction for each image in a request's body.

        Raises:
            NothingLive: no version answers.
            InvalidInput: there is no image in the body.
            InvalidImage: one of them is not an image we read.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._answer, content_type, body)

    def close(self) -> None:
        """Let the threads finish what they are at."""
        self._pool.shutdown()

    def _answer(self, content_type: str, body: bytes) -> list[Prediction]:
        live = self._live()
        if live is None:
            raise NothingLive
        return predict(live, uploads(content_type, body), self._top_k)


def predict(live: LiveModel, encoded: Sequence[Upload], top_k: int) -> list[Prediction]:
    """A prediction for each encoded image.

    Raises:
        InvalidImage: one of them is not an image we read.
    """
    predictions: list[Prediction] = []
    for start in range(0, len(encoded), BATCH):
        batch = encoded[start : start + BATCH]
        pixels = [_decoded(upload, number, len(encoded), live) for number, upload in enumerate(batch, start + 1)]
        predictions += [_prediction(row, live.manifest, top_k) for row in live.model.probabilities(np.stack(pixels))]
    return predictions


def warm_up(model: OnnxModel, pixels: PixelSpec, classes: int) -> None:
    """Make the first answers, on noise, alone and in a batch, so that no client waits for them.

    Raises:
        Corrupted: the model does not give one distribution over the classes for each image.
    """
    for count in (1, BATCH):
        shape = (count, pixels.height, pixels.width, pixels.channels)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        answer = model.probabilities(noise)
        if answer.shape != (count, classes) or not np.allclose(answer.sum(axis=1), 1, atol=1e-3):
            raise Corrupted(f"The model does not answer with probabilities of its {classes} classes.")


def _decoded(upload: Upload, number: int, total: int, live: LiveModel) -> NDArray[np.uint8]:
    try:
        return images.decode(upload.data, live.manifest.pixels)
    except InvalidImage as error:
        which = f"Image {number} of {total} ({upload.name[:80]!r})" if total > 1 else "The image"
        raise InvalidImage(f"{which} cannot be used: {error}.") from error


def _prediction(probabilities: NDArray[np.float32], manifest: ModelManifest, top_k: int) -> Prediction:
    best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    top = tuple(
        ClassProbability(
            label=manifest.classes[index], probability=min(1.0, round(float(probabilities[index]), DECIMALS))
        )
        for index in best
    )
    return Prediction(
        label=top[0].label,
        probability=top[0].probability,
        top=top,
        model=manifest.model,
        model_version=manifest.version,
        dataset_version=manifest.dataset.version,
    )


def share_of_cores(processes: int) -> int:
    """Cores for each of so many processes, at least one; where the system does not tell, of all there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // processes)
