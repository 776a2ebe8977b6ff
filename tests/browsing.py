"""A real browser, and what a person does with images in it."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, JSHandle, Page, expect, sync_playwright

OpenPage = Callable[..., Page]

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
TRANSFER = """files => {
    const transfer = new DataTransfer();
    for (const [bytes, name] of files) {
        const type = name.endsWith("png") ? "image/png" : "";
        transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
    }
    return transfer;
}"""


@dataclass(frozen=True)
class Files:
    """What a person has on the disk."""

    images: Sequence[Path]
    letter: Path


@contextmanager
def chromium(rules: str) -> Iterator[Browser]:
    """Chromium as people have it; ``rules`` say which names it can look up."""
    found = shutil.which("chromium")
    if not found:
        pytest.skip("chromium is not installed")
    os.environ.pop("DISPLAY", None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=[*FLAGS, f"--host-resolver-rules={rules}"], timeout=60_000
        )
        yield browser
        browser.close()


def drop(page: Page, *files: Path) -> None:
    """Drop files on the page as a mouse would: with drag events that carry them."""
    carried = _transfer(page, files)
    for event in ("dragenter", "dragover", "drop"):
        page.locator("#drop").dispatch_event(event, {"dataTransfer": carried})


def paste(page: Page, *files: Path) -> None:
    """Paste files, as they come from another program's clipboard."""
    carried = _transfer(page, files)
    page.evaluate(
        "clipboardData => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true}))",
        carried,
    )


def pick(page: Page, *files: Path) -> None:
    """Choose files in the system's dialog."""
    page.get_by_label("Choose images").set_input_files(files)


def answered(page: Page, count: int) -> None:
    """Return when so many cards have come to rest."""
    expect(page.locator("#answers > li")).to_have_count(count)
    expect(page.locator(".waits")).to_have_count(0)


def faults(page: Page) -> str:
    """What axe-core finds wrong, in words; empty where it finds nothing."""
    found = Axe().run(page)
    return str(found.generate_report()) if found.violations_count else ""


def _transfer(page: Page, files: Sequence[Path]) -> JSHandle:
    return page.evaluate_handle(TRANSFER, [[list(file.read_bytes()), file.name] for file in files])
