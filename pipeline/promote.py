"""The quality gate: a pure rule that says whether a challenger becomes the champion, and why.

- **Both models answer the same images**: the challenger's test split. The challenger's answers are those that its
  evaluation stored; the champion answers anew, from its ONNX file, with its own preprocessing.
- **The rule counts images**, in exact arithmetic with the bounds as a person wrote them: an accuracy that equals a
  bound never falls on the wrong side by a rounding error. Equal to the minimum is enough; equal to the margin is
  enough, except at a margin of 0, where one more correct image is needed; a class may lose exactly the bound.
- **The champion is replaced by compare and swap** against the alias that was judged. If another promotion moved it
  meanwhile, the challenger is judged again, against the new champion.
- A version that is the champion already stays it without being judged, so that a repeated flow goes on.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import datasets, images, registry
from pipeline.artifacts import DatasetVersion, GateConfig, ModelVersion, PixelSpec, PromotionDecision
from pipeline.errors import Conflict, Corrupted, NotFound
from pipeline.onnx_model import OnnxModel
from pipeline.progress import OnProgress, Progress, silent
from pipeline.registry import CHAMPION, ModelManifest
from pipeline.zones import Zones

ROUNDS = 3
"""How often a challenger is judged when others keep moving the alias."""

BATCH_BYTES = 32 << 20
"""Pixels that the champion gets at a time."""

SPLIT_BYTES = 1 << 30
"""Pixels of a test split that is read at once, from its shards; a larger one is read image by image."""

NAMED = 10
"""Classes that a reason names one by one."""

NO_ANSWER = -1
"""In place of a class index: the probabilities were not numbers."""

UNKNOWN_CLASS = -2
"""In place of a class index: a class that the challenger's dataset does not have."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What one model answers on the test images.

    Attributes:
        classes: the labels that it knows.
        correct: test images answered with their own label, by that label; labels without any may be left out.
        unanswered: test images whose answer is not a number.
    """

    classes: tuple[str, ...]
    correct: Mapping[str, int]
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that the rule decides by, beside its bounds.

    Attributes:
        images: test images by label; every label is one of the challenger's classes.
        challenger: what the challenger answers on them.
        champion: what the champion answers on them, if there is one.
        seen: how many of them the champion was trained on or chosen by; None if that cannot be known.
    """

    images: Mapping[str, int]
    challenger: Tally
    champion: Tally | None = None
    seen: int | None = 0

    @property
    def total(self) -> int:
        """Test images in all."""
        return sum(self.images.values())

    def accuracy(self, tally: Tally) -> Fraction:
        """Share of the test images that are answered correctly; 0 if there are none."""
        return _share(sum(tally.correct.values()), self.total)

    def recall(self, tally: Tally, label: str) -> Fraction:
        """Share of one class's test images that are answered correctly."""
        return _share(tally.correct.get(label, 0), self.images[label])


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the gate looked at: whether it stands in the way, and the sentence that says so."""

    fine: bool
    sentence: str


def decide(comparison: Comparison, gate: GateConfig) -> tuple[bool, tuple[str, ...]]:
    """Whether the challenger may become the champion, and one sentence per finding.

    What stands in the way comes first; otherwise what decided for the challenger does.
    """
    champion = comparison.champion
    findings = [
        *(_gain(comparison, champion, gate) if champion else ()),
        *_minimum(comparison, gate),
        *(_against(comparison, champion, gate) if champion else [Finding(True, "There is no champion yet.")]),
    ]
    findings.sort(key=lambda finding: finding.fine)
    return all(finding.fine for finding in findings), tuple(finding.sentence for finding in findings)


def promote(
    zones: Zones, challenger: ModelVersion, gate: GateConfig, *, on_progress: OnProgress = silent
) -> PromotionDecision:
    """Judge a model version against the champion of its model, and make it the champion if it is better.

    Raises:
        NotFound: the challenger, its dataset version, or the version that the alias names is not stored.
        Corrupted: a stored file is not what its manifest says, or the predictions are of other images.
        Conflict: other promotions kept moving the alias.
    """
    manifest = registry.read_manifest(zones.models, challenger.model, challenger.version)
    for _ in range(ROUNDS):
        state, etag = registry.read_alias(zones.models, challenger.model, CHAMPION) or (None, None)
        if state and state.version == challenger.version:
            return _already(challenger, manifest)
        champion = _champion(zones, challenger.model, state.version) if state and state.version else None
        comparison = _gathered(zones, _read_answers(zones, manifest), champion, on_progress)
        decision = _decision(challenger, champion, comparison, gate)
        if not decision.promoted or _moved(zones, decision, etag):
            return decision
    raise Conflict(
        f"Alias {CHAMPION!r} of model {challenger.model!r} was moved by others {ROUNDS} times while version "
        f"{challenger.version} was judged: run the promotion again."
    )


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
    table = pq.read_table(pa.BufferReader(data), columns=["image_digest", "label", "predicted", "probability"])
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
    challenger: ModelVersion, champion: ModelManifest | None, comparison: Comparison, gate: GateConfig
) -> PromotionDecision:
    promoted, reasons = decide(comparison, gate)
    return PromotionDecision(
        challenger=challenger,
        champion=ModelVersion(model=champion.model, version=champion.version) if champion else None,
        promoted=promoted,
        reasons=reasons,
        challenger_accuracy=float(comparison.accuracy(comparison.challenger)),
        champion_accuracy=float(comparison.accuracy(comparison.champion)) if comparison.champion else None,
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
    """Whether the alias went from the state that was judged to the challenger."""
    challenger = decision.challenger
    try:
        registry.set_alias(
            zones.models,
            challenger.model,
            CHAMPION,
            challenger.version,
            reason=f"Promoted: {decision.reasons[0]}",
            expected=etag,
        )
    except Conflict:
        return False
    return True


def _minimum(comparison: Comparison, gate: GateConfig) -> Iterator[Finding]:
    if not comparison.total:
        yield Finding(False, "There are no test images to judge by.")
    if nan := comparison.challenger.unanswered:
        yield Finding(False, f"The challenger's answer to {nan:,} test images is not a number: it cannot go live.")
    accuracy = comparison.accuracy(comparison.challenger)
    fine = accuracy >= _written(gate.minimum_accuracy)
    verdict = "reaches" if fine else "is below"
    yield Finding(
        fine, f"The challenger's accuracy of {float(accuracy):.4f} {verdict} the minimum of {gate.minimum_accuracy:g}."
    )


def _gain(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    ours, theirs = comparison.accuracy(comparison.challenger), comparison.accuracy(champion)
    gain = ours - theirs
    fine = gain >= _written(gate.margin) and (gain > 0 or gate.margin < 0)
    difference = f"{'better' if gain > 0 else 'worse'} by {float(abs(gain)):.4f}" if gain else "equally good"
    if fine:
        verdict = f"which meets the margin of {gate.margin:g}"
    else:
        verdict = (
            f"but must be better by {gate.margin:g}" if gate.margin else "but must be better by one image at least"
        )
    yield Finding(
        fine,
        f"On {comparison.total:,} test images the challenger's accuracy is {float(ours):.4f} and the champion's "
        f"{float(theirs):.4f}: the challenger is {difference}, {verdict}.",
    )


def _against(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    """What else there is to say of a champion and its challenger."""
    yield from _losses(comparison, champion, gate)
    yield from _new_classes(comparison, champion)
    yield from _removed_classes(comparison, champion, gate)
    yield from _seen_images(comparison, gate)
    if champion.unanswered:
        yield Finding(
            True, f"The champion's answer to {champion.unanswered:,} test images is not a number: errors all."
        )


def _losses(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    shared = [label for label in champion.classes if comparison.images.get(label)]
    judged = [label for label in shared if comparison.images[label] >= gate.class_images]
    loss = {
        label: comparison.recall(champion, label) - comparison.recall(comparison.challenger, label) for label in judged
    }
    broken = [label for label in judged if loss[label] > _written(gate.class_drop)]
    if broken:
        told = [
            f"{label!r} loses {float(loss[label]):.4f} on {comparison.images[label]:,} images"
            for label in sorted(broken, key=lambda label: -loss[label])
        ]
        yield Finding(False, f"A class may lose {gate.class_drop:g} of the champion's recall, but {_listed(told)}.")
    elif judged:
        yield Finding(True, f"No class of {len(judged)} loses more than {gate.class_drop:g} of the champion's recall.")
    if small := len(shared) - len(judged):
        yield Finding(True, f"Classes with under {gate.class_images} test images are not judged alone: {small} here.")


def _new_classes(comparison: Comparison, champion: Tally) -> Iterator[Finding]:
    new = [label for label, count in comparison.images.items() if count and label not in champion.classes]
    if not new:
        return
    told = [f"{label!r} (recall {float(comparison.recall(comparison.challenger, label)):.4f})" for label in new]
    old = [label for label in comparison.images if label not in new]
    total = sum(comparison.images[label] for label in old)
    ours, theirs = (
        float(_share(sum(tally.correct.get(label, 0) for label in old), total))
        for tally in (comparison.challenger, champion)
    )
    yield Finding(
        True,
        f"The champion does not know {_listed(told)}, which counts as its error; on the {total:,} images of the other "
        f"classes the challenger's accuracy is {ours:.4f} and the champion's {theirs:.4f}.",
    )


def _removed_classes(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    removed = [repr(label) for label in champion.classes if label not in comparison.challenger.classes]
    if removed:
        sentence = f"The challenger does not know {_listed(removed)}, which the champion does"
        yield _needs("removed_class", sentence, gate)


def _seen_images(comparison: Comparison, gate: GateConfig) -> Iterator[Finding]:
    if comparison.seen is None:
        sentence = "The champion's dataset version is gone, so it may have been trained on any of these test images"
        yield _needs("seen_test_images", sentence, gate)
    elif comparison.seen:
        sentence = (
            f"The champion was trained on, or chosen by, {comparison.seen:,} of the {comparison.total:,} test images, "
            "which flatters it"
        )
        yield _needs("seen_test_images", sentence, gate)


def _needs(permission: str, sentence: str, gate: GateConfig) -> Finding:
    if permission in gate.allow:
        return Finding(True, f"{sentence}; this is allowed.")
    return Finding(False, f"{sentence}: allow {permission!r} to accept that.")


def _share(part: int, whole: int) -> Fraction:
    return Fraction(part, whole) if whole else Fraction(0)


def _written(bound: float) -> Fraction:
    """A bound as a person wrote it: 0.07 is 7/100, not the nearest binary number."""
    return Fraction(repr(bound))


def _listed(told: Sequence[str]) -> str:
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return ", ".join(told[:NAMED]) + more
