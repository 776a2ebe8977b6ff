"""Checkpoints of a training run: written, found again, and cleared away.

- One checkpoint is a folder ``<run>/checkpoints/<fence>-<step>/`` with the tensors (``state.safetensors``) and, written
  last, ``checkpoint.json``, which names their SHA-256 and is sealed: a folder without it does not count,
  and one that was altered is passed over for the one before. No pickle.
- The fence (see ``training_runs``) keeps two processes out of each other's folders; the newest checkpoint is the one
  with the highest fence, then the highest step.
- Kept are the newest two and the best; the others are deleted once a newer one is complete, manifest first.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.artifacts import EpochMetrics, Record, StoredFile, TrainingRun
from pipeline.errors import Corrupted, ObjectMissing
from pipeline.sealing import sealed, unsealed
from pipeline.store import Store

log = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
STATE = "state.safetensors"
WEIGHTS = "weights"
"""The group of the tensors that the finished model is made of."""

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group (``weights``, ``optimizer``) and name."""


class Position(Record):
    """Where training stands, tensors apart.

    Attributes:
        step: optimizer steps done. With the configuration it fixes the schedule, the order of the images and the state
            of every random generator, because each step seeds them from the run's seed and its own number.
        loss_sum: of the epoch under way, over ``images``, which is how many images it has seen.
        correct: predictions of the epoch under way that were right.
        seconds: spent on the steps of the epoch under way.
        history: of the finished epochs.
        best: key of the best checkpoint's manifest so far; empty until an epoch is finished.
        best_epoch: the epoch after which it was written, or 0.
        exact: False once training was resumed where bit-for-bit repetition cannot be promised.
    """

    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0
    history: tuple[EpochMetrics, ...] = ()
    best: str = ""
    best_epoch: int = 0
    exact: bool = True


class Checkpoint(Record):
    """What ``checkpoint.json`` holds.

    Attributes:
        run: the training run's id.
        fence: of the lease under which it was written.
        position: where training stood.
        settings: numbers of the optimizer and the gradient scaler, as they give them.
        environment: libraries, machine type and threads; the same ones continue bit for bit.
        state: the tensors.
    """

    run: str
    fence: int
    position: Position
    settings: dict[str, Any]
    environment: dict[str, str]
    state: StoredFile | None = None


def manifest_key(run: str, fence: int, step: int) -> str:
    """Where the manifest of a checkpoint is, in the checkpoints zone."""
    return f"{_folder(run)}/{fence:06d}-{step:09d}/{MANIFEST}"


def is_part(key: str) -> bool:
    """Whether a key of the checkpoints zone is of a checkpoint, complete or not."""
    return key.split("/")[1:2] == ["checkpoints"]


def save(store: Store, checkpoint: Checkpoint, tensors: Tensors, *, may_write: Callable[[], None]) -> str:
    """Write a checkpoint, its manifest last; the manifest's key.

    Args:
        store: the checkpoints zone.
        checkpoint: without ``state`` and ``digest``, which are found here.
        tensors: on any device.
        may_write: called before each write; raises where this process may not write any more.
    """
    key = manifest_key(checkpoint.run, checkpoint.fence, checkpoint.position.step)
    state_key = key.removesuffix(MANIFEST) + STATE
    data = safetensors.torch.save(_flat(tensors))
    state = StoredFile.of(state_key, data)
    may_write()
    store.put(state_key, data)
    may_write()
    store.put(key, sealed(checkpoint.model_copy(update={"state": state}), key))
    return key


def load(store: Store, key: str) -> tuple[Checkpoint, Tensors]:
    """The checkpoint whose manifest is under ``key``, and its tensors on the CPU.

    Raises:
        Corrupted: something of it is missing, or is not what was written.
    """
    try:
        checkpoint, state = parsed(store, key, store.get(key))
        data = store.get_verified(state.key, state.sha256)
        return checkpoint, _grouped(safetensors.torch.load(data))
    except ObjectMissing as error:
        raise Corrupted(f"The checkpoint {store.url}/{key} is incomplete: {error}") from error
    except SafetensorError as error:
        raise Corrupted(f"{store.url}/{key} is not a checkpoint of this program.") from error


def parsed(store: Store, key: str, data: bytes) -> tuple[Checkpoint, StoredFile]:
    """The checkpoint whose manifest ``data`` is, read from ``key``, and the file of its tensors.

    Raises:
        Corrupted: it was altered, or is another checkpoint's.
    """
    try:
        checkpoint = unsealed(Checkpoint, data, key)
    except Corrupted as error:
        raise Corrupted(f"{store.url}/{key} is no checkpoint: {error}.") from error
    if checkpoint.state is None:
        raise Corrupted(f"{store.url}/{key} names no tensors.")
    return checkpoint, checkpoint.state


def newest(store: Store, run: str) -> tuple[Checkpoint, Tensors] | None:
    """The newest checkpoint of a run that can be read, together with the best one that it names; None without any."""
    for key in reversed(_manifests(store, run)):
        try:
            checkpoint, tensors = load(store, key)
            if checkpoint.position.best not in ("", key):
                load(store, checkpoint.position.best)
        except Corrupted as error:
            log.warning("%s The checkpoint before it is used.", error)
        else:
            return checkpoint, tensors
    return None


def prune(store: Store, run: str, *, newest: str, best: str) -> None:
    """Delete what is older than the complete checkpoint ``newest``, but for the one before it and the best one."""
    older = sorted(found.key for found in store.listing(_folder(run)) if found.key < _folder_of(newest))
    complete = [key for key in older if key.endswith(MANIFEST)]
    kept = {_folder_of(key) for key in (best, *complete[-1:])}
    old = [key for key in older if _folder_of(key) not in kept]
    store.delete(key for key in old if key.endswith(MANIFEST))
    store.delete(key for key in old if not key.endswith(MANIFEST))


def load_weights(checkpoints: Store, run: TrainingRun) -> dict[str, Tensor]:
    """The weights of a finished run's best checkpoint, as ``Classifier.load_state_dict`` takes them.

    Raises:
        Corrupted: they are missing, or not what training wrote.
    """
    return dict(load(checkpoints, run.checkpoint)[1][WEIGHTS])


def _flat(tensors: Tensors) -> dict[str, Tensor]:
    return {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group, members in tensors.items()
        for name, tensor in members.items()
    }


def _grouped(flat: Mapping[str, Tensor]) -> Tensors:
    tensors: dict[str, dict[str, Tensor]] = {}
    for full, tensor in flat.items():
        group, _, name = full.partition(".")
        tensors.setdefault(group, {})[name] = tensor
    return tensors


def _manifests(store: Store, run: str) -> list[str]:
    """Keys of the complete checkpoints' manifests, the newest last."""
    return sorted(found.key for found in store.listing(_folder(run)) if found.key.endswith(MANIFEST))


def _folder(run: str) -> str:
    return f"{run}/checkpoints"


def _folder_of(key: str) -> str:
    return key.rpartition("/")[0]
