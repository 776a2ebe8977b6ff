"""The evaluation as people see it: a self-contained page, a summary in Markdown, and the confusion matrix as a picture.

- The page is one HTML file that asks nobody for anything: pictures are ``data:`` URIs, charts are inline SVG, and its
  content security policy forbids every request. Its one script, which sorts tables, is allowed by digest; without it
  nothing is missing.
- Class names are strangers' text. Templates escape everything by default, and Markdown is escaped here.
- The same evaluation gives the same bytes: there is no clock and no random number in it.
"""

import base64
import functools
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from pipeline import metrics
from pipeline.artifacts import EpochMetrics, EvaluationReport, Split, TrainConfig
from pipeline.charts import LineChart, Scale, line_chart
from pipeline.metrics import Bin, Trust

COUNTED_CLASSES = 25
"""Up to so many classes the confusion matrix is a table of numbers; above, a picture."""
DOT_CLASSES = 300
"""For each so many classes, mistakes in that picture are drawn one cell larger in every direction."""
LISTED_CONFUSIONS = 12
RIGHT, WRONG = (38, 148, 157), (222, 62, 46)
"""Colours (RGB) of the matrix's diagonal and of everything beside it."""
SMALL = 96
"""Pictures up to this size, in pixels, are shown as they are, pixel by pixel; larger ones are reduced to ``LARGE``."""
LARGE = 160


@dataclass(frozen=True, slots=True)
class Mistake:
    """A test image that was answered wrongly.

    Attributes:
        pixels: what the model saw, uint8 (H, W, 1 or 3).
        digest: SHA-256 of the encoded image, in hexadecimal, by which it can be found again.
    """

    label: str
    predicted: str
    confidence: float
    pixels: NDArray[np.uint8]
    digest: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the page shows beside the figures of the report.

    Attributes:
        mistakes: the most confident ones, worst first.
        class_counts: images of each class, in class order, by split.
        left_out: how many images preparation did not take, by reason.
    """

    reliability: Sequence[Bin]
    trust: Sequence[Trust]
    mistakes: Sequence[Mistake]
    class_counts: Mapping[Split, Sequence[int]]
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One line of the table of classes.

    Attributes:
        taken_for: the class that its images are most often mistaken for, or empty.
        taken: how often that happened.
    """

    label: str
    training_images: int
    images: int
    precision: float
    recall: float
    f1: float
    taken_for: str
    taken: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """A frequent mistake; ``share`` is of the true class's test images."""

    label: str
    predicted: str
    images: int
    share: float


def page(report: EvaluationReport, evidence: Evidence) -> bytes:
    """The report as one HTML file, UTF-8."""
    run = report.training_run
    matrix = np.asarray(report.confusion, np.int64)
    script = _templates().get_template("report.js").render()
    rows = class_rows(report, evidence.class_counts.get("train", ()))
    text = (
        _templates()
        .get_template("report.html.jinja")
        .render(
            report=report,
            run=run,
            evidence=evidence,
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            hits=int(matrix.trace()),
            interval=metrics.wilson_interval(int(matrix.trace()), report.images),
            baseline=matrix.sum(axis=1).max() / max(report.images, 1),
            claimed=claimed_accuracy(evidence.reliability),
            rows=sorted(rows, key=lambda row: (not row.images, row.f1, row.label)),
            matrix=matrix_rows(report) if len(matrix) <= COUNTED_CLASSES else None,
            heat=None if len(matrix) <= COUNTED_CLASSES else png_uri(heat_png(matrix)),
            confusions=confusions(report, LISTED_CONFUSIONS),
            charts=learning_curves(run.history),
            across=Scale(0, 1, 0, 300),
            up=Scale(0, 1, 300, 0),
            pictures=[picture_uri(mistake.pixels) for mistake in evidence.mistakes],
            options=[(name, field.description) for name, field in TrainConfig.model_fields.items()],
            pixelated=run.dataset.pixels.width <= SMALL,
        )
    )
    return text.encode()


def class_rows(report: EvaluationReport, training_images: Sequence[int]) -> list[ClassRow]:
    """What the page says of each class, in class order."""
    errors = np.array(report.confusion, np.int64)
    np.fill_diagonal(errors, 0)
    rows = []
    for index, each in enumerate(report.classes):
        other = int(errors[index].argmax())
        rows.append(
            ClassRow(
                each.label,
                training_images[index] if training_images else 0,
                each.images,
                each.precision,
                each.recall,
                each.f1,
                report.classes[other].label if errors[index, other] else "",
                int(errors[index, other]),
            )
        )
    return rows


def confusions(report: EvaluationReport, limit: int) -> list[Confusion]:
    """The most frequent mistakes, most frequent first."""
    found = metrics.top_confusions(np.asarray(report.confusion, np.int64), limit)
    return [
        Confusion(report.classes[true].label, report.classes[taken].label, images, images / report.classes[true].images)
        for true, taken, images in found
    ]


def matrix_rows(report: EvaluationReport) -> list[tuple[str, list[tuple[int, float]]]]:
    """The confusion matrix by true class: its label, and of each predicted class the images and their share."""
    return [
        (each.label, [(images, images / each.images if each.images else 0.0) for images in row])
        for each, row in zip(report.classes, report.confusion, strict=True)
    ]


def claimed_accuracy(bins: Sequence[Bin]) -> float:
    """The accuracy that the model's own confidence promises: its mean over all test images."""
    images = sum(part.images for part in bins)
    return sum(part.images * part.confidence for part in bins) / images if images else 0.0


def learning_curves(history: Sequence[EpochMetrics]) -> list[LineChart]:
    """Loss, accuracy and learning rate over the epochs."""
    checked = [each for each in history if each.validation_loss is not None and each.validation_accuracy is not None]
    loss = {
        "training": [(each.epoch, each.train_loss) for each in history],
        "validation": [(each.epoch, each.validation_loss or 0.0) for each in checked],
    }
    accuracy = {
        "training": [(each.epoch, each.train_accuracy) for each in history],
        "validation": [(each.epoch, each.validation_accuracy or 0.0) for each in checked],
    }
    rate = {"learning rate": [(each.epoch, each.learning_rate) for each in history]}
    return [line_chart("Loss", loss), line_chart("Accuracy", accuracy, "%"), line_chart("Learning rate", rate)]


def heat_png(matrix: NDArray[np.int64]) -> bytes:
    """A confusion matrix as a picture of one pixel a cell, transparent where nothing was counted.

    A right cell is as opaque as its share of its row's images. Mistakes, few and far between where classes are many,
    are made to be seen: opaque by the square root of their share, and grown over their neighbours.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    on_diagonal = np.eye(len(matrix), dtype=bool)
    wrong = _grown(np.sqrt(np.where(on_diagonal, 0, shares)), len(matrix) // DOT_CLASSES)
    right = _grown(np.where(on_diagonal, shares, 0), len(matrix) // DOT_CLASSES)
    colour = np.where((right > 0)[..., None], RIGHT, WRONG)
    opacity = np.rint(255 * np.where(right > 0, right, wrong))
    file = io.BytesIO()
    pixels = np.concatenate([colour, opacity[..., None]], axis=2).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return file.getvalue()


def _grown(opacity: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Each cell as opaque as the most opaque one within ``reach`` of it."""
    span = 2 * reach + 1
    grown: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(np.pad(opacity, reach), (span, span)).max(
        axis=(2, 3)
    )
    return grown


def confusion_data_uri(report: EvaluationReport) -> str:
    """The confusion matrix as an SVG picture of its own, in a ``data:`` URI."""
    matrix = np.asarray(report.confusion, np.int64)
    svg = (
        _templates()
        .get_template("confusion.svg.jinja")
        .render(
            report=report,
            matrix=matrix_rows(report) if len(matrix) <= COUNTED_CLASSES else None,
            heat=png_uri(heat_png(matrix)),
            right=RIGHT,
            wrong=WRONG,
        )
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def summary_markdown(report: EvaluationReport, limit: int = 8) -> str:
    """The verdict, the weakest classes and the most frequent mistakes, at most ``limit`` of each."""
    run = report.training_run
    hits = round(report.accuracy * report.images)
    low, high = metrics.wilson_interval(hits, report.images)
    weakest = sorted(report.classes, key=lambda each: (not each.images, each.f1, each.label))[:limit]
    frequent = confusions(report, limit)
    lines = [
        f"## Right on {percent(report.accuracy)} of {count(report.images)} test images",
        "",
        f"{markdown(run.config.architecture)} on {markdown(run.dataset.dataset)} "
        f"`{run.dataset.version}`, training run `{run.id}`. The accuracy lies between {percent(low)} and "
        f"{percent(high)} with 95 % confidence; calibration error (ECE) {percent(report.ece)}.",
        "",
        "| weakest classes | test images | precision | recall | F1 |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {markdown(each.label)} | {count(each.images)} | {percent(each.precision)} | {percent(each.recall)} "
            f"| {percent(each.f1)} |"
            for each in weakest
        ),
        "",
        "| most frequent mistakes | images |",
        "|---|--:|",
        *(f"| {markdown(each.label)} → {markdown(each.predicted)} | {count(each.images)} |" for each in frequent),
    ]
    return "\n".join(lines if frequent else [*lines[:-2], "No mistake on the test images."]) + "\n"


def percent(share: float) -> str:
    """A share as a percentage that says 0 or 100 only when it is."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    shown = min(max(round(100 * share, 1), 0.1), 99.9)
    return f"{shown:.1f} %"


def count(number: int) -> str:
    """A whole number with commas."""
    return f"{number:,}"


def png_uri(png: bytes) -> str:
    """A PNG file as a ``data:`` URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, 1 or 3) as a picture in a ``data:`` URI: PNG where they are few, else JPEG of at most ``LARGE``."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    if max(picture.size) <= SMALL:
        picture.save(file, "PNG", optimize=True)
        return png_uri(file.getvalue())
    picture.thumbnail((LARGE, LARGE))
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def markdown(text: str) -> str:
    """Strangers' text as Markdown that shows it literally, on one line."""
    one_line = " ".join(printable(text).split())
    return re.sub(r"([\\`*_{}\[\]()<>|~&:.@])", r"\\\1", one_line)


def printable(text: str) -> str:
    """``text`` with a mark in place of each character that no document may hold."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


@functools.cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "count": count, "printable": printable}
    return made
