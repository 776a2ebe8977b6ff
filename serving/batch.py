"""decode → predict for what is computed together; no threads, no queues.

- A call whose client has left, or whose deadline has passed, is not computed.
- What is wrong with one call is that call's own error; the others of its batch are answered.
- A model that raises on a batch gets its calls one by one, so that only those fail on which it raises.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidImage, InvalidInput
from pipeline.image_files import EncodedImage
from pipeline.onnx_model import OnnxModel
from serving.calls import Call, now
from serving.counts import Counts, Role
from serving.errors import ClientGone, DeadlineExceeded, ModelFailed
from serving.live_model import Answers, LiveModel, best_of
from serving.uploads import Upload

log = logging.getLogger(__name__)

Image = Upload | NDArray[np.uint8]
"""An encoded image, or the pixels of one: uint8 (height, width, channels)."""
Outcome = Answers | Exception
Done = Callable[[Outcome], None]

SMALL_BYTES: Final = 32 << 10
SMALL_PIXELS: Final = 128 * 128
"""Larger images are not decoded by the event loop, nor those whose header may say less than is there."""
HONEST: Final = frozenset({"PNG", "JPEG"})
LARGE_PIXELS: Final = 16_000_000
"""Images of more, together, take their turns: each may take 16 bytes per pixel, and two seconds."""
MOST_PIXELS: Final = 200_000_000
"""Of all images of a call; four times as many where they are JPEGs, which are decoded smaller."""


@dataclass(slots=True)
class Job:
    """A call that waits, and what becomes of it.

    Attributes:
        sent: its images, as they came.
        done: told once, on the event loop.
        found: of each encoded image, what its header says; None for pixels.
        size: of all images, in bytes.
        pixels: of each image, uint8 (height, width, channels), once decoded as ``spec`` wants.
    """

    call: Call
    sent: Sequence[Image]
    done: Done
    queued: float
    found: list[EncodedImage | None] = field(default_factory=list)
    size: int = 0
    pixels: Sequence[NDArray[np.uint8]] = ()
    spec: PixelSpec | None = None
    digests: list[bytes] = field(default_factory=list)

    @property
    def is_small(self) -> bool:
        """Whether decoding takes less than it would to wake another thread for it."""
        return self.size <= SMALL_BYTES and all(
            each is None or (each.width * each.height <= SMALL_PIXELS and each.format in HONEST) for each in self.found
        )

    @property
    def is_large(self) -> bool:
        """Whether its images would take too much memory beside others of their kind."""
        return sum(each.width * each.height for each in self.found if each) > LARGE_PIXELS


def examine(job: Job) -> None:
    """Look at the headers of a job's images.

    Raises:
        InvalidImage: one of them is not an image we read, or all of them together are too large.
    """
    if job.found:
        return
    total = len(job.sent)
    for number, image in enumerate(job.sent, 1):
        if isinstance(image, Upload):
            try:
                job.found.append(images.examined(image.data))
            except InvalidImage as error:
                raise _named(error, image, number, total) from error
        else:
            job.found.append(None)
    work = sum(each.width * each.height * (1 if each.format == "JPEG" else 4) for each in job.found if each)
    if work > 4 * MOST_PIXELS:
        raise InvalidImage(
            f"The images have more than {MOST_PIXELS // 10**6} million pixels together: send fewer at once."
        )


def size_of(sent: Sequence[Image]) -> int:
    """Bytes of images as they were sent."""
    return sum(len(_bytes(image)) for image in sent)


def decode(job: Job, spec: PixelSpec) -> None:
    """Make a job's pixels as ``spec`` wants them, unless they are already.

    Raises:
        InvalidImage: an image cannot be decoded.
        InvalidInput: pixels of another size than the model's.
    """
    if job.spec == spec:
        return
    if not job.digests:
        job.digests = [hashlib.sha256(_bytes(each)).digest() for each in job.sent]
    each = zip(job.sent, job.found, strict=True)
    job.pixels = [_decoded(*one, spec, number, len(job.sent)) for number, one in enumerate(each, 1)]
    job.spec = spec


def why_not(job: Job) -> Exception | None:
    """Why nobody wants a job's answer any more; None where somebody does."""
    if job.call.gone():
        return ClientGone("The client left before its turn came.")
    if job.call.is_late(now()):
        return DeadlineExceeded("The deadline of this request passed while it waited.")
    return None


def compute(
    jobs: Sequence[Job], live: LiveModel, model: OnnxModel, top_k: int, counts: Counts, *, role: Role = "champion"
) -> list[Outcome]:
    """What each job gets, in their order.

    Args:
        jobs: together no more images than are computed at once, but for a single job.
        live: the version that answers.
        model: of that version, with as many threads as may be used.
        top_k: classes that an answer names.
        counts: of this process.
        role: as which the version answers.
    """
    begun = now()
    outcomes: list[Outcome | None] = [why_not(job) or _decode_error(job, live) for job in jobs]
    good = [job for job, error in zip(jobs, outcomes, strict=True) if error is None]
    decoded = now()
    counts.stage("decode", decoded - begun)
    if good:
        answers = iter(_answered(good, live, model, top_k, role))
        counts.stage("predict", now() - decoded)
        counts.batch(sum(len(job.sent) for job in good))
        outcomes = [next(answers) if each is None else each for each in outcomes]
    return [each for each in outcomes if each is not None]


def _decode_error(job: Job, live: LiveModel) -> Exception | None:
    try:
        decode(job, live.manifest.pixels)
    except InvalidInput as error:
        return error
    return None


def _answered(jobs: Sequence[Job], live: LiveModel, model: OnnxModel, top_k: int, role: Role) -> list[Outcome]:
    try:
        probabilities = _probabilities(jobs, live, model)
    except Exception as error:  # whatever a model's graph does
        if len(jobs) > 1:
            return [outcome for job in jobs for outcome in _answered([job], live, model, top_k, role)]
        if role == "champion":  # of the challenger, which is on trial for that, the first time is told
            log.exception("version %s failed on an image", live.manifest.version)
        failed = ModelFailed(f"Version {live.manifest.version} failed on this image; the server's log has the details.")
        failed.__cause__ = error
        return [failed]
    best, likely = best_of(probabilities, top_k)
    outcomes: list[Outcome] = []
    start = 0
    for job in jobs:
        end = start + len(job.sent)
        outcomes.append(Answers(live, role, probabilities[start:end], best[start:end], likely[start:end], job.digests))
        start = end
    return outcomes


def _probabilities(jobs: Sequence[Job], live: LiveModel, model: OnnxModel) -> NDArray[np.float32]:
    pixels = np.stack([image for job in jobs for image in job.pixels])
    if len(pixels) <= live.batch:
        return model.probabilities(pixels)
    starts = range(0, len(pixels), live.batch)
    return np.concatenate([model.probabilities(pixels[start : start + live.batch]) for start in starts])


def _decoded(image: Image, found: EncodedImage | None, spec: PixelSpec, number: int, total: int) -> NDArray[np.uint8]:
    if isinstance(image, Upload) and found is not None:
        try:
            return images.decode_examined(found, spec)
        except InvalidImage as error:
            raise _named(error, image, number, total) from error
    assert not isinstance(image, Upload)  # noqa: S101 - every upload is examined first
    wanted = (spec.height, spec.width, spec.channels)
    if image.shape != wanted:
        raise InvalidInput(f"This model takes pixels of shape {wanted}, not {image.shape}.")
    return image


def _bytes(image: Image) -> bytes | memoryview:
    return image.data if isinstance(image, Upload) else np.ascontiguousarray(image).data


def _named(error: InvalidImage, image: Upload, number: int, total: int) -> InvalidImage:
    which = f"Image {number} of {total} ({image.name[:80]!r})" if total > 1 else "The image"
    return InvalidImage(f"{which} cannot be used: {error}.")
