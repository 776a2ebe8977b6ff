"""Real ONNX models that answer as a test wants, for tests of whoever judges models.

A picture shows its number as a grey value; a model is a table from that value to the label that it answers. So each
test says exactly which images which model gets right, and whoever judges has to find that out by itself.
"""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_models
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pipeline import aliases, images
from pipeline.aliases import CHAMPION
from pipeline.artifacts import DatasetVersion, GateConfig, ModelVersion, PixelSpec, PrepareConfig
from pipeline.onnx_model import INPUT, OUTPUT
from pipeline.prepare import prepare
from pipeline.zones import Zones

MODEL = "pets"
GATE = GateConfig(class_images=100)
TEST_IMAGES = 20

Labels = Mapping[int, str]
"""The label of each picture, by its number; also the label that a model answers, by the grey value."""

CATS_AND_DOGS: Labels = {value: ("cat", "dog")[value % 2] for value in range(TEST_IMAGES)}


def picture(number: int) -> bytes:
    """A PNG of 16 x 16 pixels of the grey value ``number % 256``; what is above that shows in the last pixel."""
    pixels = np.full((16, 16, 1), number % 256, np.uint8)
    pixels[-1, -1] = number // 256
    return images.encode_png(pixels)


def prepared(
    zones: Zones, test: Labels, *, train: Labels | None = None, size: int = 16, colour: str = "grey"
) -> DatasetVersion:
    """A dataset version whose test split is ``test``; beside ``train`` each class has one more training image."""
    rows = {number: (label, "test") for number, label in test.items()}
    rows |= {number: (label, "train") for number, label in (train or {}).items()}
    labels = sorted({label for label, _ in rows.values()})
    rows |= {1000 + number: (label, "train") for number, label in enumerate(labels)}
    lines = [f"{number}.png,{label},{split}" for number, (label, split) in rows.items()]
    for number in rows:
        zones.images.put(f"pets/{number}.png", picture(number))
    zones.images.put("pets/labels.csv", "\n".join(["key,label,split", *lines]).encode())
    return prepare(zones, "pets", PrepareConfig.model_validate({"size": size, "colour": colour})).version


def table_model(pixels: PixelSpec, table: NDArray[np.float32]) -> bytes:
    """An ONNX model that answers the row of ``table`` (256, classes) which the first pixel names."""
    nodes = [
        helper.make_node("Slice", [INPUT, "zeros", "ones", "axes"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], [OUTPUT], axis=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "zeros": np.zeros(3, np.int64),
        "ones": np.ones(3, np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "flat": np.array([-1], np.int64),
        "table": table,
    }
    return tiny_models.onnx_of(nodes, constants, pixels, table.shape[1])


def answers(dataset: DatasetVersion, answered: Labels, *, nan: bool = False) -> NDArray[np.float32]:
    """The table (256, classes) of a model that answers ``answered``, and class 0 otherwise."""
    table = np.zeros((256, len(dataset.classes)), np.float32)
    for value in range(256):
        table[value, dataset.classes.index(answered.get(value, dataset.classes[0]))] = np.nan if nan else 1
    return table


def predictions(test: Labels, dataset: DatasetVersion, table: NDArray[np.float32]) -> bytes:
    """What an evaluation of that table on the test split stores."""
    rows = sorted((hashlib.sha256(picture(number)).digest(), number, label) for number, label in test.items())
    chosen = [table[number % 256] for _, number, _ in rows]
    columns = {
        "image_digest": pa.array([digest for digest, _, _ in rows], pa.binary(32)),
        "label": pa.array([dataset.classes.index(label) for _, _, label in rows], pa.int32()),
        "predicted": pa.array([int(row.argmax()) for row in chosen], pa.int32()),
        "probability": pa.array([float(row.max()) for row in chosen], pa.float32()),
        "probabilities": pa.array([row.tolist() for row in chosen], pa.list_(pa.float32())),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def registered(
    zones: Zones, dataset: DatasetVersion, test: Labels, answered: Labels, *, number: int, nan: bool = False
) -> ModelVersion:
    """A model version that answers ``answered``, trained on ``dataset``, whose test split is ``test``."""
    table = answers(dataset, answered, nan=nan)
    right = sum(answered.get(number % 256, dataset.classes[0]) == label for number, label in test.items())
    return tiny_models.register(
        zones.checkpoints,
        zones.models,
        MODEL,
        number,
        dataset=dataset,
        onnx_file=table_model(dataset.pixels, table),
        accuracy=right / len(test),
        evaluation={"predictions.parquet": predictions(test, dataset, table)},
    )


def all_but(wrong: int, right: Labels = CATS_AND_DOGS) -> Labels:
    """The right answers, except for the first ``wrong`` values."""
    labels = sorted(set(right.values()))
    return {
        value: label if number >= wrong else labels[labels.index(label) - 1]
        for number, (value, label) in enumerate(right.items())
    }


def champion(zones: Zones) -> str | None:
    """The version that the alias points at, if there is one."""
    found = aliases.read_alias(zones.models, MODEL, CHAMPION)
    return found[0].version if found else None
