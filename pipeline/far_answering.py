"""Answering a part of a batch away from where the batch was begun: in another process, of this machine or of a cluster.

As with ``far_packing``: settings and credentials are those of that process, and what it says that it stored must be
where the batch looks for it. Parts are written once, so that one that is done twice does no harm.
"""

import os

from pipeline import answering, batch_plans, freed_memory
from pipeline.batches import BatchPart, Part
from pipeline.errors import InvalidSettings
from pipeline.far_packing import opened, share_of_cores
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from pipeline.zones import Zones, reachable


def answer(part: Part, decode_threads: int | None) -> BatchPart:
    """``answering.answer_part`` with the settings of this process."""
    settings = reachable(Settings.from_environ(os.environ))
    return answer_in(opened(settings), settings, part, decode_threads)


def answer_alone(part: Part) -> BatchPart:
    """The same with one thread: other processes of this machine have the other cores."""
    return answer(part, 1)


def answer_in(zones: Zones, settings: Settings, part: Part, decode_threads: int | None) -> BatchPart:
    """``answering.answer_part`` with these settings; ``decode_threads`` None: theirs, or its share of cores."""
    threads = decode_threads or settings.decode_threads or share_of_cores()
    freed_memory.keep_little()
    source = source_at(settings, zones, part.source)
    made = answering.answer_part(source, zones.models, zones.predictions, part, decode_threads=threads)
    freed_memory.give_back()
    return made


def source_at(settings: Settings, zones: Zones, url: str) -> Store:
    """The images zone, or another bucket of the same store."""
    return zones.images if url == zones.images.url else open_store(url, settings)


def refuse_other_store(zones: Zones, part: Part, made: BatchPart) -> BatchPart:
    """``made``, if whoever made it read and wrote in these zones.

    Raises:
        InvalidSettings: it did so elsewhere.
    """
    stored = zones.predictions.head(part.key)
    if stored is not None and _found_nothing(zones, part, made):
        zones.predictions.delete([part.key])  # or it would be found, and believed, the next time
        stored = None
    if stored is None or stored.size != made.size:
        raise InvalidSettings(
            f"A worker of SAFELIGHT_TASK_RUNNER reads or writes another object store than {zones.predictions.url} "
            "here: give both the same SAFELIGHT_S3_ENDPOINT and SAFELIGHT_…_URL."
        )
    return made


def _found_nothing(zones: Zones, part: Part, made: BatchPart) -> bool:
    """Whether it saw no image of the part, though the first one is there."""
    if made.left_out != {answering.GONE: made.rows} or part.source != zones.images.url:
        return False
    first = batch_plans.read_listing(zones.predictions, part.listing)["key"][0].as_py()
    return zones.images.head(first) is not None
