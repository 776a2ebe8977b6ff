"""A training run's best weights → files that serving can load, proven to answer like torch.

- The ONNX graph takes pixels as they are stored and gives probabilities: normalisation and softmax are inside, so that
  nothing remains to be done differently elsewhere. It is one file, its batch size is free, and it carries no trace of
  the machine that made it, because its bytes are part of a model version's id.
- **Parity is proven on real test images, with the bytes that are stored.** Where it fails nothing is recorded, and
  without the record nothing is registered.
- Files go in write once, the record last: an export that was killed is repeated, a finished one is found.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline import checkpoints, datasets, model
from pipeline.artifacts import ExportedModel, PixelSpec, StoredFile, TrainingRun
from pipeline.errors import Corrupted, ExportMismatch
from pipeline.onnx_model import INPUT, OUTPUT, OnnxModel
from pipeline.progress import OnProgress, Progress, silent
from pipeline.sealing import sealed, unsealed
from pipeline.store import Store
from pipeline.zones import Zones

OPSET = 20
"""Version of the ONNX operators: old enough for every runtime of the last years, new enough for these networks."""
PARITY_IMAGES = 2_000
"""Test images that are compared, fewer where they are large: ``PARITY_PIXELS`` in all, but at least a hundred."""
PARITY_PIXELS = 100_000_000
BATCH_PIXELS = 1 << 24
"""Bound of a batch, whatever ``BATCH_SIZES`` says: a network needs some hundred times as many bytes meanwhile."""
LARGEST_DIFFERENCE = 1e-4
"""Of any probability, between torch and ONNX Runtime."""
CLEAR_LEAD = 2e-4
"""Where torch's best class leads its second by more than this, both must choose the same one."""
BATCH_SIZES = (1, 2, 3, 31, 257)
"""Images given to ONNX Runtime at once, in turn: one, odd ones, and more than the graph was traced with."""
NOISY = ("torch.onnx", "onnxscript", "onnx_ir")
"""Loggers of libraries that tell each of their inner steps."""


class Probabilities(nn.Module):
    """A classifier with its softmax: uint8 (N, H, W, C) → float32 (N, K)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities (N, K), float32, of pixels (N, H, W, C), uint8."""
        return torch.softmax(self.classifier(pixels), dim=1)


def export(
    zones: Zones,
    run: TrainingRun,
    *,
    memory_mb: int = 4096,
    scratch: Path | None = None,
    on_progress: OnProgress = silent,
) -> ExportedModel:
    """Export a finished training run, or find what was exported already.

    Args:
        zones: reads datasets and checkpoints, writes checkpoints.
        run: whose best weights to export.
        memory_mb: how much memory the test split's pixels may take, in MiB; more lie in a file in ``scratch``.
        scratch: a folder of this machine; by default the system's own.
        on_progress: told how many images were compared.

    Raises:
        ExportMismatch: the ONNX model does not answer like torch.
        StoreError: a checkpoint or a shard is missing or altered, or the store stayed away.
    """
    found = zones.checkpoints.get_if_present(_key(run, "export.json"))
    if found is not None:
        return _record(zones.checkpoints, run, found)
    weights = checkpoints.load_weights(zones.checkpoints, run)
    network = _network(run, weights)
    test = datasets.load_split(
        zones.datasets, run.dataset, "test", memory_mb=memory_mb, scratch=scratch, on_progress=on_progress
    )
    enough = max(100, PARITY_PIXELS // math.prod(test.pixels.shape[1:3]))
    pixels = test.pixels[spread(len(test.pixels), min(PARITY_IMAGES, enough))]
    contents = {
        "model.onnx": to_onnx(network, run.dataset.pixels),
        "model.safetensors": safetensors.torch.save(dict(sorted(weights.items()))),
    }
    # Prove before anything is stored; prove again if another writer's bytes were there first.
    difference = prove_parity(network, contents["model.onnx"], pixels, on_progress)
    stored = {name: zones.checkpoints.write_once(_key(run, name), data) for name, data in contents.items()}
    _refuse_other_weights(zones.checkpoints, _key(run, "model.safetensors"), stored["model.safetensors"], weights)
    if stored["model.onnx"] != contents["model.onnx"]:
        difference = prove_parity(network, stored["model.onnx"], pixels, on_progress)
    exported = ExportedModel(
        training_run=run,
        files={name: StoredFile.of(_key(run, name), data) for name, data in stored.items()},
        parity={"largest_difference": difference, "images": len(pixels)},
    )
    key = _key(run, "export.json")
    final = zones.checkpoints.write_once(key, sealed(exported, key))
    return _record(zones.checkpoints, run, final)


def to_onnx(network: nn.Module, pixels: PixelSpec) -> bytes:
    """``network`` (uint8 pixels → probabilities) as an ONNX file with a free batch size; equal bytes every time."""
    example = torch.zeros(2, pixels.height, pixels.width, pixels.channels, dtype=torch.uint8)
    with _quiet(NOISY):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
        )
    if program is None:
        raise ExportMismatch("torch exported nothing.")
    graph: Any = program.model_proto
    _strip(graph)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


def spread(images: int, at_most: int) -> NDArray[np.int64]:
    """Indices of at most so many images, evenly spread over all of them."""
    return np.linspace(0, images - 1, min(images, at_most)).round().astype(np.int64)


def prove_parity(network: nn.Module, onnx: bytes, pixels: NDArray[np.uint8], on_progress: OnProgress = silent) -> float:
    """The largest difference of a probability between ``network`` in torch and in ONNX Runtime.

    Args:
        network: uint8 (N, H, W, C) → probabilities float32 (N, K), on the CPU.
        onnx: the same network as an ONNX file.
        pixels: real images, uint8 (N, H, W, C).
        on_progress: told how many images were compared.

    Raises:
        ExportMismatch: a probability differs by more than ``LARGEST_DIFFERENCE``, or is not a number, or the best
            class differs where torch has a ``CLEAR_LEAD``.
    """
    runtime = OnnxModel(onnx, threads=os.cpu_count() or 1)
    largest = 0.0
    for start, end in _batches(len(pixels), max(3, BATCH_PIXELS // math.prod(pixels.shape[1:3]))):
        batch = np.ascontiguousarray(pixels[start:end])
        with torch.inference_mode():
            expected = network(torch.from_numpy(batch)).numpy()
        largest = max(largest, _difference(expected, runtime.probabilities(batch)))
        on_progress(Progress("comparing the export", end, len(pixels), note=f"differs by {largest:.1e}"))
    return largest


def _network(run: TrainingRun, weights: dict[str, Tensor]) -> nn.Module:
    with torch.random.fork_rng([]):  # nobody else's random numbers change because a network was built
        config = run.config
        network = model.build(config.architecture, len(run.dataset.classes), run.dataset.pixels, config.width)
    network.load_state_dict(weights)
    return Probabilities(network).eval()


def _difference(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Largest difference of a probability, when ``got`` may stand for ``expected`` (both (N, K), K at least 2)."""
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        raise ExportMismatch("The model answers some test images with NaN or infinity, so it cannot be exported.")
    runner_up, best = np.sort(expected, axis=1)[:, -2:].T
    disagree = (best - runner_up > CLEAR_LEAD) & (expected.argmax(axis=1) != got.argmax(axis=1))
    if disagree.any():
        raise ExportMismatch(
            f"The exported model puts {disagree.sum()} of {len(got)} test images into another class than torch does, "
            "so nothing was exported."
        )
    largest = float(np.abs(expected - got).max())
    if largest > LARGEST_DIFFERENCE:
        raise ExportMismatch(
            f"The exported model's probabilities differ from torch's by up to {largest:.1e}; "
            f"{LARGEST_DIFFERENCE:.0e} is allowed, so nothing was exported."
        )
    return largest


def _batches(images: int, largest: int) -> Iterator[tuple[int, int]]:
    """Slices of ``images`` by each of ``BATCH_SIZES`` in turn, then by the last of them, none above ``largest``."""
    start, sizes = 0, chain(BATCH_SIZES, repeat(BATCH_SIZES[-1]))
    while start < images:
        end = min(start + min(next(sizes), largest), images)
        yield start, end
        start = end


def _strip(graph: Any) -> None:
    """Remove what the exporter notes for debugging: source paths, stack traces, names of Python classes."""
    parts = [graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *graph.functions]
    parts += [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]
    for function in graph.functions:
        parts += [*function.node, *function.value_info]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet(names: Sequence[str]) -> Iterator[None]:
    """Show only what these loggers warn of."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _refuse_other_weights(store: Store, key: str, data: bytes, weights: dict[str, Tensor]) -> None:
    """An export that was cut short may have been altered before this one went on with it."""
    try:
        stored = safetensors.torch.load(data)
    except SafetensorError:
        stored = {}
    if stored.keys() != weights.keys() or not all(torch.equal(stored[name], weights[name]) for name in weights):
        raise Corrupted(f"{store.url}/{key} does not hold the weights of its run: delete it and export again.")


def _record(store: Store, run: TrainingRun, data: bytes) -> ExportedModel:
    try:
        return unsealed(ExportedModel, data, _key(run, "export.json"))
    except Corrupted as error:
        raise Corrupted(
            f"{store.url}/{_key(run, 'export.json')} is no record of an export: {error}; delete it and export again."
        ) from error


def _key(run: TrainingRun, name: str) -> str:
    return f"{run.id}/export/{name}"
