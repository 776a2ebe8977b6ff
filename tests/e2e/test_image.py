"""The image of the inference server by itself, as platforms for containers run it."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tiny_models
from e2e.stack import DEFAULT_TAG
from live_server import wait_until

from pipeline import aliases, images
from pipeline.settings import Settings
from pipeline.store import open_store

MODEL = "shapes"
PORT = "9999"
KILLED_AFTER_S = 10
"""The shortest of what platforms give a container to end in."""
STRICT = (
    *("--user", "1000770000:0", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"),
    *("--ipc", "none", "--cpus", "1", "--memory", "512m"),
)
"""Any user, nothing to write to (no /tmp, no /dev/shm), one core, little memory."""
PNG = images.encode_png(tiny_models.picture(5))


def docker(*arguments: str) -> str:
    """The engine's answer."""
    done = subprocess.run(
        [os.environ.get("DOCKER", "docker"), *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models, as one is copied out of the object store."""
    nothing = Settings(store_patience_s=0)
    checkpoints, zone = (open_store("memory:///", nothing) for _ in range(2))
    version = tiny_models.register(checkpoints, zone, MODEL, 1)
    aliases.set_alias(zone, MODEL, aliases.CHAMPION, version.version, reason="test")
    for stored in zone.listing():
        path = tmp_path / stored.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zone.get(stored.key))
    subprocess.run(["chmod", "-R", "a+rX", tmp_path, tmp_path.parent], check=True)
    return tmp_path


@pytest.fixture
def container(models: Path) -> Iterator[str]:
    """A container with nothing but a port from the platform and a folder of models."""
    started = docker(
        *("run", "--detach", *STRICT, "--publish", f"127.0.0.1::{PORT}", "--volume", f"{models}:/models:ro"),
        *("--env", f"PORT={PORT}", "--env", "SAFELIGHT_MODELS_URL=file:///models"),
        *("--env", f"SAFELIGHT_SERVING_MODEL={MODEL}", "--env", "SAFELIGHT_SERVING_API_KEYS=off"),
        f"safelight/serving:{os.environ.get('STACK_TAG', DEFAULT_TAG)}",
    )
    yield started
    docker("rm", "--force", started)


@pytest.mark.timeout(120)
def test_the_image_runs_under_the_strictest_platform(container: str) -> None:
    """On ``$PORT``, as any user, it answers, and told to end amid requests it answers those and ends in time."""
    port = docker("port", container, PORT).splitlines()[0].rpartition(":")[2]
    answers: list[int] = []
    ended = threading.Event()

    def ask(client: httpx.Client) -> None:
        while not ended.is_set():
            try:
                answers.append(client.post("/predict", content=PNG).status_code)
            except httpx.TransportError:
                ended.wait(0.05)

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as client:
        wait_until(lambda: is_ready(client), 30)
        asking = threading.Thread(target=ask, args=[client])
        asking.start()
        try:
            wait_until(lambda: len(answers) > 20)
            begun = time.monotonic()
            docker("stop", "--time", str(KILLED_AFTER_S), container)
            assert time.monotonic() - begun < KILLED_AFTER_S
        finally:
            ended.set()
            asking.join()
    assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    assert set(answers) == {200}
    assert "Traceback" not in docker("logs", container)


def is_ready(client: httpx.Client) -> bool:
    """Whether a model is loaded."""
    try:
        return client.get("/v2/health/ready").is_success
    except httpx.TransportError:
        return False
