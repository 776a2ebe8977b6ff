import base64
from pathlib import Path

import httpx
import pytest
import tiny_models
from live_server import MODEL, Registry, Serve, wait_until

from pipeline import api_keys, images
from pipeline.errors import InvalidSettings
from serving.api_keys import ApiKeys, needs_key
from serving.errors import Unauthorized

PNG = images.encode_png(tiny_models.picture(5))
KEY = "k" * 32
OTHER = "o" * 32


def key_file(folder: Path, keys: dict[str, str] | None) -> Path:
    """A file of keys, by name."""
    path = folder / "keys"
    digests = None if keys is None else {name: api_keys.digest_of_key(key) for name, key in keys.items()}
    path.write_text(api_keys.written(digests))
    return path


def basic(user: str, key: str) -> str:
    """An Authorization header as a browser makes it."""
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", f"Bearer {KEY}"),
        ("authorization", f"bearer  {KEY} "),
        ("authorization", basic("", KEY)),
        ("authorization", basic("anybody", KEY)),
        ("x-api-key", KEY),
    ],
)
def test_a_good_key_names_its_caller(tmp_path: Path, header: tuple[str, str]) -> None:
    """Each way to send one is understood, at the first time and when it is known already."""
    keys = ApiKeys(key_file(tmp_path, {"lab": OTHER, "phone": KEY}))
    sent = [(b"host", b"x"), (header[0].encode(), header[1].encode())]
    assert [keys.caller(sent) for _ in range(2)] == ["phone"] * 2


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", f"Bearer {KEY}x"),
        ("authorization", "Bearer"),
        ("authorization", f"Digest {KEY}"),
        ("authorization", "Basic ***"),
        ("authorization", basic(KEY, "")),
        ("x-api-key", ""),
        ("x-api-key", api_keys.digest_of_key(KEY)),
        ("cookie", KEY),
    ],
)
def test_everything_else_is_refused(tmp_path: Path, header: tuple[str, str]) -> None:
    """A wrong key, another scheme, and what stands in the file itself open nothing."""
    keys = ApiKeys(key_file(tmp_path, {"phone": KEY}))
    for _ in range(2):
        with pytest.raises(Unauthorized):
            keys.caller([(header[0].encode(), header[1].encode())])


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    """No key is good; only the word for it, or no file at all, asks for none."""
    with pytest.raises(Unauthorized):
        ApiKeys(key_file(tmp_path, {})).caller([(b"x-api-key", KEY.encode())])
    assert ApiKeys(key_file(tmp_path, None)).caller([]) is None
    assert ApiKeys(None).caller([]) is None


def test_keys_are_rotated_without_a_restart(tmp_path: Path) -> None:
    """A new key is good, and an old one bad, as soon as the file was looked at; one that is broken changes nothing."""
    path = key_file(tmp_path, {"phone": KEY})
    keys = ApiKeys(path)
    old, new = [(b"x-api-key", KEY.encode())], [(b"x-api-key", OTHER.encode())]
    assert keys.caller(old) == "phone"
    key_file(tmp_path, {"phone": OTHER, "lab": "l" * 32})
    keys.look()
    assert keys.caller(new) == "phone"
    with pytest.raises(Unauthorized):
        keys.caller(old)
    for broken in (lambda: path.write_text("half a li"), path.unlink):
        broken()
        keys.look()
        assert keys.caller(new) == "phone"
    key_file(tmp_path, {"phone": KEY})
    keys.look()
    assert keys.caller(old) == "phone"


def test_a_file_that_cannot_be_read_keeps_the_server_from_starting(tmp_path: Path) -> None:
    """One sentence names the variable, the file and what is wrong."""
    with pytest.raises(InvalidSettings, match=r"^SAFELIGHT_SERVING_API_KEYS_FILE: .*No such file"):
        ApiKeys(tmp_path / "none")
    (tmp_path / "keys").write_text("phone secret\n")
    with pytest.raises(InvalidSettings, match=r"keys, line 1: not a name"):
        ApiKeys(tmp_path / "keys")


def test_accepted_headers_are_not_kept_for_ever(tmp_path: Path) -> None:
    """However many ways there are to write the same key, memory stays bounded."""
    keys = ApiKeys(key_file(tmp_path, {"phone": KEY}))
    for number in range(3000):
        assert keys.caller([(b"authorization", basic(str(number), KEY).encode())]) == "phone"
    assert len(keys._accepted) <= 1024  # noqa: SLF001 - nothing else shows it


def test_what_is_open_is_known() -> None:
    """Health, the page, its files, the documentation and metrics; nothing that tells of images or answers."""
    for path in ("/", "/static/page.js", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/metrics"):
        assert not needs_key(path)
    for path in ("/predict", f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/infer", "/v2", "/v2/health", "//", "/nothing"):
        assert needs_key(path)


@pytest.fixture
def locked(models: Registry, serve: Serve, tmp_path: Path) -> httpx.Client:
    """A client of a server that asks for a key."""
    models.point_at(models.register(1))
    client = serve(api_keys_file=key_file(tmp_path, {"phone": KEY}))
    wait_until(lambda: client.get("/v2/health/ready").is_success)
    return client


def test_every_way_to_a_prediction_asks_for_the_key(locked: httpx.Client) -> None:
    """Plain, as a form, and what tells of the model: 401 without, with the challenge; answered with it."""
    asked = [
        lambda headers: locked.post("/predict", content=PNG, headers=headers),
        lambda headers: locked.post("/predict", files={"f": ("a", PNG)}, headers=headers),
        lambda headers: locked.get(f"/v2/models/{MODEL}", headers=headers),
        lambda headers: locked.get(locked.get(f"/v2/models/{MODEL}", headers=GOOD).json()["report"], headers=headers),
    ]
    for ask in asked:
        for bad in ({}, {"X-API-Key": "wrong"}):
            refused = ask(bad)
            assert refused.status_code == 401
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.headers["www-authenticate"] == 'Bearer realm="safelight"'
            assert "X-API-Key" in refused.json()["detail"]
        assert ask(GOOD).status_code == 200
    assert locked.get("/").status_code == locked.get("/docs").status_code == 200
    assert 'reason="unauthorized"} 8' in locked.get("/metrics").text


GOOD = {"X-API-Key": KEY}


def test_a_browser_that_follows_a_link_asks_its_user(locked: httpx.Client) -> None:
    """A navigation is challenged with a scheme that browsers know, and answered with what they then send."""
    link = {"Sec-Fetch-Mode": "navigate"}
    refused = locked.get(f"/v2/models/{MODEL}", headers=link)
    assert refused.headers["www-authenticate"] == 'Basic realm="safelight"'
    assert locked.get(f"/v2/models/{MODEL}", headers=link, auth=("", KEY)).status_code == 200


def test_the_document_says_which_operations_ask_for_a_key(locked: httpx.Client, client: httpx.Client) -> None:
    """Those that need one name both ways to send it; a server without keys names none."""
    document = locked.get("/openapi.json").json()
    assert document["components"]["securitySchemes"].keys() == {"X-API-Key", "Bearer"}
    for path, operations in document["paths"].items():
        asks = locked.get(path.replace("{name}", MODEL).replace("{version}", "x")).status_code == 401
        for operation in operations.values():
            assert operation.get("security", []) == ([{"X-API-Key": []}, {"Bearer": []}] if asks else [])
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_no_page_elsewhere_may_ask(client: httpx.Client) -> None:
    """Without the setting, no answer has a header that would let a page of another origin read it."""
    elsewhere = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        client.post("/predict", content=PNG, headers=elsewhere),
        client.options("/predict", headers=elsewhere),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.status_code == 405


def test_a_named_origin_may_ask(models: Registry, serve: Serve, tmp_path: Path) -> None:
    """Its pages may send an image and a key, and read the answer and the problems; others get a problem."""
    models.point_at(models.register(1))
    keys = key_file(tmp_path, {"phone": KEY})
    client = serve(allowed_origins="https://shop.example, https://lab.example:8443", api_keys_file=keys)
    wait_until(lambda: client.get("/v2/health/ready").is_success)
    here = {"Origin": "https://lab.example:8443"}
    leave = here | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    assert client.options("/predict", headers=leave).headers["access-control-allow-origin"] == here["Origin"]
    for headers, status in ((here, 401), (here | GOOD, 200)):
        answer = client.post("/predict", content=PNG, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, here["Origin"])
    refused = client.options("/predict", headers=leave | {"Origin": "https://elsewhere.example"})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/predict", "/v2/health/live", "/metrics", "/nothing"])
def test_every_answer_has_the_security_headers(client: httpx.Client, path: str) -> None:
    """No sniffing, no referrer, no frame; once each."""
    headers = client.get(path).headers
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert headers.get_list("referrer-policy") == ["no-referrer"]
    assert headers.get_list("x-frame-options") == ["DENY"]
    assert "server" not in headers


def test_a_real_server_follows_its_file(locked: httpx.Client, tmp_path: Path) -> None:
    """A key that is taken back is refused a moment later, and one that was added is good."""
    key_file(tmp_path, {"lab": OTHER})
    wait_until(lambda: locked.get(f"/v2/models/{MODEL}", headers=GOOD).status_code == 401)
    assert locked.post("/predict", content=PNG, headers={"X-API-Key": OTHER}).status_code == 200
    key_file(tmp_path, None)
    wait_until(lambda: locked.post("/predict", content=PNG).status_code == 200)
