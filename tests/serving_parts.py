"""Parts of the inference server without its network: a loaded version, calls, jobs and what becomes of them."""

import time

import tiny_models
from live_server import Registry

from pipeline import images, registry
from serving.batch import Image, Job, Outcome, examine, size_of
from serving.board import Board, new_board_file
from serving.calls import Call, never
from serving.counts import Counts
from serving.live_model import LiveModel
from serving.uploads import Upload


def live_of(
    models: Registry, seed: int, *, onnx_file: bytes | None = None, share: int = 1, cores: int = 1
) -> LiveModel:
    """A version, loaded."""
    version = models.register(seed, onnx_file=onnx_file)
    manifest = registry.read_manifest(models.models, version.model, version.version)
    return LiveModel.loaded(manifest, registry.load_file(models.models, manifest, "model.onnx"), share, cores)


def encoded(seed: int) -> Upload:
    """A PNG of the model's own size."""
    return Upload(f"{seed}.png", images.encode_png(tiny_models.picture(seed)))


def call(*, begun: float | None = None, deadline_s: float | None = None, gone: bool = False) -> Call:
    """A call that came now, or when it is said to."""
    begun = time.perf_counter() if begun is None else begun
    deadline = None if deadline_s is None else begun + deadline_s
    return Call("id", "caller", begun, (lambda: True) if gone else never, deadline)


def job(*sent: Image, of: Call | None = None) -> tuple[Job, list[Outcome]]:
    """A job whose images were examined, and where it tells what became of it."""
    told: list[Outcome] = []
    made = Job(of or call(), sent, told.append, time.perf_counter(), size=size_of(sent))
    examine(made)
    return made, told


def counts() -> Counts:
    """Of a process of its own."""
    return Counts(Board(new_board_file(1)).counts(0))
