"""A person in front of the Prefect UI and the server's own page, played by a real browser."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from browsing import drop
from e2e.conftest import CLASSES, HOST
from e2e.stack import MODEL, RESULTS, Stack
from playwright.sync_api import Browser, Page, Request, expect
from playwright.sync_api import Error as PlaywrightError

from pipeline import registry

PATIENCE_MS = 180_000
PRESSES = 3
SCHEMA_FIELD = ".schema-form-property"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window of its own, without cookies, that keeps a list of failed and foreign requests."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, ignore_https_errors=False)
    context.set_default_timeout(30_000)
    page = context.new_page()
    yield page
    context.close()


def log_in(page: Page, stack: Stack, host: str = HOST) -> None:
    """Open the Prefect UI under a name of this machine and give it the user and password."""
    page.goto(f"http://{host}:{stack.ports['prefect']}/")
    page.locator("input[type=password]").fill(":".join(stack.runs.login))
    page.get_by_role("button", name="Login").click()
    page.wait_for_url("**/dashboard")


def keep(page: Page, name: str) -> None:
    """A screenshot for a person to look at."""
    page.wait_for_timeout(1_000)  # what moves in comes to rest
    page.screenshot(path=RESULTS / f"{name}.png")


def open_form(page: Page, stack: Stack, flow: str) -> None:
    """The form of a deployment, by the links and buttons that lead to it."""
    page.goto(f"http://{HOST}:{stack.ports['prefect']}/deployments")
    page.get_by_role("link", name=flow, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").first.click()
    page.get_by_role("button", name="Submit").wait_for()


def choose_number(page: Page, label: str, value: int) -> None:
    """Fill a field of the form that may also be left empty."""
    field = page.locator(SCHEMA_FIELD, has=page.get_by_text(f"{label} (Optional)", exact=True)).last
    field.get_by_role("button", name="int", exact=True).click()
    field.locator("input").fill(str(value))


def submit(page: Page) -> str:
    """Start the run, open its page, and return its id.

    Where SQLite refused one of two writers at once, the page says that it failed, and a person presses again.
    """
    view = page.get_by_role("button", name="View run").first
    for _ in range(PRESSES):
        page.get_by_role("button", name="Submit").click()
        with suppress(PlaywrightError):
            view.wait_for(timeout=5_000)
            break
    view.dispatch_event("click")  # it moves while it comes in
    page.wait_for_url("**/runs/flow-run/*")
    return re.split(r"[?#]", page.url)[0].rpartition("/")[2]


def test_a_wrong_password_is_not_let_in(page: Page, stack: Stack) -> None:
    """Who gives another password stays at the login."""
    page.goto(f"{stack.ui}/")
    page.locator("input[type=password]").fill(f"{stack.runs.login[0]}:not-the-password")
    page.get_by_role("button", name="Login").click()
    page.wait_for_timeout(1_500)
    assert "/login" in page.url


def test_the_form_shows_ranges_choices_and_descriptions(page: Page, stack: Stack) -> None:
    """Every field of the form says what it is for, choices are offered, and a value out of range is refused."""
    log_in(page, stack)
    open_form(page, stack, "train")
    expect(page.get_by_text("Passes over the images", exact=False)).to_be_visible()
    page.get_by_role("button", name="small_resnet", exact=True).press("ArrowDown")
    expect(page.get_by_role("option", name="mobilenet_v3_small")).to_be_visible()
    page.keyboard.press("Escape")
    choose_number(page, "Epochs", 0)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(1_500)
    assert page.url.split("?")[0].endswith("/run"), "the run was started"


def test_a_run_is_started_watched_and_its_report_read(page: Page, stack: Stack, imported: str) -> None:
    """From the login to the report by clicks alone, under another name of the host: the run has what was typed."""
    assert imported == MODEL
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(_told(request)))
    log_in(page, stack)
    open_form(page, stack, "pipeline")
    choose_number(page, "Epochs", 5)
    keep(page, "form")
    run = submit(page)
    badge = page.locator(".state-badge").first
    expect(badge).to_have_text(re.compile("Running|Completed"), timeout=60_000)
    expect(page.get_by_text("Beginning flow run", exact=False).first).to_be_visible(timeout=60_000)
    expect(badge).to_have_text(re.compile("Completed|Failed|Crashed"), timeout=PATIENCE_MS)
    keep(page, "run")
    assert "Completed" in badge.inner_text(), stack.runs.said(run)
    assert stack.runs.api("GET", f"flow_runs/{run}")["parameters"]["training"]["epochs"] == 5
    page.get_by_text("Artifacts", exact=True).click()
    for artifact in (f"classes-{MODEL}", f"evaluation-{MODEL}", f"confusion-{MODEL}", f"report-{MODEL}"):
        expect(page.get_by_text(artifact).first).to_be_visible()
    keep(page, "artifacts")
    page.get_by_text(f"report-{MODEL}").first.click()
    link = page.locator("a[href^='http'][href$='/report']").first
    link.wait_for()
    named = re.fullmatch(
        rf"http://localhost:{stack.ports['inference']}/v2/models/{MODEL}/versions/([^/]+)/report",
        link.get_attribute("href") or "",
    )
    assert named
    dataset = registry.read_manifest(stack.stored.zone("models"), MODEL, named[1]).dataset
    with page.context.expect_page() as opened:
        link.click(modifiers=["Control"])
    report = opened.value
    report.wait_for_load_state()
    expect(report.get_by_role("heading", level=1)).to_contain_text("test images")
    assert dataset.version in report.content()
    keep(report, "report")
    assert not [each for each in failed if "ERR_ABORTED" not in each]


def test_the_confusion_matrix_is_seen(page: Page, stack: Stack, live: str) -> None:
    """The picture of the confusion matrix has pixels in the UI, and the table has a row for each class."""
    log_in(page, stack)
    open_artifact(page, stack, f"classes-{live}")
    expect(page.get_by_text(CLASSES[0]).first).to_be_visible()
    open_artifact(page, stack, f"confusion-{live}")
    picture = page.locator("img[src^='data:image']").first
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 100
    keep(page, "confusion")


def open_artifact(page: Page, stack: Stack, key: str) -> None:
    """The latest artifact under a key."""
    page.goto(f"http://{HOST}:{stack.ports['prefect']}/artifacts/key/{key}")
    page.locator("a[href*='/artifacts/artifact/']").first.click()


def test_the_ui_asks_nobody_else(page: Page, stack: Stack) -> None:
    """Neither the Prefect UI nor the server's page loads anything from the internet."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    log_in(page, stack)
    page.goto(f"http://{HOST}:{stack.ports['prefect']}/runs")
    page.wait_for_timeout(2_000)
    page.goto(f"http://{HOST}:{stack.ports['inference']}/")
    page.wait_for_timeout(1_000)
    ours = re.compile(rf"^(http://{re.escape(HOST)}:\d+/|data:|blob:)")
    assert [url for url in asked if not ours.match(url)] == []


def test_an_image_dropped_on_the_page_is_answered(page: Page, stack: Stack, live: str, images: Path) -> None:
    """The page says label, model version and dataset version of a dropped image, and leads to the report."""
    chosen = min((images / CLASSES[1]).iterdir())  # trousers are hard to take for anything else
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(f"http://{HOST}:{stack.ports['inference']}/")
    drop(page, chosen)
    expect(page.get_by_text(CLASSES[1]).first).to_be_visible()
    said = page.locator("body").inner_text()
    assert str(stack.version()) in said
    assert re.search(r"\b9\d(\.\d+)? ?%|0\.9\d|[5-8]\d(\.\d+)? ?%", said), said
    assert stack.serving()["dataset_version"] in said
    keep(page, "page")
    with page.expect_navigation():
        page.get_by_role("link", name=re.compile("report", re.IGNORECASE)).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("test images")
    assert heard == []
    assert live == MODEL


def test_what_is_no_image_is_told_on_the_page(page: Page, stack: Stack, live: str, tmp_path: Path) -> None:
    """A dropped text file is answered with a sentence, and an image after it is answered again."""
    page.goto(f"http://{HOST}:{stack.ports['inference']}/")
    (tmp_path / "letter.txt").write_text("not an image")
    drop(page, tmp_path / "letter.txt")
    expect(
        page.get_by_text(re.compile("not an image|no image|cannot be read|is not", re.IGNORECASE)).first
    ).to_be_visible()
    assert live


def _told(request: Request) -> str:
    return f"{request.url}: {request.failure}"
