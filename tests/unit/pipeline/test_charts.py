import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.charts import Scale, epoch_ticks, line_chart, nice_ticks

VALUES = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-100)


@given(VALUES, VALUES)
def test_ticks_enclose_the_values_in_few_equal_steps(a: float, b: float) -> None:
    """Ticks reach from below the lowest to above the highest value, equally spaced, at most seven of them."""
    low, high = sorted([a, b])
    ticks = nice_ticks(low, high)
    span = max(high - low, abs(low) * 1e-3, abs(high) * 1e-3)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + span * 1e-6
    assert ticks[-1] >= high - span * 1e-6
    steps = [after - before for before, after in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_ticks_are_round_numbers() -> None:
    """A person would choose the same marks."""
    assert nice_ticks(0.31, 1.06) == [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    assert nice_ticks(0.757, 0.915) == [0.75, 0.8, 0.85, 0.9, 0.95]
    assert nice_ticks(0, 0) == [0, 0.2]


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_epochs_are_marked_from_the_first_one_on(first: int, more: int) -> None:
    """However many epochs there are, at most eight are marked, equally far apart, the first among them."""
    ticks = epoch_ticks(range(first, first + more + 1))
    assert ticks[0] == first
    assert len(ticks) <= 8
    assert all(first <= tick <= first + more for tick in ticks)


def test_every_point_lies_in_the_plot_area() -> None:
    """Points, single points and points that are not numbers: what is drawn stays inside, the rest is left out."""
    series = {"training": [(1, 2.5), (2, math.nan), (3, 0.5)], "validation": [(3, 1.0)], "none": []}
    chart = line_chart("Loss", series)
    assert [(line.name, len(line.dots)) for line in chart.lines] == [("training", 2), ("validation", 1)]
    for line in chart.lines:
        for dot in line.dots:
            assert chart.left <= dot.x <= chart.right
            assert chart.top <= dot.y <= chart.bottom
    assert chart.lines[0].dots[0].text == "training, epoch 1: 2.50"
    assert chart.lines[0].path == " ".join(f"{dot.x},{dot.y}" for dot in chart.lines[0].dots)


def test_shares_are_written_as_percentages() -> None:
    """A chart of shares has percentages on its axis, and its points say one decimal more."""
    chart = line_chart("Accuracy", {"training": [(1, 0.75), (2, 0.914)]}, "%")
    assert chart.y_ticks[0].text == "75 %"
    assert chart.lines[0].dots[1].text == "training, epoch 2: 91.4 %"


def test_a_scale_without_length_puts_everything_in_the_middle() -> None:
    """One single epoch is drawn in the middle of its axis."""
    assert Scale(3, 3, 10, 20)(3) == 15
    assert Scale(0, 2, 100, 0)(0.5) == 75
