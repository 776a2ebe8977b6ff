import base64
import functools
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import metrics, report
from pipeline.artifacts import DatasetVersion, EpochMetrics, EvaluationReport, PixelSpec, TrainConfig, TrainingRun
from pipeline.report import Evidence, Mistake

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% include 'x' %}",
    "a | b\n\n# c [x](javascript:alert(1)) www.example.com",
    "\u202eevil & \x07 bell",
    "long " * 60,
)
VOID = {"meta", "link", "img", "br", "input"}


class Outline(HTMLParser):
    """What a browser would see: tags in order, attributes and texts. Every tag must be closed in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that closes itself."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        """Note the end of the innermost open tag."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        (self.scripts if self._open[-1:] == ["script"] else self.texts).append(data)


def judged(
    names: tuple[str, ...], seed: int = 0, images: int = 200, size: int = 8, epochs: int = 3
) -> tuple[EvaluationReport, Evidence]:
    """An evaluation of ``images`` random answers, right more often than not."""
    rng = np.random.default_rng(seed)
    classes = len(names)
    labels = rng.integers(0, classes, images)
    predicted = np.where(rng.random(images) < 0.7, labels, rng.integers(0, classes, images))
    confidence = rng.uniform(1 / classes, 1, images).astype(np.float32)
    correct = labels == predicted
    matrix = metrics.confusion(labels, predicted, classes)
    bins = metrics.reliability(confidence, correct)
    dataset = DatasetVersion(
        dataset="animals",
        version="0123456789abcdef",
        classes=names,
        pixels=PixelSpec(height=size, width=size, channels=3),
        counts={"train": 700, "validation": 40, "test": images},
    )
    history = tuple(
        EpochMetrics(
            epoch=n,
            step=10 * n,
            train_loss=1 / n,
            train_accuracy=1 - 1 / (n + 1),
            validation_loss=1.2 / n,
            validation_accuracy=1 - 1.2 / (n + 1),
            learning_rate=0.1,
            images_per_s=100,
            seconds=1,
        )
        for n in range(1, epochs + 1)
    )
    run = TrainingRun(
        id="fedcba9876543210",
        dataset=dataset,
        config=TrainConfig(),
        checkpoint="k",
        history=history,
        exact=True,
        environment={"torch": "2.14"},
        finished_at=datetime(2026, 11, 22, 2, 30, tzinfo=UTC),
    )
    counts = np.bincount(labels, minlength=classes).tolist()
    evidence = Evidence(
        reliability=bins,
        trust=metrics.trust(confidence, correct, (0.5, 0.99)),
        mistakes=[
            Mistake(
                names[labels[n]],
                names[predicted[n]],
                float(confidence[n]),
                rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
                f"{n:064x}",
            )
            for n in metrics.worst_mistakes(confidence, correct, 24)
        ],
        class_counts={"train": [7 * n for n in counts], "validation": [0] * classes, "test": counts},
        left_out={"truncated PNG": 3},
    )
    return (
        EvaluationReport(
            training_run=run,
            images=images,
            accuracy=metrics.accuracy(matrix),
            ece=metrics.expected_calibration_error(bins),
            classes=metrics.per_class(matrix, names),
            confusion=tuple(map(tuple, matrix.tolist())),
        ),
        evidence,
    )


@functools.cache
def outline(names: tuple[str, ...]) -> Outline:
    """The page on random answers about classes of these names, parsed."""
    return Outline(report.page(*judged(names)).decode())


def test_the_page_asks_nobody_for_anything() -> None:
    """Every address in the page is inside it, and its content security policy allows nothing else."""
    page = outline(("cat", "dog", "owl"))
    addresses = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "action", "data"}]
    assert addresses
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert not re.search(r"url\(|@import", "".join(page.texts))
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline'; script-src 'sha256-" in policy


def test_links_within_the_page_lead_somewhere() -> None:
    """Each entry of the navigation is the id of a section."""
    page = outline(("cat", "dog", "owl"))
    targets = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert targets
    assert targets <= {value for tag, name, value in page.attributes if (tag, name) == ("section", "id")}


def test_class_names_are_text_and_nothing_else() -> None:
    """Names that look like markup, templates or scripts change no tag of the page and appear as they are."""
    plain, hostile = outline(("a", "b", "c", "d", "e", "f")), outline(HOSTILE)
    assert hostile.tags == plain.tags
    assert hostile.scripts == plain.scripts
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]
    texts = "".join(hostile.texts)
    assert HOSTILE[0] in texts
    assert HOSTILE[2] in texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=4, unique=True))
@settings(max_examples=30)
def test_any_class_names_make_well_formed_documents(names: list[str]) -> None:
    """Whatever the classes are called, the page's tags are balanced and the picture is well-formed XML."""
    given_names = tuple(names)
    assert Outline(report.page(*judged(given_names, images=30)).decode()).scripts == outline(("cat", "dog")).scripts
    assert svg(judged(given_names)[0]).tag == "{http://www.w3.org/2000/svg}svg"


def svg(evaluation: EvaluationReport) -> ElementTree.Element:
    """The confusion matrix's picture, parsed."""
    head, _, data = report.confusion_data_uri(evaluation).partition(",")
    assert head == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(data))  # noqa: S314 - our own bytes


def test_the_same_evaluation_gives_the_same_page() -> None:
    """Nothing in the page depends on when or where it was made."""
    assert report.page(*judged(("cat", "dog"))) == report.page(*judged(("cat", "dog")))


def test_the_page_says_what_the_evaluation_found() -> None:
    """The figures that decide are in the page's text: hits, accuracy, ECE, classes, dataset version, training run."""
    evaluation, evidence = judged(("cat", "dog", "owl"))
    text = " ".join("".join(Outline(report.page(evaluation, evidence).decode()).texts).split())
    hits = sum(evaluation.confusion[n][n] for n in range(3))
    for expected in (
        f"Right on {hits} of 200 test images",
        report.percent(evaluation.accuracy),
        report.percent(evaluation.ece),
        "0123456789abcdef",
        "fedcba9876543210",
        "2026-11-22 02:30 UTC",
        "trained for 3 epochs on 700 images",
        "Left out: truncated PNG",
    ):
        assert expected in text
    weakest = min(evaluation.classes, key=lambda each: each.f1)
    assert f"Weakest first. {weakest.label}:" in text


def test_tables_are_made_for_screen_readers() -> None:
    """Every heading cell has a scope, every picture a text, and every table a caption."""
    page = outline(("cat", "dog", "owl"))
    assert page.tags.count("th") == [name for tag, name, _ in page.attributes if tag == "th"].count("scope")
    assert page.tags.count("img") == [name for tag, name, _ in page.attributes if tag == "img"].count("alt") > 0
    assert page.tags.count("table") == page.tags.count("caption")
    charts = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(charts) == page.tags.count("svg")


def test_five_hundred_classes_stay_readable_and_small() -> None:
    """With many classes the matrix is a picture, the most frequent mistakes are listed, and the file stays small."""
    names = tuple(f"class {n}" for n in range(500))
    evaluation, evidence = judged(names, images=6000, size=224, epochs=90)
    page = report.page(evaluation, evidence)
    assert len(page) <= 1_500_000
    tags = Outline(page.decode())
    pictures = [value for tag, name, value in tags.attributes if (tag, name) == ("img", "class")]
    assert pictures.count("heat") == 1
    assert tags.tags.count("tr") < 600
    assert len(report.confusion_data_uri(evaluation)) < 200_000


def test_every_mistake_can_be_seen_in_the_picture_of_many_classes() -> None:
    """A single mistake among 600 classes is a visible dot at its place, larger than one pixel, and red."""
    matrix = np.diag(np.full(600, 100))
    matrix[500, 20] = 1
    pixels = png_pixels(report.heat_png(matrix))
    assert pixels.shape == (600, 600, 4)
    assert tuple(pixels[500, 20][:3]) == report.WRONG
    assert (pixels[498:503, 18:23, 3] > 20).all()
    assert tuple(pixels[300, 300]) == (*report.RIGHT, 255)
    assert pixels[100, 400, 3] == 0


def png_pixels(png: bytes) -> np.ndarray:
    """RGBA pixels of a PNG."""
    from io import BytesIO  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415

    return np.asarray(Image.open(BytesIO(png)))


@pytest.mark.parametrize("names", [("left", "right"), ("only wrong", "never asked")])
def test_one_test_image_is_enough(names: tuple[str, str]) -> None:
    """A test split of one image, one epoch, and no mistake at all or nothing but one still make a page."""
    for answer in (0, 1):
        evaluation, _ = judged(names, images=1, epochs=1)
        matrix = metrics.confusion(np.array([0]), np.array([answer]), 2)
        right = answer == 0
        evaluation = evaluation.model_copy(
            update={
                "accuracy": float(right),
                "classes": metrics.per_class(matrix, names),
                "confusion": tuple(map(tuple, matrix.tolist())),
            }
        )
        bins = metrics.reliability(np.array([0.9]), np.array([right]))
        text = " ".join(
            "".join(Outline(report.page(evaluation, Evidence(bins, [], [], {}, {})).decode()).texts).split()
        )
        assert f"Right on {int(right)} of 1 test image " in text
        assert ("no mistake" in text) == right
        assert ("No mistake" in report.summary_markdown(evaluation)) == right


@given(st.floats(0, 1))
def test_percentages_never_claim_all_or_nothing(share: float) -> None:
    """Only exactly 0 and 1 are written as 0 % and 100 %; everything else is within a tenth of itself."""
    text = report.percent(share)
    if share in (0, 1):
        assert text == f"{100 * share:.0f} %"
    else:
        assert text not in ("0 %", "0.0 %", "100 %", "100.0 %")
        assert float(text.removesuffix(" %")) == pytest.approx(100 * share, abs=0.1)


def test_markdown_keeps_strangers_text_in_its_cell() -> None:
    """Class names break no table row and make no tag, link or code in the summary."""
    lines = report.summary_markdown(judged(HOSTILE)[0]).splitlines()
    bare = [re.sub(r"\\.", "", line) for line in lines]
    assert {line.count("|") for line in bare if line.startswith("|")} == {6, 3}
    assert not [line for line in bare if re.search(r"[<>\[\]]|://|www\.", line.replace("---", ""))]


def test_pictures_are_exact_where_small_and_light_where_large() -> None:
    """A small picture keeps every pixel; a large one is reduced, whatever its shape."""
    small = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28, 1)
    head, _, data = report.picture_uri(small).partition(",")
    assert head == "data:image/png;base64"
    assert (png_pixels(base64.b64decode(data)) == small[:, :, 0]).all()
    head, _, data = report.picture_uri(np.zeros((512, 256, 3), np.uint8)).partition(",")
    assert head == "data:image/jpeg;base64"
    assert png_pixels(base64.b64decode(data)).shape == (160, 80, 3)
