"""One stack of containers for all tests of this folder, a sample of real images, and a real browser."""

import gzip
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from browsing import chromium
from e2e import docker_stack
from e2e.docker_stack import Target
from e2e.stack import DEFAULT_TAG, MODEL, RESULTS, Stack, open_stack, wait_until
from PIL import Image
from playwright.sync_api import Browser

from pipeline.artifacts import ModelVersion

ORDER = (
    "test_fresh_stack",
    "test_browser",
    "test_gate",
    "test_runs",
    "test_swaps",
    "test_kills",
    "test_uploads",
    "test_outage",
    "test_strangers",
    "test_down_and_up",
    "test_docker_target",
    "test_docker_faults",
    "test_kubernetes_play",
)
"""Of the files: the first needs a stack in which nothing has happened, ``test_down_and_up`` takes it down."""
IDX = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("tshirt-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SAMPLE = 4000
KEPT_PORTS = (24200, 28080, 29000, 29001)
HOST = "safelight.test"
"""Another name for this machine, to the browser alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the files into their order."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else len(ORDER))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show with a failed test what the services said meanwhile."""
    report: pytest.TestReport = yield  # type: ignore[misc]
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and stack is not None:
        lasted = f"{int(time.time() - call.start) + 2}s"
        said = stack.compose("logs", "--no-color", "--tail", "40", "--since", lasted, check=False).stdout
        report.sections.append(("what the services said", said))
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The stack, built and up; afterwards nothing of it is left but its logs, in build/e2e/.

    With E2E_KEEP=1 it stays up, and the next session finds it: for whoever writes tests.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    keep = bool(os.environ.get("E2E_KEEP"))
    found = open_stack("safelight-e2e", KEPT_PORTS if keep else None)
    if found.environ["STACK_TAG"] == DEFAULT_TAG:
        found.run("make", "images", timeout=3000)
    if not keep:
        found.down()  # what a run that was killed has left
    try:
        if not (keep and found.is_healthy("gateway") and found.is_healthy("worker")):
            found.up()
        yield found
    finally:
        (RESULTS / "services.log").write_text(found.logs(), encoding="utf-8")
        if not keep:
            found.down()


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    """Another stack, whose serving containers are replaced; at first nothing is live in it."""
    with docker_stack.opened() as found:
        yield found


@pytest.fixture
def deployed(target: Target) -> ModelVersion:
    """A version that is live there: the last test's, if that left one, in one container."""
    now = target.champion()
    if now is None or target.versions() != [now]:
        return target.deploy(target.version()).model_version
    return ModelVersion(model=docker_stack.MODEL, version=now)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of Fashion-MNIST as a person has images: one folder of PNGs for each class."""
    folder = tmp_path_factory.mktemp("images") / MODEL
    pixels = np.frombuffer(gzip.decompress((IDX / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((IDX / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels.reshape(-1, 28, 28)[:SAMPLE], labels[:SAMPLE], strict=True)):
        Image.fromarray(image).save(folder / CLASSES[label] / f"photo-{number:05d}.png")
    for path in (folder, folder.parent, tmp_path_factory.getbasetemp(), tmp_path_factory.getbasetemp().parent):
        path.chmod(0o755)  # the container's user is another one than ours
    return folder


@pytest.fixture(scope="session")
def few(images: Path) -> dict[str, bytes]:
    """A dozen encoded images by name."""
    paths = [path for name in CLASSES for path in sorted((images / name).iterdir())[:2]]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def imported(stack: Stack, images: Path) -> str:
    """The dataset's name; the sample is stored under it."""
    stack.cli("import", "/images", "--dataset", MODEL, folder=images)
    return MODEL


@pytest.fixture(scope="session")
def live(stack: Stack, imported: str) -> str:
    """The name of a model of which a version is live."""
    if stack.version() is None:
        stack.runs.route(training={"epochs": 6})
        # The gateway looks twice a second whether a replica has become ready.
        wait_until(lambda: httpx.get(f"{stack.gateway}/v2/health/ready").is_success, 10, "the gateway knows no replica")
    return imported


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium as people have it, to which ``safelight.test`` is this machine and the internet is not there."""
    assert shutil.which("chromium"), "the tests need Chromium: install it, for example by `apt-get install chromium`"
    with chromium(f"MAP {HOST} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost") as browser:
        yield browser
