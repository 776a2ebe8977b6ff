"""Real model versions that cost nothing to make: one linear layer as ONNX, registered as any other."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline import registry
from pipeline.artifacts import (
    DatasetVersion,
    EvaluationReport,
    ExportedModel,
    ModelVersion,
    PixelSpec,
    StoredFile,
    TrainConfig,
    TrainingRun,
)
from pipeline.onnx_model import INPUT, OUTPUT
from pipeline.store import Store

DATASET = DatasetVersion(
    dataset="shapes",
    version="0123456789abcdef",
    classes=("circle", "line", "square"),
    pixels=PixelSpec(height=12, width=10, channels=3),
    counts={"train": 6, "validation": 0, "test": 3},
)
REPORT = b"<!doctype html><title>Evaluation</title>"


def linear_onnx(dataset: DatasetVersion, seed: int) -> bytes:
    """ONNX from uint8 (N, H, W, C) to the softmax of one random linear layer; other seeds, other answers."""
    spec, classes = dataset.pixels, len(dataset.classes)
    inputs = spec.height * spec.width * spec.channels
    random = np.random.default_rng(seed)
    weights = random.normal(0, 6 / 255 / np.sqrt(inputs), (inputs, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["rows"], axis=1),
        helper.make_node("MatMul", ["rows", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1),
    ]
    shape: list[str | int | None] = ["batch", spec.height, spec.width, spec.channels]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def register(
    checkpoints: Store,
    models: Store,
    model: str,
    seed: int,
    *,
    dataset: DatasetVersion = DATASET,
    onnx_file: bytes | None = None,
    evaluation: Mapping[str, bytes] | None = None,
) -> ModelVersion:
    """A version whose weights come from ``seed``, later than those of smaller seeds."""
    run = TrainingRun(
        id=hashlib.sha256(f"{dataset.version} {seed}".encode()).hexdigest()[:16],
        dataset=dataset,
        config=TrainConfig(seed=seed),
        checkpoint="unused",
        history=(),
        exact=True,
        environment={},
        finished_at=datetime(2026, 11, 22, tzinfo=UTC) + timedelta(minutes=seed),
    )
    exported = {"model.onnx": onnx_file or linear_onnx(dataset, seed), "model.safetensors": b"unused"}
    evaluated = {
        "report.html": REPORT,
        "evaluation.json": b'{"accuracy": 0.9, "ece": 0.02}',
        "predictions.parquet": b"none",
    } | dict(evaluation or {})
    report = EvaluationReport(
        training_run=run,
        images=3,
        accuracy=0.9,
        ece=0.02,
        classes=(),
        confusion=(),
        files={name: _put(checkpoints, f"{run.id}/evaluation/{name}", data) for name, data in evaluated.items()},
    )
    files = {name: _put(checkpoints, f"{run.id}/export/{name}", data) for name, data in exported.items()}
    exported_model = ExportedModel(training_run=run, files=files, parity={"max_difference": 0.0, "images": 3})
    return registry.register(checkpoints, models, model, exported_model, report)


def picture(seed: int, height: int = 12, width: int = 10) -> NDArray[np.uint8]:
    """Random RGB pixels, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _put(store: Store, key: str, data: bytes) -> StoredFile:
    store.put(key, data)
    return StoredFile(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
