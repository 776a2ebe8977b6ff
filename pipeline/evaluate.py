"""A training run's best weights → what they do on the test split: figures, every prediction, and a page to look at.

- **Predictions first.** They are stored write once, and all else is computed from the bytes that are stored: figures,
  page and predictions agree whoever wrote which, and an evaluation that was killed need not predict again.
- ``evaluation.json`` is written last; where it is, the evaluation is complete and is found, not repeated.
- Nothing depends on when or how fast it was done. A GPU computes in full float32 here, so that its answers are those
  of the CPU, up to rounding: what is served must answer like what was judged.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import checkpoints, datasets, metrics, model, parquet, report
from pipeline.artifacts import EvaluationReport, Split, StoredFile, TrainingRun
from pipeline.datasets import LoadedSplit
from pipeline.errors import Corrupted, TrainingDiverged
from pipeline.learner import choose_device
from pipeline.progress import OnProgress, Progress, silent
from pipeline.report import Evidence, Mistake
from pipeline.sealing import sealed, unsealed
from pipeline.store import Store
from pipeline.zones import Zones

pc: Any = pyarrow.compute

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
BATCH_IMAGES, BATCH_PIXELS = 512, 1 << 22
"""Bounds of a batch: a network needs some hundred bytes per pixel meanwhile."""
SHOWN_MISTAKES = 24
LISTED_REASONS = 8
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
COLUMNS: dict[str, Any] = {
    "image_digest": pa.binary(32),
    "label": pa.int32(),
    "predicted": pa.int32(),
    "probability": pa.float32(),
    "probabilities": pa.list_(pa.float32()),
}
"""Of ``predictions.parquet``: one row per test image, ordered by digest."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answered on N images: labels and predicted int64 (N,), probability of the latter float32 (N,)."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each answer is right: bool (N,)."""
        right: NDArray[np.bool_] = self.labels == self.predicted
        return right


def evaluate(
    zones: Zones,
    run: TrainingRun,
    *,
    device: str = "auto",
    memory_mb: int = 4096,
    scratch: Path | None = None,
    on_progress: OnProgress = silent,
) -> EvaluationReport:
    """Evaluate a finished training run on its test split, or find what was found out already.

    Args:
        zones: reads datasets and checkpoints, writes checkpoints.
        run: whose best weights to judge.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        memory_mb: how much memory the test split's pixels may take, in MiB; more lie in a file in ``scratch``.
        scratch: a folder of this machine; by default the system's own.
        on_progress: told how many images were judged.

    Raises:
        InvalidInput: the device is not there, or the test split does not fit.
        TrainingDiverged: the model answers with NaN.
        StoreError: a checkpoint or a shard is missing or altered, or the store stayed away.
    """
    store = zones.checkpoints
    found = store.get_if_present(_key(run, "evaluation.json"))
    if found is not None:
        return _complete(store, run, found)
    test = datasets.load_split(
        zones.datasets, run.dataset, "test", memory_mb=memory_mb, scratch=scratch, on_progress=on_progress
    )
    predictions = store.get_if_present(_key(run, "predictions.parquet"))
    if predictions is None:
        probabilities = predict(_network(zones, run), test.pixels, choose_device(device), on_progress)
        predictions = store.write_once(_key(run, "predictions.parquet"), to_parquet(test, probabilities))
    answers = from_parquet(predictions, test, _key(run, "predictions.parquet"))
    judged = judge(run, answers)
    page = store.write_once(_key(run, "report.html"), report.page(judged, _evidence(zones, run, test, answers)))
    files = {"predictions.parquet": predictions, "report.html": page}
    judged = judged.model_copy(
        update={"files": {name: StoredFile.of(_key(run, name), data) for name, data in files.items()}}
    )
    key = _key(run, "evaluation.json")
    return _complete(store, run, store.write_once(key, sealed(judged, key)))


def predict(
    network: nn.Module, pixels: NDArray[np.uint8], device: torch.device, on_progress: OnProgress = silent
) -> NDArray[np.float32]:
    """The probability of each class for each image: float32 (N, K).

    Args:
        network: uint8 (N, H, W, C) → logits (N, K).
        pixels: uint8 (N, H, W, C).
        device: where to compute.
        on_progress: told how many images are done.

    Raises:
        TrainingDiverged: an answer is NaN or infinite.
    """
    network = network.to(device).eval()
    height, width = pixels.shape[1:3]
    size = max(1, min(BATCH_IMAGES, BATCH_PIXELS // (height * width)))
    parts = []
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(pixels), size):
            batch = torch.from_numpy(pixels[start : start + size]).to(device)
            parts.append(torch.softmax(network(batch), dim=1).cpu().numpy())
            on_progress(Progress("evaluating", min(start + size, len(pixels)), len(pixels)))
    probabilities: NDArray[np.float32] = np.concatenate(parts)
    if bad := int((~np.isfinite(probabilities)).any(axis=1).sum()):
        raise TrainingDiverged(
            f"The model answers {bad} of {len(pixels)} test images with NaN: train again with a lower learning rate."
        )
    return probabilities


def judge(run: TrainingRun, answers: Answers) -> EvaluationReport:
    """The figures of a run's answers on its test split."""
    names = run.dataset.classes
    matrix = metrics.confusion(answers.labels, answers.predicted, len(names))
    bins = metrics.reliability(answers.probability, answers.correct)
    return EvaluationReport(
        training_run=run,
        images=len(answers.labels),
        accuracy=metrics.accuracy(matrix),
        ece=metrics.expected_calibration_error(bins),
        classes=metrics.per_class(matrix, names),
        confusion=tuple(map(tuple, matrix.tolist())),
    )


def to_parquet(test: LoadedSplit, probabilities: NDArray[np.float32]) -> bytes:
    """``predictions.parquet``: what was answered for each image of ``test``; ``probabilities`` is (N, K)."""
    images, classes = probabilities.shape
    offsets: Any = pa.array(np.arange(0, images * classes + 1, classes, dtype=np.int32))
    digests: Any = np.ascontiguousarray(test.digests)
    columns: dict[str, Any] = {
        "image_digest": pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), images, [None, pa.py_buffer(digests)]),
        "label": test.labels.astype(np.int32),
        "predicted": probabilities.argmax(axis=1).astype(np.int32),
        "probability": probabilities.max(axis=1),
        "probabilities": pa.ListArray.from_arrays(offsets, pa.array(probabilities.ravel(), pa.float32())),
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=pa.schema(COLUMNS)), file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def from_parquet(data: bytes, test: LoadedSplit, key: str) -> Answers:
    """The answers in ``predictions.parquet``.

    Raises:
        Corrupted: they are not answers on ``test``; ``key`` says which file that is.
    """
    try:
        columns = ["image_digest", "label", "predicted", "probability"]
        # An evaluation that was cut short has no record yet that vouches for it.
        table = parquet.read_table(data, columns, verify=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise Corrupted(f"{key} cannot be read as Parquet: delete it and evaluate again.") from error
    if table["image_digest"].to_pylist() != [digest.tobytes() for digest in test.digests]:
        raise Corrupted(f"{key} holds predictions on other images than this test split: delete it and evaluate again.")
    return Answers(
        table["label"].to_numpy().astype(np.int64),
        table["predicted"].to_numpy().astype(np.int64),
        table["probability"].to_numpy(),
    )


def class_counts(rows: pa.Table, classes: Sequence[str]) -> dict[Split, tuple[int, ...]]:
    """Distinct images of each class, in class order, by split, from the rows of a dataset version's index."""
    groups = rows.group_by(["split", "label"]).aggregate([("digest", "count_distinct")])
    found = {(row["split"], row["label"]): row["digest_count_distinct"] for row in groups.to_pylist()}
    return {split: tuple(found.get((split, label), 0) for label in classes) for split in SPLITS}


def left_out(rows: pa.Table) -> dict[str, int]:
    """How many keys of a dataset version's index are not part of it, by reason, the most frequent reason first."""
    unused = rows.filter(pc.is_null(rows["split"]))["reason"]
    counts = Counter(reason or "conflicting labels or splits" for reason in unused.to_pylist()).most_common()
    rest = sum(number for _, number in counts[LISTED_REASONS:])
    return dict(counts[:LISTED_REASONS]) | ({"other reasons": rest} if rest else {})


def _evidence(zones: Zones, run: TrainingRun, test: LoadedSplit, answers: Answers) -> Evidence:
    names, rows = run.dataset.classes, datasets.read_index(zones.datasets, run.dataset)
    worst = metrics.worst_mistakes(answers.probability, answers.correct, SHOWN_MISTAKES)
    return Evidence(
        reliability=metrics.reliability(answers.probability, answers.correct),
        trust=metrics.trust(answers.probability, answers.correct, THRESHOLDS),
        mistakes=[
            Mistake(
                label=names[answers.labels[index]],
                predicted=names[answers.predicted[index]],
                confidence=float(answers.probability[index]),
                pixels=test.pixels[index],
                digest=test.digests[index].tobytes().hex(),
            )
            for index in worst
        ],
        class_counts=class_counts(rows, names),
        left_out=left_out(rows),
    )


def _network(zones: Zones, run: TrainingRun) -> nn.Module:
    weights = checkpoints.load_weights(zones.checkpoints, run)
    with torch.random.fork_rng([]):  # nobody else's random numbers change because a network was built
        config = run.config
        network = model.build(config.architecture, len(run.dataset.classes), run.dataset.pixels, config.width)
    network.load_state_dict(weights)
    return network


def _complete(store: Store, run: TrainingRun, data: bytes) -> EvaluationReport:
    """The stored report, with itself among its files."""
    key = _key(run, "evaluation.json")
    try:
        stored = unsealed(EvaluationReport, data, key)
    except Corrupted as error:
        raise Corrupted(
            f"{store.url}/{key} is no report of an evaluation: {error}; delete it and evaluate again."
        ) from error
    return stored.model_copy(update={"files": stored.files | {"evaluation.json": StoredFile.of(key, data)}})


def _key(run: TrainingRun, name: str) -> str:
    return f"{run.id}/evaluation/{name}"
