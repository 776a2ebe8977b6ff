"""How good a classifier is, computed from labels, predictions and confidences: pure numpy, no I/O.

Where a ratio has nothing below the line (the precision of a class that was never predicted, the recall of a class
without test images, the F1 of two zeros), it is 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import ClassMetrics

BINS = 15
"""Equal-width bins of confidence, as in Guo et al. 2017."""
Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The test images whose confidence lies in (low, high]; means over none of them are 0."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Trust:
    """What is left when only answers of at least ``threshold`` confidence are used.

    Attributes:
        share: of all images that are still answered.
        accuracy: among the answered ones, 0 where there are none.
    """

    threshold: float
    images: int
    share: float
    accuracy: float


def confusion(labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Images by true class (rows) and predicted class (columns): int64 (classes, classes).

    Args:
        labels: (N,) class indices.
        predicted: (N,) class indices.
        classes: their number.
    """
    cells = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


def accuracy(matrix: NDArray[np.int64]) -> float:
    """Share of images on the diagonal of a confusion matrix."""
    return _share(matrix.trace(), matrix.sum())


def per_class(matrix: NDArray[np.int64], names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 of each class of a confusion matrix, in class order."""
    rows = zip(names, matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0), strict=True)
    return tuple(
        ClassMetrics(
            label=name,
            images=int(true),
            precision=_share(hits, answered),
            recall=_share(hits, true),
            f1=_share(2 * hits, true + answered),
        )
        for name, hits, true, answered in rows
    )


def reliability(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> tuple[Bin, ...]:
    """Mean confidence and accuracy per bin of confidence (Guo et al. 2017, arXiv:1706.04599, section 2).

    Args:
        confidence: (N,), 0 to 1: the largest probability of each image.
        correct: (N,): whether that class was the right one.
        bins: number of bins, equally wide, each open below and closed above.
    """
    exact = confidence.astype(np.float64).clip(0, 1)
    index = (np.ceil(exact * bins).astype(np.int64) - 1).clip(0, bins - 1)
    images = np.bincount(index, minlength=bins)
    confidences = np.bincount(index, exact, bins)
    hits = np.bincount(index, correct, bins)
    return tuple(
        Bin(n / bins, (n + 1) / bins, int(images[n]), _share(confidences[n], images[n]), _share(hits[n], images[n]))
        for n in range(bins)
    )


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by images (Guo et al. 2017, equation 3)."""
    gaps = sum(part.images * abs(part.accuracy - part.confidence) for part in bins)
    return _share(gaps, sum(part.images for part in bins))


def trust(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], thresholds: Sequence[float]
) -> tuple[Trust, ...]:
    """What is answered, and how well, if answers of less confidence than each threshold are left to a person."""
    kept = [(threshold, confidence >= threshold) for threshold in thresholds]
    return tuple(
        Trust(threshold, int(mask.sum()), _share(mask.sum(), len(mask)), _share(correct[mask].sum(), mask.sum()))
        for threshold, mask in kept
    )


def worst_mistakes(confidence: NDArray[np.floating], correct: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    """Indices of the wrong answers that were given with the highest confidence, at most ``limit``, worst first."""
    wrong = np.flatnonzero(~correct)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]


def top_confusions(matrix: NDArray[np.int64], limit: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes as (true class, predicted class, images), most frequent first, at most ``limit``."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    found = [divmod(int(cell), len(matrix)) for cell in order]
    return [(true, taken, int(errors[true, taken])) for true, taken in found if errors[true, taken]]


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927): 0 to 1 where there are no images."""
    if not images:
        return 0.0, 1.0
    share, spread = hits / images, Z_95**2 / images
    centre = share + spread / 2
    reach = Z_95 * math.sqrt(share * (1 - share) / images + spread / (4 * images))
    return max(0.0, (centre - reach) / (1 + spread)), min(1.0, (centre + reach) / (1 + spread))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
