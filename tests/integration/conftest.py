"""Inference servers and object stores that a test may stop."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from serving_process import Start, started

from pipeline import embedded_store
from pipeline.settings import Settings
from pipeline.zones import reachable


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts inference servers, which end with the test."""
    with ExitStack() as running:
        numbers = count()
        yield lambda settings, **own: running.enter_context(
            started(settings, tmp_path / f"serving-{next(numbers)}.log", own)
        )


@pytest.fixture
def private_store(tmp_path: Path) -> Iterator[Settings]:
    """Settings of an object store that this test may stop."""
    home = tmp_path / "home"
    try:
        yield reachable(Settings(home=home, store_patience_s=5))
    finally:
        embedded_store.down(home)
