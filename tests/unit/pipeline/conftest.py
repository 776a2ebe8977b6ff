"""Zones in memory: no test of this folder needs a server."""

import pytest
import synthetic

from pipeline.zones import Zones


@pytest.fixture
def zones() -> Zones:
    """Zones in memory with ``cats``, 60 grey images of 3 classes; a file that wants others has its own."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 20)
    return zones
