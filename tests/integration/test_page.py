"""The page of the inference server, used by a real browser as people use it: by mouse, keyboard, phone, and by ear."""

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_models
from browsing import Files, OpenPage, answered, drop, faults, paste, pick
from playwright.sync_api import Route, expect
from serving_process import MODEL, Serving, point_at, register, started

from pipeline.settings import Settings
from pipeline.zones import open_zones

PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
DATASET = tiny_models.DATASET
NOT_AN_IMAGE = "The image cannot be used: not an image of a supported format"
AT_ONCE = 4
COUNTED_FETCH = """() => {
    const fetch = window.fetch;
    let under_way = window.most = 0;
    window.fetch = async (...asked) => {
        window.most = Math.max(window.most, ++under_way);
        try { return await fetch(...asked); } finally { under_way -= 1; }
    };
}"""


@pytest.fixture(scope="module")
def server(store_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a live version, for tests that change nothing about it."""
    settings = store_settings.model_copy(update={"store_url": f"s3://safelight-tests/{secrets.token_hex(6)}"})
    zones = open_zones(settings)
    version = register(zones, 1)
    point_at(zones, version)
    with started(settings, tmp_path_factory.mktemp("page") / "serving.log", {}) as server:
        server.wait_for(version)
        yield server


@pytest.mark.parametrize("bring", [drop, paste, pick])
def test_an_image_is_answered_however_it_comes(
    server: Serving, open_page: OpenPage, files: Files, bring: Callable[..., None]
) -> None:
    """Its card shows what the API answers: classes with their bars, versions, and how long it took."""
    page = open_page(server)
    bring(page, files.images[3])
    answered(page, 1)
    card = page.locator("#answers > li")
    said = server.client.post("/predict", content=files.images[3].read_bytes()).json()
    expect(card.get_by_role("heading", level=3)).to_contain_text(said["label"])
    meters = card.get_by_role("meter")
    assert meters.evaluate_all("all => all.map(each => each.value)") == [each["probability"] for each in said["top"]]
    expect(meters.first).to_have_accessible_name(said["label"])
    expect(card.get_by_role("img")).to_have_accessible_name("Preview of image-3.png")
    expect(card).to_contain_text(f"model {said['model_version']}")
    expect(card).to_contain_text(f"trained on dataset {DATASET.version}")
    expect(card).to_contain_text(re.compile(r"\d ms"))
    expect(page.locator("#news")).to_have_text(re.compile(rf"^image-3.png: {said['label']}, [\d.]+ %$"))


def test_many_images_are_sent_in_turns(server: Serving, open_page: OpenPage, files: Files) -> None:
    """Of seventy images and a letter, a few are under way at a time; each is answered in its place, or told why not."""
    page = open_page(server)
    page.evaluate(COUNTED_FETCH)
    drop(page, *files.images[:69], files.letter, files.images[69])
    answered(page, 71)
    names = page.locator("#answers figcaption").evaluate_all("all => all.map(each => each.firstChild.textContent)")
    assert names == [path.name for path in (*files.images[:69], files.letter, files.images[69])]
    assert 1 < page.evaluate("window.most") <= AT_ONCE
    expect(page.locator(".refused")).to_have_count(1)
    expect(page.locator(".refused")).to_contain_text(NOT_AN_IMAGE)
    expect(page.locator("#news")).to_have_text("70 of 71 images answered, 1 without an answer")
    assert page.locator("#answers img").count() == 70
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#answers > li")).to_have_count(0)
    pick(page, files.images[0])
    answered(page, 1)
    expect(page.locator("#count")).to_have_text("1 of 1 image answered")


def test_a_folder_is_dropped_with_all_that_is_in_it(
    server: Serving, open_page: OpenPage, files: Files, tmp_path: Path
) -> None:
    """A folder dragged in from the system's own file manager is looked through; hidden files are left out."""
    for name in ("one.png", "inside/two.png", "inside/.hidden.png"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(files.images[0].read_bytes())
    page = open_page(server)
    box = page.locator("#drop").bounding_box()
    assert box
    carried = {"items": [], "files": [str(tmp_path / "folder")], "dragOperationsMask": 1}
    drag = {"x": box["x"] + 9, "y": box["y"] + 9, "data": carried}
    devices = page.context.new_cdp_session(page)
    for event in ("dragEnter", "dragOver", "drop"):
        devices.send("Input.dispatchDragEvent", {"type": event, **drag})
    answered(page, 2)
    expect(page.locator("#answers")).to_contain_text("two.png")
    paste(page)
    expect(page.locator("#notice")).to_have_text("There was no image file in that.")


def test_it_says_where_answers_come_from(server: Serving, open_page: OpenPage) -> None:
    """Version, dataset, accuracy, classes and the way to the report, as the API has them."""
    page = open_page(server)
    status = server.status()
    origin = page.get_by_role("region", name="Where the answers come from")
    for told in (status["version"], f"{DATASET.dataset} {DATASET.version}", "90.0 %"):
        expect(origin).to_contain_text(told)
    origin.locator("summary").first.click()
    expect(origin.get_by_text(DATASET.classes[1])).to_be_visible()
    origin.get_by_text("Registered versions").click()
    expect(origin.get_by_role("link", name=status["version"])).to_have_attribute("href", status["report"][1:])
    page.get_by_role("link", name="Evaluation report").click()
    page.wait_for_url("**" + status["report"])
    assert page.title() == "Evaluation"


def test_everything_works_by_keyboard(server: Serving, open_page: OpenPage, files: Files) -> None:
    """Tab reaches each control in the order in which it is seen, with a ring around it; Enter and Space work them."""
    page = open_page(server)
    page.on("filechooser", lambda chooser: chooser.set_files(files.images[0]))
    expect(page.locator("#state")).to_have_text("Live and ready.")
    page.keyboard.press("Tab")
    for count, key in enumerate(("Enter", "Space"), 1):
        expect(page.get_by_label("Choose images")).to_be_focused()
        assert page.locator("label[for=pick]").evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
        page.keyboard.press(key)
        answered(page, count)
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        focus = page.locator(":focus")
        assert focus.evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
        reached.append(focus.inner_text())
    assert reached == ["Clear", str(len(DATASET.classes)), "Registered versions", "Evaluation report", "API"]
    page.get_by_role("button", name="Clear").press("Space")
    expect(page.locator("#answers > li")).to_have_count(0)
    expect(page.get_by_label("Choose images")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desk", "phone"])
def test_axe_finds_nothing(server: Serving, open_page: OpenPage, files: Files, scheme: str, device: str) -> None:
    """No rule of axe-core's is broken, contrast among them, before and after images were sent."""
    page = open_page(server, color_scheme=scheme, **(PHONE if device == "phone" else {}), reduced_motion="reduce")
    expect(page.locator("#state")).to_have_text("Live and ready.")
    assert not faults(page)
    pick(page, files.images[0], files.letter)
    answered(page, 2)
    page.locator("#origin summary").click()
    assert not faults(page)
    assert page.locator("#answers > li").first.evaluate("card => getComputedStyle(card).animationName") == "none"


def test_a_phone_never_scrolls_sideways(server: Serving, open_page: OpenPage, files: Files) -> None:
    """At 320 pixels, with long names, everything fits; what is touched is large enough, and the camera is offered."""
    page = open_page(server, **PHONE)
    pick(page, files.images[0], files.letter)
    answered(page, 2)
    page.locator("#origin summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    camera = page.get_by_label("Take a photo")
    assert camera.get_attribute("capture") == "environment"
    for control in (page.locator("label[for=pick]"), page.locator("label[for=camera]")):
        box = control.bounding_box()
        assert box
        assert box["height"] >= 44
    camera.set_input_files(files.images[1])
    answered(page, 3)


def test_what_a_screen_reader_is_told(server: Serving, open_page: OpenPage, files: Files) -> None:
    """The tree of roles and names: landmarks, headings, a list of answers with a meter for each class."""
    page = open_page(server)
    pick(page, files.images[3])
    answered(page, 1)
    best = server.client.post("/predict", content=files.images[3].read_bytes()).json()["label"]
    expect(page.locator("body")).to_match_aria_snapshot(f"""
        - banner:
          - heading "{MODEL}" [level=1]
          - status: Live and ready.
        - main:
          - region "Ask about images":
            - heading "Ask about images" [level=2]
            - button "Choose images"
            - button "Clear"
            - status: /image-3.png/
            - heading "Answers" [level=2]
            - list "Answers":
              - listitem:
                - figure:
                  - img "Preview of image-3.png"
                - heading /{best} [\\d.]+ %/ [level=3]
                - list "Most probable classes":
                  - listitem:
                    - meter "{best}"
          - region "Where the answers come from":
            - heading "Where the answers come from" [level=2]
            - term: Model version
            - paragraph:
              - link "Evaluation report"
              - link "API"
    """)


def test_a_busy_server_is_asked_again(server: Serving, open_page: OpenPage, files: Files) -> None:
    """Told to come back later, the page does, and the card says meanwhile why it waits."""
    page = open_page(server)
    refusals = iter([{"detail": "Too many are waiting."}])

    def sometimes(route: Route) -> None:
        refusal = next(refusals, None)
        route.fulfill(status=503, headers={"Retry-After": "1"}, json=refusal) if refusal else route.continue_()

    page.route("**/predict", sometimes)
    pick(page, files.images[0])
    expect(page.locator("#answers > li")).to_contain_text("Too many are waiting. Asking again in 1 second.")
    answered(page, 1)
    expect(page.locator(".refused")).to_have_count(0)
