"""Upload → retrain: one switch turns it on, and a thousand uploads are one run."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from e2e.conftest import CLASSES
from e2e.stack import Stack, wait_until

UPLOADS = 1000
QUIET_S = 45
"""After the last upload, in which a second run would have begun."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def switched_on(stack: Stack, live: str) -> Iterator[str]:
    """The dataset's name; uploads start runs as long as the fixture."""
    stack.compose("--profile", "retrain", "up", "--no-build", "-d", "--wait", "upload-events")
    yield live
    stack.compose("--profile", "retrain", "rm", "--stop", "--force", "upload-events")


def test_a_thousand_uploads_make_one_run(stack: Stack, switched_on: str, images: Path) -> None:
    """While images arrive one by one nothing is run a thousand times: one run of `pipeline` follows, and completes."""
    files = sorted(path for name in CLASSES for path in (images / name).iterdir())[:UPLOADS]
    before = set(stack.runs.of("pipeline"))
    uploads = stack.stored.zone("images")

    def upload(path: Path) -> None:
        # Other bytes than the sample's, so that each of them is a new image: what follows a PNG's end is not read.
        uploads.put(f"{switched_on}/{path.parent.name}/late-{path.name}", path.read_bytes() + b"late")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, files))
    wait_until(lambda: bool(set(stack.runs.of("pipeline")) - before), 120, "no run was started")
    time.sleep(QUIET_S)
    started = set(stack.runs.of("pipeline")) - before
    assert len(started) == 1, started
    run = started.pop()
    assert stack.runs.api("GET", f"flow_runs/{run}")["parameters"]["dataset"] == switched_on
    stack.runs.completed(run, 300)
