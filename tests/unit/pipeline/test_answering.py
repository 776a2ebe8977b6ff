"""One part of a batch: what is read, and what becomes of each image."""

import hashlib

import numpy as np
import pytest
import synthetic
import tiny_models
from batch_predictions import FOLDER, champion, predicted, put, rows

from pipeline import answering, images, registry
from pipeline.answering import answer_group
from pipeline.onnx_model import OnnxModel
from pipeline.zones import Zones

SPEC = tiny_models.DATASET.pixels


@pytest.fixture
def zones() -> Zones:
    """Zones with a champion."""
    made = synthetic.memory_zones()
    champion(made)
    return made


@pytest.mark.parametrize(
    ("path", "size", "reason"),
    [
        ("a.png", 10, None),
        ("deep/er/A.JPEG", 10, None),
        ("0b1f9e7c", 10, None),
        ("day=2026.11/0b1f9e7c", 10, None),
        ("notes.txt", 10, "not an image by its name"),
        (".DS_Store", 10, "hidden or system file"),
        (".cache/a.png", 10, "hidden or system file"),
        ("a.png", images.MAX_BYTES + 1, "too large: 104,857,601 bytes, the limit is 104,857,600"),
    ],
)
def test_names_decide_only_where_they_say_otherwise(path: str, size: int, reason: str | None) -> None:
    """Images without a suffix are read; what says that it is something else, or is too large, is not fetched."""
    assert answering.why_unread(path, size) == reason


def test_each_image_gets_what_it_would_get_alone(zones: Zones) -> None:
    """Answers of a group are those of the model to each image; what cannot be answered shifts nothing."""
    version = registry.versions(zones.models, "shapes")[0]
    model = OnnxModel(registry.load_file(zones.models, version, "model.onnx"))
    group = [images.encode_png(tiny_models.picture(number)) for number in range(9)]
    group[3:3] = [b"broken", None]
    found = answer_group(group, SPEC, model)
    for data, answer in zip(group, found, strict=True):
        assert answer.digest == (None if data is None else hashlib.sha256(data).hexdigest())
        if answer.probabilities is not None:
            alone = model.probabilities(images.decode(data or b"", SPEC)[None])[0]
            np.testing.assert_allclose(answer.probabilities, alone, rtol=0, atol=1e-6)
    assert [answer.reason for answer in found[3:5]] == [
        "not an image of a supported format (PNG, JPEG, WebP, BMP, TIFF, GIF)",
        "deleted since it was listed",
    ]
    assert sum(answer.probabilities is not None for answer in found) == 9


def test_an_image_on_which_the_model_fails_is_alone_in_that() -> None:
    """The others of its group are answered, and its row says why it is not."""
    zones = synthetic.memory_zones()
    champion(zones, onnx_file=tiny_models.crashing_onnx(tiny_models.DATASET, 1))
    put(zones, range(20))
    zones.images.put(f"{FOLDER}/dark.png", images.encode_png(np.zeros((12, 10, 3), np.uint8)))
    result = predicted(zones)
    assert [row["key"] for row in rows(zones.predictions, result) if row["label"] is None] == [f"{FOLDER}/dark.png"]
    assert result.manifest.left_out == {"the model failed on it": 1}


def test_a_row_says_all_of_it(zones: Zones) -> None:
    """Label and probability are of the most probable class; the probabilities are a distribution in the named order."""
    put(zones, range(30))
    result = predicted(zones)
    listed = {each.key: each for each in zones.images.listing(FOLDER)}
    for row in rows(zones.predictions, result):
        assert row["label"] == result.manifest.classes[int(np.argmax(row["probabilities"]))]
        assert row["probability"] == max(row["probabilities"])
        assert abs(sum(row["probabilities"]) - 1) < 1e-5
        assert (row["size"], row["etag"]) == (listed[row["key"]].size, listed[row["key"]].etag)
        assert row["image_sha256"] == hashlib.sha256(zones.images.get(row["key"])).hexdigest()
        assert (row["model"], row["dataset_version"]) == ("shapes", tiny_models.DATASET.version)


def test_a_prefix_without_one_image_is_answered_too(zones: Zones) -> None:
    """All rows have reasons, and the columns are those of any other part."""
    zones.images.put(f"{FOLDER}/notes.txt", b"x")
    result = predicted(zones)
    assert (result.manifest.answered, result.manifest.objects) == (0, 1)
    assert rows(zones.predictions, result)[0]["probabilities"] is None
