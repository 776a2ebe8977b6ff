"""Where the pixels of what is trained on lie: in memory, else in local files, else in the store alone.

Files come before the store, because they may be read in any order. Only what they cannot hold is streamed.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import datasets, freed_memory
from pipeline.artifacts import DatasetVersion, Split
from pipeline.datasets import LoadedSplit
from pipeline.progress import OnProgress, silent
from pipeline.ranks import ALONE, Ranks
from pipeline.split_layout import layout_of
from pipeline.store import Store
from pipeline.streamed import Streamed

PLACED: tuple[Split, Split] = ("train", "validation")
"""Those that a training sees; the test split is none of them."""
JUDGED_SHARE = 4
"""The validation split has a quarter of the disk at most."""


@contextmanager
def placed_splits(
    store: Store,
    version: DatasetVersion,
    *,
    memory_mb: int,
    disk_mb: int | None,
    scratch: Path | None,
    group: Ranks = ALONE,
    on_progress: OnProgress = silent,
) -> Iterator[dict[Split, LoadedSplit | Streamed]]:
    """The training and the validation split, each where there is room for it.

    Args:
        store: the datasets zone.
        version: complete.
        memory_mb: how much memory the pixels of a split may take, in MiB.
        disk_mb: how much disk the pixels of both may take, in MiB; None: what is free, or half of it if that is not
            enough, shared equally by the ranks of this machine.
        scratch: folder for files, which are gone with the context; by default the system's own.
        group: the ranks that share the images, each with so much memory and disk; all stream what one must stream.
        on_progress: told after each shard that is loaded.

    Raises:
        InvalidInput: there is too little room.
        Corrupted: a shard, or an image in it, is not what was written.
    """
    rooms = _rooms(version, memory_mb, disk_mb, scratch, group)
    splits: dict[Split, LoadedSplit | Streamed] = {}
    with ExitStack() as stack:
        for split in PLACED:
            if split in rooms:
                freed_memory.keep_little()
                layout = layout_of(store, version, split)
                freed_memory.give_back()
                room: Any = {"disk_bytes": rooms[split], "memory_bytes": memory_mb << 20, "group": group}
                splits[split] = stack.enter_context(Streamed(store, layout, scratch, **room))
            else:
                room = {"memory_mb": memory_mb, "scratch": scratch, "part": group.rank, "parts": group.world}
                splits[split] = datasets.load_split(store, version, split, **room, on_progress=on_progress)
        yield splits


def _rooms(
    version: DatasetVersion, memory_mb: int, disk_mb: int | None, scratch: Path | None, group: Ranks
) -> dict[Split, int]:
    """The splits that are streamed, and how many bytes of disk each of them may take."""
    image = int(np.prod(datasets.shape_of(version)))
    sizes = [version.counts.get(split, 0) // group.world * image for split in PLACED]
    train, validation = (size if size > memory_mb << 20 else 0 for size in sizes)
    free = _free(scratch) // group.local_world
    disk = free if disk_mb is None else disk_mb << 20
    streams = group.agree(streamed(train, validation, disk))
    if any(streams) and disk_mb is None:
        disk = free // 2
        streams = group.agree(streamed(train, validation, disk))
    rooms = zip(PLACED, rooms_for(train, validation, disk), streams, strict=True)
    return {split: room for split, room, streams_it in rooms if streams_it}


def streamed(train: int, validation: int, disk: int) -> tuple[bool, bool]:
    """Whether the training split is streamed, and whether the validation split is.

    Args:
        train: bytes of the training split that memory shall not hold.
        validation: the same of the validation split.
        disk: bytes that both may take.
    """
    room = rooms_for(train, validation, disk)
    return train > room[0], validation > room[1]


def rooms_for(train: int, validation: int, disk: int) -> tuple[int, int]:
    """Bytes of disk that each of them may take: the validation split has a quarter at most, where both do not fit."""
    if train + validation <= disk:
        return disk - validation, validation
    held_out = min(validation, disk // JUDGED_SHARE)
    return disk - held_out, held_out


def _free(folder: Path | None) -> int:
    where = folder or Path(tempfile.gettempdir())
    return shutil.disk_usage(next(each for each in (where, *where.absolute().parents) if each.exists())).free
