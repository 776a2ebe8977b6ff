"""Zones in memory and volumes in a folder: no test of this folder needs a server."""

import os
from pathlib import Path

import pytest
import synthetic
from secret_volumes import CONSUMERS

from pipeline import stack_secrets
from pipeline.zones import Zones


@pytest.fixture
def zones() -> Zones:
    """Zones in memory with ``cats``, 60 grey images of 3 classes; a file that wants others has its own."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, "cats", 20)
    return zones


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty volumes of the stack's secrets, mounted; files are handed over to whoever runs the test."""
    for name in (stack_secrets.ALL, *CONSUMERS):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(stack_secrets, "SERVICE_UID", os.getuid())
    return tmp_path
