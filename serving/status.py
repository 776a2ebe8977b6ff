"""What a server says of itself: the version that answers, where it comes from, and each of its processes."""

from collections.abc import Mapping
from typing import Final

from pipeline.aliases import Canary
from pipeline.registry import ModelManifest
from serving.board import Board
from serving.live_model import LiveModel
from serving.open_inference_schemas import IMAGE, LABEL, PIXELS, PROBABILITIES, PROBABILITY, TensorMetadata
from serving.schemas import CanaryStatus, ModelStatus, ProcessStatus
from serving.settings import ServingSettings
from serving.swap import HUNG_S

ANY: Final = -1
"""A dimension of any size, as the protocol has it."""


def processes(board: Board) -> Mapping[int, ProcessStatus]:
    """Each process that sits on the board, by its seat."""
    found = {seat: _process(board, seat) for seat in range(board.seats)}
    return {seat: process for seat, process in found.items() if process.pid}


def model_status(settings: ServingSettings, board: Board, live: LiveModel | None, *, draining: bool) -> ModelStatus:
    """The state of the whole replica; ``live`` is what the process that is asked answers with."""
    agreement = board.agreement()
    said = ModelStatus(
        name=settings.model,
        alias=None if settings.version else settings.alias,
        ready=live is not None and not draining,
        version=agreement.live.version,
        generation=board.generation,
        live_since=agreement.since if agreement.live.version else None,
        canary=_canary(agreement.live.asked),
        swap_error=agreement.error or agreement.canary_error,
        processes=tuple(processes(board).values()),
        inputs=inputs(live),
        outputs=outputs(live),
    )
    if live is None:
        return said
    manifest = live.manifest
    return said.model_copy(
        update={
            "version": manifest.version,
            "versions": (manifest.version,),
            "dataset": manifest.dataset.dataset,
            "dataset_version": manifest.dataset.version,
            "classes": manifest.classes,
            "metrics": manifest.metrics,
            "created_at": manifest.created_at,
            "training_run": manifest.training_run,
            "code_revision": manifest.code_revision,
            "parents": manifest.parents,
            "report": report_path(manifest),
        }
    )


def inputs(live: LiveModel | None) -> tuple[TensorMetadata, ...]:
    """What a request may hold, one of the two; without a live model nobody knows the pixels' size."""
    spec = live.manifest.pixels if live else None
    row = (spec.height, spec.width, spec.channels) if spec else (ANY, ANY, ANY)
    return (
        TensorMetadata(name=IMAGE, datatype="BYTES", shape=(ANY,)),
        TensorMetadata(name=PIXELS, datatype="UINT8", shape=(ANY, *row)),
    )


def outputs(live: LiveModel | None) -> tuple[TensorMetadata, ...]:
    """What an answer may hold."""
    classes = len(live.manifest.classes) if live else ANY
    return (
        TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=(ANY, classes)),
        TensorMetadata(name=LABEL, datatype="BYTES", shape=(ANY,)),
        TensorMetadata(name=PROBABILITY, datatype="FP32", shape=(ANY,)),
    )


def report_path(manifest: ModelManifest) -> str:
    """Where this server shows a version's evaluation report."""
    return f"/v2/models/{manifest.model}/versions/{manifest.version}/report"


def _process(board: Board, seat: int) -> ProcessStatus:
    report, silent_s = board.report(seat), board.silent_s(seat)
    answering = board.generation
    generation = answering if answering in report.held else max(report.held, default=0)
    version = report.held.get(generation)
    lives = silent_s is not None and silent_s <= HUNG_S
    ready = lives and generation == answering and version is not None and not report.draining
    challenger = report.challengers.get(generation)
    return ProcessStatus(pid=report.pid, version=version, challenger=challenger, generation=generation, ready=ready)


def nothing_live(board: Board, model: str) -> str:
    """Why nobody gets an answer, as a sentence."""
    error = board.agreement().error
    why = f" {error.reason}" if error else ""
    return f"No version of model {model!r} is live yet.{why}"


def _canary(asked: Canary | None) -> CanaryStatus | None:
    if asked is None:
        return None
    return CanaryStatus(challenger=asked.challenger, share=asked.share, mode=asked.mode, step=asked.step)
