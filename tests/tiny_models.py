"""Real model versions that cost nothing to make: one linear layer as ONNX, registered as any other."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

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
TURNS_IN_A_MS = 2000
"""Of ``slow_onnx``, on a machine of 2026: on others half as many, or twice."""


def onnx_of(nodes: Sequence[NodeProto], constants: Mapping[str, NDArray[Any]], spec: PixelSpec, classes: int) -> bytes:
    """ONNX from uint8 (N, H, W, C) to probabilities (N, classes), as an export's."""
    shape: list[str | int | None] = ["batch", spec.height, spec.width, spec.channels]
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def linear_onnx(dataset: DatasetVersion, seed: int) -> bytes:
    """ONNX from pixels to the softmax of one random linear layer; other seeds, other answers."""
    return _linear_and(dataset, seed, [], "logits", {})


def wrong_onnx(dataset: DatasetVersion, seed: int) -> bytes:
    """``linear_onnx``, but that each class gets the probability of the one before it."""
    return _linear_and(
        dataset,
        seed,
        [helper.make_node("Gather", ["logits", "order"], ["bent"], axis=1)],
        "bent",
        {"order": np.roll(np.arange(len(dataset.classes)), 1)},
    )


def crashing_onnx(dataset: DatasetVersion, seed: int) -> bytes:
    """``linear_onnx``, but that it raises on a dark picture (a mean of less than 16): noise, as at warm-up, passes."""
    nodes = [
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Less", ["means", "dark"], ["is_dark"]),
        helper.make_node("Cast", ["is_dark"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),  # a table of one row
        helper.make_node("Add", ["logits", "nothing"], ["bent"]),
    ]
    constants = {"dark": np.float32(16), "table": np.zeros((1, len(dataset.classes)), np.float32)}
    return _linear_and(dataset, seed, nodes, "bent", constants)


def slow_onnx(dataset: DatasetVersion, seed: int, *, ms: int = 10) -> bytes:
    """``linear_onnx``, but that each call takes some ``ms`` milliseconds for turns that change nothing.

    One turn waits for the one before, so that a machine of many cores is no quicker than one of few.
    """
    turn = helper.make_graph(
        [helper.make_node("Sin", ["angle"], ["sine"]), helper.make_node("Identity", ["more"], ["still_more"])],
        "turn",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("angle", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("still_more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sine", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
        helper.make_node("Loop", ["turns", "", "mean"], ["turned"], body=turn),
        helper.make_node("Mul", ["turned", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["bent"]),
    ]
    constants = {"turns": np.int64(ms * TURNS_IN_A_MS), "zero": np.float32(0)}
    return _linear_and(dataset, seed, nodes, "bent", constants)


def training_run(number: int = 1, *, dataset: DatasetVersion = DATASET, start: str | None = None) -> TrainingRun:
    """A finished run, later than those of smaller numbers; nothing of it is stored."""
    return TrainingRun(
        id=hashlib.sha256(f"{dataset.version} {number}".encode()).hexdigest()[:16],
        dataset=dataset,
        config=TrainConfig(seed=number, starting_weights=start),
        checkpoint="unused",
        history=(),
        exact=True,
        environment={"torch": "2.14.1"},
        finished_at=datetime(2026, 11, 22, tzinfo=UTC) + timedelta(minutes=number),
    )


def exported(checkpoints: Store, run: TrainingRun, onnx_file: bytes = b"onnx") -> ExportedModel:
    """An export of the run, stored."""
    files = {"model.onnx": onnx_file, "model.safetensors": b"unused"}
    return ExportedModel(
        training_run=run,
        files=stored(checkpoints, f"{run.id}/export", files),
        parity={"max_difference": 0.0, "images": 3},
    )


def evaluated(
    checkpoints: Store,
    run: TrainingRun,
    *,
    accuracy: float = 0.9,
    attempt: int = 1,
    files: Mapping[str, bytes] | None = None,
) -> EvaluationReport:
    """An evaluation of the run, stored; another attempt has other bytes, and ``files`` are taken as they are."""
    report = EvaluationReport(training_run=run, images=3, accuracy=accuracy, ece=0.02, classes=(), confusion=())
    made = {
        "report.html": REPORT + b"<p>again" * (attempt - 1),
        "evaluation.json": report.to_json(),
        "predictions.parquet": b"attempt %d" % attempt,
    } | dict(files or {})
    return report.model_copy(update={"files": stored(checkpoints, f"{run.id}/evaluation {attempt}", made)})


def register(
    checkpoints: Store,
    models: Store,
    model: str,
    seed: int,
    *,
    dataset: DatasetVersion = DATASET,
    onnx_file: bytes | None = None,
    accuracy: float = 0.9,
    evaluation: Mapping[str, bytes] | None = None,
) -> ModelVersion:
    """A version whose weights come from ``seed``, later than those of smaller seeds."""
    run = training_run(seed, dataset=dataset)
    made = exported(checkpoints, run, onnx_file or linear_onnx(dataset, seed))
    report = evaluated(checkpoints, run, accuracy=accuracy, files=evaluation)
    return registry.register(checkpoints, models, model, made, report, code_revision="test")


def refuse_inconsistent(models: Store) -> int:
    """Check every file of every visible version against its manifest, and its accuracy; how many versions there are."""
    found = [manifest for model in registry.models_in(models) for manifest in registry.versions(models, model)]
    for manifest in found:
        held = {name: registry.load_file(models, manifest, name) for name in manifest.files}
        assert set(held) == registry.FILES
        assert manifest.metrics["accuracy"] == EvaluationReport.from_json(held["evaluation.json"]).accuracy
    return len(found)


def picture(seed: int, height: int = 12, width: int = 10) -> NDArray[np.uint8]:
    """Random RGB pixels, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def stored(store: Store, folder: str, files: Mapping[str, bytes]) -> dict[str, StoredFile]:
    """The files, stored in a folder."""
    for name, data in files.items():
        store.put(f"{folder}/{name}", data)
    return {name: StoredFile.of(f"{folder}/{name}", data) for name, data in files.items()}


def _linear_and(
    dataset: DatasetVersion, seed: int, more: Sequence[NodeProto], last: str, constants: Mapping[str, Any]
) -> bytes:
    """ONNX from pixels to a softmax of ``last``, which ``more`` nodes make of ``floats`` and ``logits``."""
    spec, classes = dataset.pixels, len(dataset.classes)
    inputs = spec.height * spec.width * spec.channels
    random = np.random.default_rng(seed)
    weights = random.normal(0, 6 / 255 / np.sqrt(inputs), (inputs, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["rows"], axis=1),
        helper.make_node("MatMul", ["rows", "weights"], ["logits"]),
        *more,
        helper.make_node("Softmax", [last], [OUTPUT], axis=1),
    ]
    made = {"weights": weights} | {name: np.asarray(value) for name, value in constants.items()}
    return onnx_of(nodes, made, spec, classes)
