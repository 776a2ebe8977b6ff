"""What tests of preparation compare: what a version holds, what is stored, and what a first preparation gives."""

import synthetic

from pipeline import datasets
from pipeline.artifacts import DatasetVersion, PrepareConfig
from pipeline.prepare import prepare
from pipeline.zones import Zones

CONFIG = PrepareConfig()


def stored(zones: Zones) -> dict[str, str]:
    """Keys and etags in the datasets zone."""
    return {found.key: found.etag for found in zones.datasets.listing()}


def loaded(zones: Zones, version: DatasetVersion) -> list[bytes]:
    """Everything that training sees of a version."""
    splits = [datasets.load_split(zones.datasets, version, split) for split in ("train", "validation", "test")]
    return [array.tobytes() for each in splits for array in (each.digests, each.labels, each.pixels)]


def from_scratch(zones: Zones, config: PrepareConfig = CONFIG) -> tuple[Zones, DatasetVersion]:
    """The same raw images prepared where nothing was prepared before."""
    fresh = synthetic.memory_zones()
    for found in zones.images.listing():
        fresh.images.put(found.key, zones.images.get(found.key))
    return fresh, prepare(fresh, "cats", config).version
