"""The page, in a real browser, while what is around it changes: the model, the server, the API key."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
from browsing import Files, OpenPage, answered, faults, pick
from live_server import wait_until
from playwright.sync_api import expect
from serving_process import MODEL, Serving, Start, point_at, register

from pipeline import aliases, api_keys
from pipeline.aliases import Canary
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones


def test_it_waits_for_a_model_and_for_a_server(
    zones: Zones, zone_settings: Settings, start: Start, open_page: OpenPage, files: Files
) -> None:
    """Without a version it says so, and goes on by itself once there is one; the same while the server is away."""
    server = start(zone_settings)
    page = open_page(server)
    expect(page.locator("#state")).to_contain_text("No version of this model is live yet")
    version = register(zones, 1)
    point_at(zones, version)
    expect(page.locator("#state")).to_have_text("Live and ready.")
    server.kill()
    pick(page, files.images[0])
    expect(page.locator(".refused")).to_contain_text("The server does not answer.")
    expect(page.locator("#state")).to_contain_text("The server does not answer")
    start(zone_settings, PORT=str(server.client.base_url.port)).wait_for(version)
    expect(page.locator("#state")).to_have_text("Live and ready.")
    page.get_by_role("button", name="Ask again").click()
    answered(page, 1)
    expect(page.locator("#answers > li")).to_contain_text(version.version)


def test_it_says_when_a_challenger_answered(
    zones: Zones, zone_settings: Settings, start: Start, open_page: OpenPage, files: Files
) -> None:
    """An answer that came from a challenger is marked as such; the page knows of it before it looks again by itself."""
    champion, challenger = register(zones, 1), register(zones, 2)
    point_at(zones, champion)
    server = start(zone_settings)
    server.wait_for(champion)
    page = open_page(server)
    expect(page.locator("#state")).to_have_text("Live and ready.")
    pick(page, files.images[0])
    answered(page, 1)
    expect(page.locator(".badge")).to_have_count(0)
    tried = Canary(challenger=challenger.version, share=1, started_at=datetime.now(UTC))
    aliases.set_canary(zones.models, MODEL, aliases.CHAMPION, tried, reason="test")
    wait_until(lambda: server.status()["canary"] is not None)
    pick(page, files.images[0])
    answered(page, 2)
    expect(page.locator("#answers > li").first).to_contain_text("answered by the challenger")
    expect(page.locator("#origin")).to_contain_text(f"{challenger.version} answers 100 % of the callers")
    expect(page.locator("#origin")).to_contain_text(champion.version)


def test_it_asks_for_the_key_once(
    zone_settings: Settings, start: Start, open_page: OpenPage, files: Files, tmp_path: Path
) -> None:
    """Where a key is wanted, the page asks for it once, keeps it for the tab alone, and says when it is refused."""
    zones = open_zones(zone_settings)
    point_at(zones, register(zones, 1))
    good, path = [api_keys.new_key() for _ in range(2)], tmp_path / "keys"
    path.write_text(api_keys.written({"somebody": api_keys.digest_of_key(good[0])}))
    server = start(zone_settings, API_KEYS_FILE=str(path))
    page = open_page(server)
    dialog = page.get_by_role("dialog", name="This server asks for an API key")
    field = page.get_by_label("API key", exact=True)
    expect(field).to_be_focused()
    assert not faults(page)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    pick(page, files.images[0])  # whoever asks for an answer is asked again
    expect(field).to_be_focused()
    page.keyboard.type("wrong-key")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("did not accept that key")
    page.keyboard.type(good[0])
    page.keyboard.press("Enter")
    answered(page, 1)
    expect(page.locator(".refused")).to_have_count(0)
    expect(page.locator("#state")).to_have_text("Live and ready.")
    with page.expect_download() as download:
        page.get_by_role("link", name="Evaluation report").click()
    assert "<title>Evaluation</title>" in download.value.path().read_text()
    page.reload()
    expect(page.locator("#state")).to_have_text("Live and ready.")
    expect(dialog).to_be_hidden()
    assert page.evaluate("localStorage.length") == 0
    path.write_text(api_keys.written({"somebody": api_keys.digest_of_key(good[1])}))
    wait_until(lambda: bearer(server, good[1]).is_success)
    pick(page, files.images[0])
    expect(dialog).to_contain_text("did not accept that key")
    page.get_by_role("button", name="Not now").click()
    expect(page.locator(".refused")).to_contain_text("The key of this request is not one of this server's")
    page.get_by_role("button", name="Enter the API key").click()
    expect(dialog).to_be_visible()


def bearer(server: Serving, key: str) -> httpx.Response:
    """What the server says of its model to whoever has this key."""
    return server.client.get(f"/v2/models/{MODEL}", headers={"Authorization": f"Bearer {key}"})
