from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import dataset_index, evaluate
from pipeline.artifacts import DatasetVersion, PixelSpec, TrainConfig, TrainingRun
from pipeline.datasets import LoadedSplit
from pipeline.errors import Corrupted, TrainingDiverged
from pipeline.progress import Progress

CPU = torch.device("cpu")


def split(images: int, classes: int, seed: int = 0) -> LoadedSplit:
    """A test split of random images of 8 x 8 pixels."""
    rng = np.random.default_rng(seed)
    digests = np.unique(rng.integers(0, 256, (images, 32), dtype=np.uint8), axis=0)
    pixels = rng.integers(0, 256, (len(digests), 8, 8, 1), dtype=np.uint8)
    return LoadedSplit(pixels, rng.integers(0, classes, len(digests)), digests)


def distributions(images: int, classes: int) -> np.ndarray:
    """Random probabilities."""
    return np.random.default_rng(1).dirichlet(np.ones(classes), images).astype(np.float32)


class Brightness(nn.Module):
    """Two logits: the mean brightness, and its opposite."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2)."""
        mean = pixels.float().mean(dim=(1, 2, 3)) / 255
        return torch.stack([mean, -mean], dim=1)


@pytest.mark.parametrize("images", [1, 511, 1025])
def test_every_image_gets_its_own_answer(images: int) -> None:
    """However many batches there are, row n is the softmax of the logits of image n."""
    test, told = split(images, 2), list[Progress]()
    answer = evaluate.predict(Brightness(), test.pixels, CPU, told.append)
    mean = test.pixels.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(answer[:, 0], 1 / (1 + np.exp(-2 * mean)), rtol=1e-5)
    assert answer.shape == (images, 2)
    assert answer.dtype == np.float32
    assert (told[-1].done, told[-1].total) == (images, images)


def test_a_model_that_answers_nan_is_reported() -> None:
    """NaN is said to be what it is, and no figure is made of it."""

    class Broken(Brightness):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().forward(pixels) * torch.nan

    with pytest.raises(TrainingDiverged, match="answers 4 of 4 test images with NaN"):
        evaluate.predict(Broken(), split(4, 2).pixels, CPU)


@given(st.integers(1, 40), st.integers(2, 9))
@settings(max_examples=40)
def test_predictions_come_back_as_they_were_stored(images: int, classes: int) -> None:
    """Reading the Parquet file gives label, prediction and confidence of each image; written twice it is the same."""
    test, probabilities = split(images, classes), distributions(images, classes)
    data = evaluate.to_parquet(test, probabilities)
    assert data == evaluate.to_parquet(test, probabilities)
    answers = evaluate.from_parquet(data, test, "key")
    assert (answers.labels == test.labels).all()
    assert (answers.predicted == probabilities.argmax(axis=1)).all()
    assert (answers.probability == probabilities.max(axis=1)).all()
    table = pq.read_table(pa.BufferReader(data))
    assert table.schema.names == ["image_digest", "label", "predicted", "probability", "probabilities"]
    assert [str(kind) for kind in table.schema.types] == [
        "fixed_size_binary[32]",
        "int32",
        "int32",
        "float",
        "list<element: float>",
    ]
    assert np.array_equal(np.array(table["probabilities"].to_pylist(), np.float32), probabilities)


def test_predictions_on_other_images_are_refused() -> None:
    """Predictions that belong to another test split, or that are no Parquet file, never become figures."""
    test = split(10, 3)
    data = evaluate.to_parquet(test, distributions(10, 3))
    with pytest.raises(Corrupted, match=r"run/evaluation/p holds predictions on other images"):
        evaluate.from_parquet(data, split(10, 3, seed=5), "run/evaluation/p")
    for broken in (b"", data[:-20], b"PAR1" + bytes(100) + b"PAR1"):
        with pytest.raises(Corrupted, match="cannot be read as Parquet"):
            evaluate.from_parquet(broken, test, "run/evaluation/p")


def test_figures_of_answers_computed_by_hand() -> None:
    """Accuracy, matrix, class figures and calibration error of five answers."""
    run = TrainingRun(
        id="0" * 16,
        dataset=DatasetVersion(
            dataset="d",
            version="0" * 16,
            classes=("cat", "dog"),
            pixels=PixelSpec(height=8, width=8, channels=1),
            counts={},
        ),
        config=TrainConfig(),
        checkpoint="k",
        history=(),
        exact=True,
        environment={},
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    answers = evaluate.Answers(
        np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1]), np.array([1, 1, 1, 1, 1], np.float32)
    )
    judged = evaluate.judge(run, answers)
    assert (judged.images, judged.accuracy, judged.ece) == (5, 0.8, pytest.approx(0.2))
    assert judged.confusion == ((2, 1), (0, 2))
    assert [(each.label, each.images) for each in judged.classes] == [("cat", 3), ("dog", 2)]
    assert judged.files == {}


def test_an_index_is_summed_up_by_class_and_reason() -> None:
    """The same bytes under two keys are one image; keys that are not used are counted by why."""
    rows = [
        *({"key": f"{n}", "digest": bytes([n % 3]) * 32, "label": "cat", "split": "train"} for n in range(6)),
        {"key": "x", "digest": b"d" * 32, "label": "dog", "split": "test"},
        {"key": "y", "digest": b"e" * 32},
        *({"key": f"bad{n}", "reason": "truncated PNG"} for n in range(2)),
        *({"key": f"rare{n}", "reason": f"rare {n}"} for n in range(20)),
    ]
    table = pa.Table.from_pylist(rows, dataset_index.SCHEMA)
    assert evaluate.class_counts(table, ["cat", "dog"]) == {"train": (3, 0), "validation": (0, 0), "test": (0, 1)}
    found = evaluate.left_out(table)
    assert next(iter(found.items())) == ("truncated PNG", 2)
    assert found["conflicting labels or splits"] == 1
    assert len(found) == evaluate.LISTED_REASONS + 1
    assert sum(found.values()) == 23
    assert evaluate.left_out(table.slice(0, 7)) == {}
