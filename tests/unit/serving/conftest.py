"""A registry in memory and the inference server on it; and a server without a model, for its connections."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from bounded_server import BoundedServer, bounded_server
from live_server import Registry, Serve, serving, wait_until

from pipeline.settings import Settings
from pipeline.store import open_store


@pytest.fixture
def models() -> Registry:
    """An empty registry."""
    return _registry()


@pytest.fixture
def serve(models: Registry) -> Iterator[Serve]:
    """Starts a server on the registry, with settings; a client of it."""
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(serving(models, settings))


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of a server at which version 1 is live; for tests that change nothing."""
    models = _registry()
    models.point_at(models.register(1))
    with serving(models, {}) as client:
        wait_until(lambda: client.get("/v2/health/ready").is_success)
        yield client


@pytest.fixture
def server() -> Iterator[BoundedServer]:
    """A server without a model, with room for twenty connections and bodies of 1 MiB."""
    with bounded_server() as found:
        yield found


def _registry() -> Registry:
    nothing = Settings(store_patience_s=0)
    return Registry(open_store("memory:///", nothing), open_store("memory:///", nothing))
