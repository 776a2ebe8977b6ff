import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics

ANSWERS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0, 1, width=32)), min_size=1, max_size=60)


def test_figures_of_a_small_matrix_computed_by_hand() -> None:
    """Precision, recall and F1 of a matrix of three classes are what a person gets on paper."""
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 1])
    matrix = metrics.confusion(labels, predicted, 3)
    assert matrix.tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert metrics.accuracy(matrix) == 0.5
    cat, dog, owl = metrics.per_class(matrix, ["cat", "dog", "owl"])
    assert (cat.images, cat.precision, cat.recall, cat.f1) == (3, 2 / 3, 2 / 3, 2 / 3)
    assert (dog.images, dog.precision, dog.recall, dog.f1) == (2, 1 / 3, 1 / 2, 2 / 5)
    assert (owl.label, owl.images, owl.precision, owl.recall, owl.f1) == ("owl", 1, 0, 0, 0)
    assert metrics.top_confusions(matrix, 2) == [(0, 1, 1), (1, 0, 1)]
    assert metrics.top_confusions(matrix, 9) == [(0, 1, 1), (1, 0, 1), (2, 1, 1)]


def test_a_class_without_test_images_counts_as_nothing_right() -> None:
    """A class that is neither asked nor answered has zeros, and no division fails."""
    (_, empty) = metrics.per_class(metrics.confusion(np.array([0]), np.array([0]), 2), ["seen", "unseen"])
    assert (empty.images, empty.precision, empty.recall, empty.f1) == (0, 0, 0, 0)


def test_calibration_error_computed_by_hand() -> None:
    """Two bins, one overconfident by 0.3 with three of four images, one right on the mark: the error is 0.225."""
    confidence = np.array([0.8, 0.8, 0.8, 0.5])
    correct = np.array([True, False, False, False]) | np.array([False, True, False, False])
    bins = metrics.reliability(confidence, correct, bins=5)
    assert [part.images for part in bins] == [0, 0, 1, 3, 0]
    expected = 3 / 4 * abs(2 / 3 - 0.8) + 1 / 4 * abs(0 - 0.5)
    assert metrics.expected_calibration_error(bins) == pytest.approx(expected)


def test_bins_are_closed_above() -> None:
    """A confidence on a boundary belongs to the lower bin, as in the paper; 0 and 1 have a bin too."""
    edges = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    bins = metrics.reliability(edges, np.ones(5, bool), bins=4)
    assert [part.images for part in bins] == [2, 1, 1, 1]


@given(ANSWERS)
def test_figures_agree_with_counting_one_by_one(answers: list[tuple[int, int, float]]) -> None:
    """Matrix, accuracy, recall and the bins of any answers are what counting image by image gives."""
    labels, predicted = (np.array([answer[n] for answer in answers]) for n in (0, 1))
    confidence = np.array([answer[2] for answer in answers], np.float32)
    correct = labels == predicted
    matrix = metrics.confusion(labels, predicted, 5)
    assert all(matrix[a, b] == sum((a, b) == answer[:2] for answer in answers) for a in range(5) for b in range(5))
    assert metrics.accuracy(matrix) == pytest.approx(correct.mean())
    for index, row in enumerate(metrics.per_class(matrix, "abcde")):
        mine = correct[labels == index]
        assert row.recall == pytest.approx(mine.mean() if len(mine) else 0)
        both = row.precision + row.recall
        assert row.f1 == pytest.approx(2 * row.precision * row.recall / both if both else 0)
    bins = metrics.reliability(confidence, correct)
    assert sum(part.images for part in bins) == len(answers)
    assert sum(part.images * part.accuracy for part in bins) == pytest.approx(correct.sum())
    assert sum(part.images * part.confidence for part in bins) == pytest.approx(confidence.sum(dtype=np.float64))
    assert all(part.low <= part.confidence <= part.high + 1e-9 for part in bins if part.images)
    assert 0 <= metrics.expected_calibration_error(bins) <= 1


@given(ANSWERS, st.integers(0, 30))
def test_worst_mistakes_are_wrong_and_ordered(answers: list[tuple[int, int, float]], limit: int) -> None:
    """Only wrong answers are listed, the most confident first, none above the limit left out."""
    correct = np.array([true == taken for true, taken, _ in answers])
    confidence = np.array([answer[2] for answer in answers])
    worst = metrics.worst_mistakes(confidence, correct, limit)
    assert not correct[worst].any()
    expected = sorted((answer[2] for answer in answers if answer[0] != answer[1]), reverse=True)[:limit]
    assert confidence[worst].tolist() == expected


def test_trust_is_what_remains_above_a_threshold() -> None:
    """With a threshold only the confident answers count; where none is left, the accuracy is 0."""
    confidence = np.array([0.99, 0.9, 0.6, 0.4])
    half, most, none = metrics.trust(confidence, np.array([True, True, False, True]), [0.5, 0.9, 0.999])
    assert (half.images, half.share, half.accuracy) == (3, 0.75, 2 / 3)
    assert (most.images, most.share, most.accuracy) == (2, 0.5, 1)
    assert (none.images, none.share, none.accuracy) == (0, 0, 0)


def test_wilson_interval_against_its_published_form() -> None:
    """The interval is the pair of solutions of |share - p| = z sqrt(p (1 - p) / n), also at the ends of the scale."""
    for hits, images in [(0, 1), (1, 1), (7, 10), (9214, 10_000), (0, 500)]:
        for bound in metrics.wilson_interval(hits, images):
            reach = metrics.Z_95 * math.sqrt(bound * (1 - bound) / images)
            assert abs(hits / images - bound) == pytest.approx(reach, abs=1e-9)
    assert metrics.wilson_interval(0, 0) == (0, 1)
