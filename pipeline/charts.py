"""Where the marks of a chart go: plain geometry, which a template turns into SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NICE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight map from values ``low``…``high`` to coordinates ``start``…``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of ``value``; of any value, when the scale has no length, the middle."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A measured point, and what to say about it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of points, in order."""

    name: str
    dots: tuple[Dot, ...]

    @property
    def path(self) -> str:
        """The points as the ``points`` of an SVG polyline."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.dots)


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over epochs, in a box of ``width`` by ``height`` whose plot area leaves room for the texts."""

    title: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[int, float]]],
    unit: Literal["", "%"] = "",
    size: tuple[float, float] = (360, 236),
) -> LineChart:
    """A chart of ``series``: by name, pairs of epoch and value; shares when the unit is ``%``."""
    left, right, top, bottom = 52.0, size[0] - 12, 14.0, size[1] - 34
    epochs = [epoch for points in series.values() for epoch, _ in points]
    values = [value for points in series.values() for _, value in points if math.isfinite(value)]
    steps = nice_ticks(min(values, default=0.0), max(values, default=1.0))
    x = Scale(min(epochs, default=0), max(epochs, default=1), left + 6, right - 6)
    y = Scale(steps[0], steps[-1], bottom, top)
    digits = _digits(steps, 100 if unit else 1)
    return LineChart(
        title,
        *size,
        left,
        right,
        top,
        bottom,
        tuple(Tick(x(epoch), str(epoch)) for epoch in epoch_ticks(epochs)),
        tuple(Tick(y(value), number(value, unit, digits)) for value in steps),
        tuple(
            Line(
                name,
                tuple(
                    Dot(x(epoch), y(value), f"{name}, epoch {epoch}: {number(value, unit, digits + 1)}")
                    for epoch, value in points
                    if math.isfinite(value)
                ),
            )
            for name, points in series.items()
            if points
        ),
    )


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values, equally spaced, that enclose ``low`` and ``high``."""
    flat = high - low <= 1e-9 * max(abs(low), abs(high))
    span = (abs(high) or 1.0) if flat else high - low
    magnitude = 10.0 ** math.floor(math.log10(span / about))
    step = next(nice for nice in NICE_STEPS if nice * magnitude * about >= span * (1 - 1e-9)) * magnitude
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, max(last, first + 1) + 1)]


def epoch_ticks(epochs: Sequence[int], at_most: int = 8) -> list[int]:
    """The first epoch and every n-th after it, so that few enough remain to be written below an axis."""
    if not epochs:
        return []
    first, last = min(epochs), max(epochs)
    stride = max(1, math.ceil((last - first + 1) / at_most))
    return list(range(first, last + 1, stride))


def number(value: float, unit: str, digits: int) -> str:
    """``value`` with so many decimals; as a percentage when the unit is ``%``."""
    return f"{100 * value:.{digits}f} %" if unit else f"{value:.{digits}f}"


def _digits(steps: Sequence[float], factor: float) -> int:
    """Decimals that tell neighbouring ticks apart."""
    step = (steps[1] - steps[0]) * factor
    return next((digits for digits in range(7) if abs(round(step, digits) - step) < step * 1e-6), 7)
