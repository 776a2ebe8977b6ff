"""A part of a batch: listed objects → a table with a row for each of them, an answer or the reason why there is none.

- **Answers are the server's.** The same function decodes, the same file of the same version answers, and what one image
  does to the decoder or to the model is that image's row alone.
- Bytes decide what an image is, as for the server. Only a name that says otherwise (``notes.txt``), and what an
  operating system made for itself, is believed, and not fetched.
- Some images at a time are decoded and put through the model by one thread, without a queue in between; threads as
  there are cores, so that no core waits for the other half of the work.
- Memory: what ``read_many`` has in flight, a few groups of pixels, and the probabilities of one part.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import batch_plans, batches, images, raw, registry
from pipeline.ahead import ahead
from pipeline.artifacts import PixelSpec
from pipeline.batches import BatchPart, Part
from pipeline.dataset_index import values
from pipeline.errors import InvalidImage
from pipeline.onnx_model import OnnxModel
from pipeline.registry import ModelManifest
from pipeline.store import Store

log = logging.getLogger(__name__)

GROUP_IMAGES: Final = 64
GROUP_PIXELS: Final = 1 << 20
"""Of the images that are put through the model together: a network needs some hundred bytes for each meanwhile."""
GROUP_BYTES: Final = 8 << 20
IN_FLIGHT_BYTES: Final = 64 << 20
"""Of encoded images that threads were given."""
GONE: Final = "deleted since it was listed"
FAILED: Final = "the model failed on it"

COLUMNS: Final[dict[str, Any]] = {
    "key": pa.string(),
    "size": pa.int64(),
    "etag": pa.string(),
    "image_sha256": pa.string(),
    "label": pa.string(),
    "probability": pa.float32(),
    "probabilities": pa.list_(pa.float32()),
    "reason": pa.string(),
    "model": pa.string(),
    "model_version": pa.string(),
    "dataset_version": pa.string(),
}
"""Of a part: a row for each listed object, by key.

Size and etag are the listing's; the digest is of the bytes that were answered. ``label``, its ``probability`` and the
``probabilities`` of all classes, ordered as the manifest and the file's metadata say, are null where ``reason`` is not.
"""


_array: Any = pa.array
"""pyarrow's stubs do not tell what becomes of numpy's arrays."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one object: its digest, in hexadecimal, and float32 (classes,) or the reason against it."""

    digest: str | None = None
    probabilities: NDArray[np.float32] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """A loaded version, what it takes, and in how many threads it is asked."""

    spec: PixelSpec
    model: OnnxModel
    threads: int


def answer_part(
    source: Store, models: Store, predictions: Store, part: Part, *, decode_threads: int | None = None
) -> BatchPart:
    """Answer the images of a part, and store the table, unless it was stored meanwhile.

    Args:
        source: the store at ``part.source``.
        models: the models zone.
        predictions: the predictions zone.
        part: what to do.
        decode_threads: images decoded and answered at once; by default one per core.

    Raises:
        NotFound: the model version is gone.
        StoreError: something was removed or altered meanwhile, or the store stayed away.
    """
    # Images are decoded in threads already; OpenCV's own would only fight with them.
    cv2.setNumThreads(1)
    manifest = registry.read_manifest(models, part.model, part.version)
    model = OnnxModel(registry.load_file(models, manifest, "model.onnx"))
    listed = batch_plans.read_listing(predictions, part.listing)
    answers = _answers(
        source, listed, part.prefix, _Model(manifest.pixels, model, decode_threads or os.cpu_count() or 1)
    )
    rows, left_out = _rows(listed, answers, manifest)
    data = batches.encode_part(part, rows, manifest.classes, left_out)
    return batches.described(predictions, part, predictions.write_once(part.key, data))


def why_unread(path: str, size: int) -> str | None:
    """Why an object is not fetched, or None.

    Args:
        path: of the object, below the folder that was asked for.
        size: of the object, in bytes.
    """
    reason = raw.why_skipped(path)
    if reason == raw.NOT_AN_IMAGE and not PurePosixPath(path).suffix:
        reason = None  # a name that says nothing
    if reason is None and size > images.MAX_BYTES:
        reason = f"too large: {size:,} bytes, the limit is {images.MAX_BYTES:,}"
    return reason


def answer_group(group: Sequence[bytes | None], spec: PixelSpec, model: OnnxModel) -> list[Answer]:
    """The answers to some encoded images, None where one is gone."""
    digests = [None if data is None else hashlib.sha256(data).hexdigest() for data in group]
    decoded = [GONE if data is None else _decoded(data, spec) for data in group]
    answered = iter(_probabilities([pixels for pixels in decoded if not isinstance(pixels, str)], model))
    found = [pixels if isinstance(pixels, str) else next(answered) for pixels in decoded]
    return [
        Answer(digest, reason=each) if isinstance(each, str) else Answer(digest, each)
        for digest, each in zip(digests, found, strict=True)
    ]


def _answers(source: Store, listed: pa.Table, prefix: str, by: _Model) -> Iterator[Answer]:
    """An answer to each listed object, in order."""
    objects = list(zip(values(listed["key"]), values(listed["size"]), strict=True))
    reasons = [why_unread(key.removeprefix(f"{prefix}/"), size) for key, size in objects]
    wanted = [each for each, reason in zip(objects, reasons, strict=True) if reason is None]
    reading = raw.read_raw(source, (key for key, _ in wanted), (size for _, size in wanted))
    groups = ahead(
        _groups(reading, by.spec),
        lambda group: answer_group(group, by.spec, by.model),
        lambda group: sum(len(data or b"") for data in group),
        threads=by.threads,
        limit=IN_FLIGHT_BYTES,
    )
    read = (answer for _, answers in groups for answer in answers)
    for reason in reasons:
        yield next(read) if reason is None else Answer(reason=reason)


def _groups(reading: Iterable[bytes | None], spec: PixelSpec) -> Iterator[list[bytes | None]]:
    """Several images that are put through the model together."""
    count = max(1, min(GROUP_IMAGES, GROUP_PIXELS // (spec.height * spec.width)))
    group: list[bytes | None] = []
    size = 0
    for data in reading:
        group.append(data)
        size += len(data or b"")
        if len(group) == count or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _decoded(data: bytes, spec: PixelSpec) -> NDArray[np.uint8] | str:
    try:
        return images.decode(data, spec)
    except InvalidImage as error:
        return str(error)


def _probabilities(pixels: Sequence[NDArray[np.uint8]], model: OnnxModel) -> list[NDArray[np.float32] | str]:
    """The probabilities of each image; one by one where the model raises, so that only those fail on which it does."""
    if not pixels:
        return []
    try:
        return list(model.probabilities(np.stack(pixels)))
    except Exception as error:  # noqa: BLE001 - whatever a model's graph does
        if len(pixels) > 1:
            return [found for each in pixels for found in _probabilities([each], model)]
        log.warning("the model failed on an image: %s", error)
        return [f"{FAILED}: {type(error).__name__}"]


def _rows(listed: pa.Table, answers: Iterable[Answer], manifest: ModelManifest) -> tuple[pa.Table, dict[str, int]]:
    """The table of a part (``COLUMNS``), and how many of its rows have no answer, by reason."""
    found = list(answers)
    none = np.array([each.probabilities is None for each in found], bool)
    answered = [each.probabilities for each in found if each.probabilities is not None]
    likely = np.stack(answered) if answered else np.zeros((0, len(manifest.classes)), np.float32)
    best, highest = np.zeros(len(found), np.int64), np.zeros(len(found), np.float32)
    best[~none] = likely.argmax(axis=1)  # of equals the first, as the server answers
    highest[~none] = likely.max(axis=1, initial=0)
    ends = np.concatenate([[0], np.cumsum(~none) * likely.shape[1]]).astype(np.int32)
    columns: dict[str, Any] = {
        **{name: listed[name] for name in ("key", "size", "etag")},
        "image_sha256": [each.digest for each in found],
        "label": _array(manifest.classes).take(_array(best, mask=none)),
        "probability": _array(highest, mask=none),
        "probabilities": pa.ListArray.from_arrays(_array(ends), _array(likely.reshape(-1)), mask=_array(none)),
        "reason": [each.reason for each in found],
        "model": pa.repeat(manifest.model, len(found)),
        "model_version": pa.repeat(manifest.version, len(found)),
        "dataset_version": pa.repeat(manifest.dataset.version, len(found)),
    }
    left_out = Counter(each.reason.partition(":")[0] for each in found if each.reason is not None)
    return pa.table(columns, schema=pa.schema(COLUMNS)), dict(sorted(left_out.items()))
