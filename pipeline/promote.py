"""Promotion: the challenger becomes the champion if the quality gate lets it. What it decides by is gathered here.

- **Both models answer the same images**: the challenger's test split. The challenger's answers are those that its
  evaluation stored; the champion answers anew, from its ONNX file, with its own preprocessing.
- **The champion is replaced by compare and swap** against the alias that was judged. If another promotion moved it
  meanwhile, the challenger is judged again, against the new champion.
- A version that is the champion already stays it without being judged, so that a repeated flow goes on.
- **Before a canary** the gate moves alias ``challenger`` instead: which version is live is then decided by what clients
  see. Where there is no champion, there is nothing to compare with, and the first version becomes it at once.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import aliases, datasets, images, parquet, registry
from pipeline.aliases import CHALLENGER, CHAMPION
from pipeline.artifacts import DatasetVersion, GateConfig, ModelVersion, PixelSpec, PromotionDecision
from pipeline.errors import Conflict, Corrupted, NotFound
from pipeline.onnx_model import OnnxModel
from pipeline.progress import OnProgress, Progress, silent
from pipeline.quality_gate import Comparison, Tally, decide
from pipeline.registry import ModelManifest
from pipeline.zones import Zones

log = logging.getLogger(__name__)

Alias = Literal["champion", "challenger"]

ROUNDS = 3
"""How often a challenger is judged when others keep moving the alias."""

BATCH_BYTES = 32 << 20
"""Pixels that the champion gets at a time."""

SPLIT_BYTES = 1 << 30
"""Pixels of a test split that is read at once, from its shards; a larger one is read image by image."""

NO_ANSWER = -1
"""In place of a class index: the probabilities were not numbers."""

UNKNOWN_CLASS = -2
"""In place of a class index: a class that the challenger's dataset does not have."""


def promote(
    zones: Zones,
    challenger: ModelVersion,
    gate: GateConfig,
    *,
    by_canary: bool = False,
    on_progress: OnProgress = silent,
) -> PromotionDecision:
    """Judge a model version against the champion of its model, and make it the champion if it is better.

    With ``by_canary`` it becomes the challenger, where there is a champion.

    Raises:
        NotFound: the challenger, its dataset version, or the version that the alias names is not stored.
        Corrupted: a stored file is not what its manifest says, or the predictions are of other images.
        Conflict: other promotions kept moving the alias.
    """
    manifest = registry.read_manifest(zones.models, challenger.model, challenger.version)
    for _ in range(ROUNDS):
        state, etag = aliases.read_alias(zones.models, challenger.model, CHAMPION) or (None, None)
        if state and state.version == challenger.version:
            return _already(challenger, manifest)
        champion = _champion(zones, challenger.model, state.version) if state and state.version else None
        comparison = _gathered(zones, _read_answers(zones, manifest), champion, on_progress)
        alias: Alias = CHALLENGER if by_canary and champion else CHAMPION
        decision = _decision(challenger, champion, comparison, gate, alias)
        if not decision.promoted or _moved(zones, decision, etag):
            return decision
        log.warning("Alias %r of model %r moved meanwhile; judging again.", CHAMPION, challenger.model)
    raise Conflict(
        f"Alias {CHAMPION!r} of model {challenger.model!r} was moved by others {ROUNDS} times while version "
        f"{challenger.version} was judged: run the promotion again."
    )


def summary(decision: PromotionDecision) -> list[str]:
    """A decision in lines for a person."""
    verdict = f"is the {decision.alias}" if decision.promoted else "is not promoted"
    return [f"{decision.challenger.model} {decision.challenger.version} {verdict}.", *decision.reasons]


@dataclass(frozen=True, slots=True)
class _Answers:
    """The challenger's stored answers on its test split, ordered by image digest.

    Attributes:
        dataset: the dataset version that the test split is of.
        digests: SHA-256 of each image.
        labels: class index of each image, int64 (N,).
        predicted: class index that the challenger answers, or ``NO_ANSWER``, int64 (N,).
    """

    dataset: DatasetVersion
    digests: tuple[bytes, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]


def _read_answers(zones: Zones, manifest: ModelManifest) -> _Answers:
    data = registry.load_file(zones.models, manifest, "predictions.parquet")
    table = parquet.read_table(data, ["image_digest", "label", "predicted", "probability"])
    digests: tuple[bytes, ...] = tuple(table["image_digest"].to_pylist())  # type: ignore[arg-type]  # no nulls
    labels = table["label"].to_numpy().astype(np.int64)
    predicted = table["predicted"].to_numpy().astype(np.int64)
    predicted[~np.isfinite(table["probability"].to_numpy())] = NO_ANSWER
    index = {label: number for number, label in enumerate(manifest.dataset.classes)}
    split = datasets.labels_of(zones.datasets, manifest.dataset, "test")
    if [*zip(digests, labels.tolist(), strict=True)] != sorted((digest, index[split[digest]]) for digest in split):
        raise Corrupted(
            f"The predictions of model {manifest.model!r} {manifest.version} are of other images than the test split "
            f"of {manifest.dataset.dataset!r} {manifest.dataset.version}: evaluate and register its run again."
        )
    return _Answers(manifest.dataset, digests, labels, predicted)


def _champion(zones: Zones, model: str, version: str) -> ModelManifest:
    try:
        return registry.read_manifest(zones.models, model, version)
    except NotFound as error:
        raise NotFound(
            f"Alias {CHAMPION!r} of model {model!r} points at version {version}, which is not stored any more: point "
            "it at another one with `safelight models set-alias`."
        ) from error


def _already(challenger: ModelVersion, manifest: ModelManifest) -> PromotionDecision:
    return PromotionDecision(
        challenger=challenger,
        champion=challenger,
        promoted=True,
        reasons=(f"Version {challenger.version} is the champion already.",),
        challenger_accuracy=manifest.metrics["accuracy"],
        champion_accuracy=manifest.metrics["accuracy"],
    )


def _decision(
    challenger: ModelVersion, champion: ModelManifest | None, comparison: Comparison, gate: GateConfig, alias: Alias
) -> PromotionDecision:
    promoted, reasons = decide(comparison, gate)
    return PromotionDecision(
        challenger=challenger,
        champion=ModelVersion(model=champion.model, version=champion.version) if champion else None,
        promoted=promoted,
        reasons=reasons,
        challenger_accuracy=float(comparison.accuracy(comparison.challenger)),
        champion_accuracy=float(comparison.accuracy(comparison.champion)) if comparison.champion else None,
        alias=alias,
    )


def _gathered(zones: Zones, answered: _Answers, champion: ModelManifest | None, on_progress: OnProgress) -> Comparison:
    classes = answered.dataset.classes
    counts = np.bincount(answered.labels, minlength=len(classes)).tolist()
    challenger = _tally(classes, classes, answered.labels, answered.predicted)
    test_images = dict(zip(classes, counts, strict=True))
    if champion is None:
        return Comparison(test_images, challenger)
    predicted = _champion_answers(zones, answered, champion, on_progress)
    return Comparison(
        test_images,
        challenger,
        champion=_tally(champion.classes, classes, answered.labels, predicted),
        seen=_seen(zones, champion.dataset, answered.digests),
    )


def _tally(
    known: tuple[str, ...], classes: tuple[str, ...], labels: NDArray[np.int64], predicted: NDArray[np.int64]
) -> Tally:
    correct = np.bincount(labels[predicted == labels], minlength=len(classes)).tolist()
    return Tally(known, dict(zip(classes, correct, strict=True)), int((predicted == NO_ANSWER).sum()))


def _seen(zones: Zones, champion: DatasetVersion, digests: Iterable[bytes]) -> int | None:
    """How many of the images the champion was trained on or chosen by; None if its dataset version is gone."""
    try:
        version = datasets.find(zones.datasets, champion.dataset, champion.version)
    except NotFound:
        return None
    used = {
        *datasets.split_digests(zones.datasets, version, "train"),
        *datasets.split_digests(zones.datasets, version, "validation"),
    }
    return sum(digest in used for digest in digests)


def _champion_answers(
    zones: Zones, answered: _Answers, champion: ModelManifest, on_progress: OnProgress
) -> NDArray[np.int64]:
    """The champion's answer to each test image, as class indices of the challenger's dataset; int64 (N,)."""
    model = OnnxModel(registry.load_file(zones.models, champion, "model.onnx"), threads=os.cpu_count() or 1)
    index = {label: number for number, label in enumerate(answered.dataset.classes)}
    translated = np.array([*(index.get(label, UNKNOWN_CLASS) for label in champion.classes), NO_ANSWER])
    predicted = np.full(len(answered.digests), NO_ANSWER, np.int64)
    done = 0
    for rows, pixels in _batches(zones, answered, champion.pixels):
        predicted[rows] = translated[_best(model.probabilities(pixels))]
        done += len(pixels)
        on_progress(Progress("judging the champion", done, len(predicted)))
    return predicted


def _best(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """The likeliest class of each row, or ``NO_ANSWER`` where a probability is not a number."""
    best: NDArray[np.int64] = probabilities.argmax(axis=1).astype(np.int64)
    best[~np.isfinite(probabilities).all(axis=1)] = NO_ANSWER
    return best


def _batches(
    zones: Zones, answered: _Answers, spec: PixelSpec
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """All test images as the champion takes them: their rows int64 (B,), pixels uint8 (B, height, width, channels)."""
    image_bytes = spec.height * spec.width * spec.channels
    size = max(1, min(256, BATCH_BYTES // image_bytes))
    if spec == answered.dataset.pixels and image_bytes * len(answered.digests) <= SPLIT_BYTES:
        split = datasets.load_split(zones.datasets, answered.dataset, "test")
        for start in range(0, len(split.pixels), size):
            pixels = split.pixels[start : start + size]
            yield np.arange(start, start + len(pixels)), pixels
        return
    rows = {digest: row for row, digest in enumerate(answered.digests)}
    encoded = datasets.encoded_images(zones.images, zones.datasets, answered.dataset, answered.digests)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(encoded, size)):
            pixels = np.stack(list(pool.map(partial(images.decode, spec=spec), (data for _, data in batch))))
            yield np.array([rows[digest] for digest, _ in batch]), pixels


def _moved(zones: Zones, decision: PromotionDecision, etag: str | None) -> bool:
    """Whether the alias went to the challenger, while the champion was the one that was judged."""
    models, challenger, reason = zones.models, decision.challenger, f"Promoted: {decision.reasons[0]}"
    if decision.alias == CHALLENGER:
        aliases.set_alias(models, challenger.model, CHALLENGER, challenger.version, reason=reason)
        return aliases.etag_of(models, challenger.model, CHAMPION) == etag
    try:
        aliases.set_alias(models, challenger.model, CHAMPION, challenger.version, reason=reason, expected=etag)
    except Conflict:
        return False
    return True
