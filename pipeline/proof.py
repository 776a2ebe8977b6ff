"""The proof that a server answers as the evaluation did: test images of all classes, asked over HTTP.

Test images go through the whole server (HTTP, decoding, model) and must come back as the evaluation, in another
process, said: that catches what the quality gate cannot see, namely a server that prepares its pixels, or orders its
classes, in another way.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from pipeline import datasets, parquet, registry
from pipeline.errors import DeployFailed
from pipeline.progress import OnProgress, Progress
from pipeline.registry import ModelManifest
from pipeline.zones import Zones

PREDICTIONS = "predictions.parquet"
SMOKE_IMAGES = 32
LARGEST_IMAGE = 16 << 20
"""Bytes; larger ones are not sent, since what is proven has nothing to do with the server's limit on bodies."""
LARGEST_DIFFERENCE = 1e-4
"""Of a probability between the evaluation and the server."""
CLEAR_GAP = 2e-4
"""Between the evaluation's two most probable classes, above which the server's label must be the same."""
CALLER = "X-Caller-Key"
"""The header by which a request says whose it is: during a canary a caller sticks to one of two versions."""
CALLERS = 32
"""Callers that are tried until one of them reaches the version."""
NOT_NOW = (429, 502, 503, 504)
"""What a server answers that has too much to do, and what it, or what stands in front of it, while it comes or goes."""


@dataclass(frozen=True, slots=True)
class Question:
    """A test image as it was uploaded, and what the evaluation said of it: float (classes,)."""

    digest: str
    encoded: bytes
    probabilities: NDArray[np.float64]


def smoke_set(zones: Zones, manifest: ModelManifest, count: int = SMOKE_IMAGES) -> list[Question]:
    """Up to ``count`` test images of all classes, the same ones each time, with the evaluation's predictions.

    Raises:
        Corrupted: the predictions beside the model were altered.
        NotFound: the dataset version is gone.
    """
    table = parquet.read_table(registry.load_file(zones.models, manifest, PREDICTIONS))
    rows = table.take(spread(table["label"].to_numpy().tolist(), count)).to_pylist()
    expected: dict[bytes, list[float]] = {row["image_digest"]: row["probabilities"] for row in rows}
    encoded = datasets.encoded_images(zones.images, zones.datasets, manifest.dataset, list(expected))
    return [
        Question(digest.hex(), data, np.asarray(expected[digest]))
        for digest, data in encoded
        if len(data) <= LARGEST_IMAGE
    ]


def spread(labels: Sequence[int], count: int) -> list[int]:
    """Up to ``count`` positions in ``labels``, as evenly over the labels as there are any, ascending.

    Takes the first of every label, then the second, and so on; where there are more labels than ``count``, labels at
    equal distances.
    """
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        positions.setdefault(label, []).append(position)
    classes = sorted(positions)
    if len(classes) > count:
        classes = [classes[number * len(classes) // count] for number in range(count)]
    turns = sorted((turn, label) for label in classes for turn in range(min(count, len(positions[label]))))
    return sorted(positions[label][turn] for turn, label in turns[:count])


def prove(
    client: httpx.Client, questions: Sequence[Question], manifest: ModelManifest, on_progress: OnProgress
) -> str | None:
    """Ask the server every question; why it could not be asked just now, as a clause, None if it has proven itself.

    Raises:
        DeployFailed: there is no question, or an answer is not what the evaluation said.
    """
    if not questions:
        raise DeployFailed("there is no test image to prove it with")
    caller = secrets.token_hex(8)
    for number, question in enumerate(questions, 1):
        for _ in range(CALLERS):
            said = _asked(client, question, caller)
            if isinstance(said, str) or said["model_version"] == manifest.version:
                break
            caller = secrets.token_hex(8)
        if isinstance(said, str):
            return said
        if said["model_version"] != manifest.version:
            return f"answers test images with version {said['model_version']}"
        wrong = difference(question, said, manifest)
        if wrong:
            raise DeployFailed(wrong)
        on_progress(Progress("asking the server", number, len(questions)))
    return None


def difference(question: Question, answer: Mapping[str, Any], manifest: ModelManifest) -> str | None:
    """What is wrong with the server's answer, as a clause; None if it is what the evaluation said."""
    image = f"test image {question.digest[:12]}"
    expected = dict(zip(manifest.classes, question.probabilities.tolist(), strict=True))
    second, first = np.sort(question.probabilities)[-2:]
    best = max(expected, key=lambda label: expected[label])
    if answer["label"] != best and first - second > CLEAR_GAP:
        return f"{image} is {answer['label']!r} to the server and {best!r} to the evaluation"
    for each in answer["top"]:
        wanted = expected.get(each["label"], -1.0)
        if abs(each["probability"] - wanted) > LARGEST_DIFFERENCE:
            return f"{image} is {each['label']!r} with {each['probability']} to the server and {wanted:.6f} before"
    return None


def _asked(client: httpx.Client, question: Question, caller: str) -> Mapping[str, Any] | str:
    """The server's answer to a question; why there is none just now, as a clause.

    Raises:
        DeployFailed: it refuses the question.
    """
    try:
        answer = client.post("/predict", content=question.encoded, headers={CALLER: caller})
    except httpx.TransportError as error:
        return f"does not answer: {error or type(error).__name__}"
    if answer.status_code in NOT_NOW:
        return f"answers test images with status {answer.status_code}"
    if not answer.is_success:
        raise DeployFailed(f"test image {question.digest[:12]} was refused: {answer.text[:300]}")
    said: Mapping[str, Any] = answer.json()
    return said
