import re

import httpx
import pytest
from live_server import MODEL, Serve

from serving.page import SCRIPTS

FILES = ["/", "/static/page.css", "/static/icon.svg", *(f"/static/{name}" for name in SCRIPTS)]


@pytest.mark.parametrize("path", FILES)
def test_the_pages_files_are_served_under_a_strict_policy(client: httpx.Client, path: str) -> None:
    """Nothing inline, nothing from elsewhere, no guessing of types, no framing."""
    answer = client.get(path)
    assert answer.status_code == 200
    policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.head(path).headers["content-type"] == answer.headers["content-type"]


@pytest.mark.parametrize("path", FILES)
def test_the_page_names_no_other_host(client: httpx.Client, path: str) -> None:
    """No URL of a network, but for the names of XML's."""
    text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(?:https?:)?//[a-z]", text)
    assert "style=" not in text
    assert not re.search(r"\son[a-z]+=", text)


def test_what_the_page_refers_to_is_there(client: httpx.Client) -> None:
    """Its files and the API's description; and it names the model that is served."""
    page = client.get("/").text
    assert f'data-model="{MODEL}"' in page
    assert "{{" not in page
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert client.get("/" + path).status_code == 200
    for script in SCRIPTS:
        imported = re.findall(r'from "\./([^"]+)"', client.get(f"/static/{script}").text)
        assert set(imported) < set(SCRIPTS)


def test_the_page_needs_no_model(serve: Serve) -> None:
    """Before anything is registered it is shown all the same."""
    assert serve().get("/").status_code == 200


def test_the_page_is_no_part_of_the_api(client: httpx.Client) -> None:
    """OpenAPI describes what programs call."""
    assert not {"/", "/static/page.js"} & client.get("/openapi.json").json()["paths"].keys()
