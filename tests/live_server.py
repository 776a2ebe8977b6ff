"""The inference server over real HTTP in a thread, on a registry in memory."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import tiny_models
import uvicorn

from pipeline import aliases
from pipeline.artifacts import ModelVersion
from pipeline.store import Store
from serving.app import create_app
from serving.settings import ServingSettings

MODEL = "shapes"

Serve = Callable[..., httpx.Client]


@dataclass(frozen=True)
class Registry:
    """A registry in memory."""

    checkpoints: Store
    models: Store

    def register(self, seed: int, *, onnx_file: bytes | None = None) -> ModelVersion:
        """A version of ``MODEL``."""
        return tiny_models.register(self.checkpoints, self.models, MODEL, seed, onnx_file=onnx_file)

    def point_at(self, version: ModelVersion | None) -> None:
        """Move the champion alias."""
        name = version.version if version else None
        aliases.set_alias(self.models, MODEL, aliases.CHAMPION, name, reason="test")


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Return when ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def serving(models: Registry, settings: dict[str, object]) -> Iterator[httpx.Client]:
    """A client of a server that runs as long as the context."""
    app = create_app(ServingSettings.model_validate({"model": MODEL, "poll_s": 0.05, **settings}), models.models)
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
