"""Model versions that can be deployed: tiny, with a dataset and the evaluation's predictions on its test images."""

import tiny_models

from pipeline import aliases, datasets, images
from pipeline.artifacts import DatasetVersion, ModelVersion, PrepareConfig
from pipeline.evaluate import to_parquet
from pipeline.onnx_model import OnnxModel
from pipeline.prepare import prepare
from pipeline.zones import Zones

IMAGES_PER_CLASS = 24


def prepared(zones: Zones, name: str) -> DatasetVersion:
    """A prepared dataset of three classes, about half of it test images."""
    for number in range(3 * IMAGES_PER_CLASS):
        label = ("circle", "line", "square")[number % 3]
        pixels = tiny_models.picture(number, 20, 24)
        zones.images.put(f"{name}/{label}/{number}.png", images.encode_png(pixels))
    return prepare(zones, name, PrepareConfig(size=16, test_share=0.5)).version


def register(
    zones: Zones, dataset: DatasetVersion, seed: int, *, evaluated_as: int | None = None, onnx_file: bytes | None = None
) -> ModelVersion:
    """A version named like its dataset, with the predictions of its own weights or of those of another seed.

    ``onnx_file``: what answers in place of those weights.
    """
    test = datasets.load_split(zones.datasets, dataset, "test")
    judged = OnnxModel(tiny_models.linear_onnx(dataset, seed if evaluated_as is None else evaluated_as))
    predictions = to_parquet(test, judged.probabilities(test.pixels))
    evaluation = {"predictions.parquet": predictions}
    return tiny_models.register(
        zones.checkpoints,
        zones.models,
        dataset.dataset,
        seed,
        dataset=dataset,
        onnx_file=onnx_file,
        evaluation=evaluation,
    )


def champion(zones: Zones, model: str) -> str | None:
    """The version that the alias points at."""
    found = aliases.read_alias(zones.models, model, aliases.CHAMPION)
    return found[0].version if found else None
