"""Inference servers and object stores that a test may stop; a browser before a page; a Deployment on Kubernetes."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import kube_target
import pytest
import tiny_models
from browsing import Files, OpenPage, chromium
from kube_serving import settled
from kube_target import Target
from playwright.sync_api import Browser, Page
from serving_process import Serving, Start, started

from pipeline import embedded_store, images
from pipeline.artifacts import ModelVersion
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser to which only this machine's address exists."""
    with chromium("MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Seventy images, and a letter."""
    folder = tmp_path_factory.mktemp("files")
    made = [folder / f"image-{number}.png" for number in range(70)]
    for number, path in enumerate(made):
        path.write_bytes(images.encode_png(tiny_models.picture(number)))
    letter = folder / "a-letter-that-has-a-very-long-name-without-any-place-to-break-it-at.txt"
    letter.write_text("Dear server, this is not an image.")
    return Files(made, letter)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens the page of a server in a window of its own; at the end nothing else was asked, and no script failed."""
    asked: list[str] = []
    failed: list[str] = []
    allowed: list[str] = ["blob:"]
    contexts = []

    def opened(server: Serving, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, "locale": "en-GB", **options})
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        allowed.append(str(server.client.base_url))
        page.goto(str(server.client.base_url))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not [url for url in asked if not url.startswith(tuple(allowed))]
    assert not failed


@pytest.fixture(scope="module")
def target(shared_zone_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Target ``kubernetes``: two replicas that follow the alias, of a model that has no version yet."""
    with kube_target.started(tmp_path_factory.mktemp("kube"), shared_zone_settings) as target:
        yield target


@pytest.fixture
def deployed(target: Target) -> ModelVersion:
    """The version that is live, in one replica."""
    target.kubectl("scale", "deployment/serving", "--replicas=1")
    if (live := target.pinned()) is None or live != target.champion():
        version = target.version()
        target.deploy(version)
        live = version.version
    settled(target.cluster)
    return ModelVersion(model=kube_target.MODEL, version=live)
