"""Packing a chunk away from its preparation: in another process, of this machine or of a Dask cluster.

- The process finds settings and credentials in its own environment; a chunk brings keys, and its result is a segment of
  an index.
- **What it wrote must be where the preparation looks**: another endpoint, or another bucket of the same name, would
  give a manifest of shards that are not there. So one shard of each chunk is looked for: a request per chunk.
- Shards are written once under the digest of their content, so that a chunk that is done twice does no harm.
"""

import functools
import os
import sys

from pipeline import dataset_index, freed_memory, packing, shards
from pipeline.artifacts import PIXEL_FORMAT
from pipeline.errors import InvalidSettings
from pipeline.packing import Chunk, PackedChunk
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones, reachable


@functools.lru_cache(maxsize=1)
def opened(settings: Settings) -> Zones:
    """The zones; a process that does one chunk or task after another opens them once."""
    return open_zones(settings)


def pack(chunk: Chunk, decode_threads: int | None) -> PackedChunk:
    """``packing.pack_chunk`` with the settings of this process."""
    settings = reachable(Settings.from_environ(os.environ))
    return pack_in(opened(settings), settings, chunk, decode_threads)


def pack_alone(chunk: Chunk) -> PackedChunk:
    """The same with one thread: other processes of this machine have the other cores."""
    return pack(chunk, 1)


def pack_in(zones: Zones, settings: Settings, chunk: Chunk, decode_threads: int | None) -> PackedChunk:
    """``packing.pack_chunk`` with these settings; ``decode_threads`` None: theirs, or this process's share of cores.

    Raises:
        InvalidSettings: this process's decoder makes other pixels than the chunk asks for.
    """
    if chunk.pixels.format != PIXEL_FORMAT:
        raise InvalidSettings(
            f"This process makes pixels of format {PIXEL_FORMAT}, and the preparation wants format "
            f"{chunk.pixels.format}: run the same version of Safelight everywhere."
        )
    threads = decode_threads or settings.decode_threads or share_of_cores()
    freed_memory.keep_little()
    packed = packing.pack_chunk(zones.images, zones.datasets, chunk, decode_threads=threads)
    freed_memory.give_back()
    return packed


def refuse_other_store(zones: Zones, chunk: Chunk, packed: PackedChunk) -> PackedChunk:
    """``packed``, if whoever packed it read and wrote in these zones.

    Raises:
        InvalidSettings: it did so elsewhere.
    """
    written = dataset_index.shards_of(packed.segment)
    if written:
        elsewhere = zones.datasets.head(shards.shard_key(chunk.dataset, next(iter(written)))) is None
    else:
        read = dataset_index.decode(packed.segment).rows["etag"]
        elsewhere = read.null_count == len(read) and zones.images.head(chunk.keys[0]) is not None
    if elsewhere:
        raise InvalidSettings(
            f"A worker of SAFELIGHT_TASK_RUNNER reads or writes another object store than {zones.datasets.url} here: "
            "give both the same SAFELIGHT_S3_ENDPOINT and SAFELIGHT_…_URL."
        )
    return packed


def share_of_cores() -> int | None:
    """Of a Dask worker, for each of its threads; None (all of them) elsewhere."""
    if "distributed.worker" not in sys.modules:
        return None
    from pipeline import dask_cluster  # noqa: PLC0415 - only where Dask is loaded already

    return dask_cluster.cores_per_thread()
