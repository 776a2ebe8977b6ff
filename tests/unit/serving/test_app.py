import io
import json
import re
import socket
import struct
import zlib
from collections.abc import Iterator

import httpx
import pytest
import tiny_models
from jsonschema import Draft202012Validator
from live_server import MODEL, Registry, Serve, wait_until
from PIL import Image

from pipeline import images

SAME = {"X-Request-Id": "same"}
PNG = images.encode_png(tiny_models.picture(5))


def is_problem(answer: httpx.Response, status: int) -> str:
    """Assert that ``answer`` is a problem as RFC 9457 defines one; its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail", "error"}
    assert problem["error"] == problem["detail"]
    assert problem["status"] == status
    assert "\n" not in problem["detail"]
    return str(problem["detail"])


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header promises ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(image_format: str, mode: str = "RGB") -> bytes:
    """An image in another format or mode, by Pillow."""
    file = io.BytesIO()
    Image.fromarray(tiny_models.picture(5)).convert(mode).save(file, image_format)
    return file.getvalue()


def test_a_raw_body_is_answered(client: httpx.Client) -> None:
    """An image sent as it is comes back as one prediction, whatever its Content-Type."""
    for headers in ({}, {"Content-Type": "image/png"}, {"Content-Type": "text/plain"}):
        answer = client.post("/predict", content=PNG, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["label"] in tiny_models.DATASET.classes


def test_a_form_with_one_file_is_answered_like_a_raw_body(client: httpx.Client) -> None:
    """Multipart or not makes no difference to one image."""
    form = client.post("/predict", files={"anything": ("a.png", PNG)}, headers=SAME)
    assert form.content == client.post("/predict", content=PNG, headers=SAME).content


def test_a_form_with_several_files_is_answered_in_order(client: httpx.Client) -> None:
    """Several files come back as a list of predictions, each as if it had been sent alone."""
    sent = [images.encode_png(tiny_models.picture(seed)) for seed in range(3)]
    answer = client.post("/predict", files=[("image", ("a.png", each)) for each in sent], headers=SAME).json()
    alone = [client.post("/predict", content=each, headers=SAME).json() for each in sent]
    assert answer == {"predictions": alone}


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_format_that_preparation_reads_is_served(client: httpx.Client, image_format: str) -> None:
    """One decoder serves both."""
    assert client.post("/predict", content=saved(image_format)).status_code == 200


BAD_IMAGES = {
    "text": b"hello",
    "html": b"<html></html>",
    "noise": bytes(range(256)) * 400,
    "truncated PNG": PNG[: len(PNG) // 2],
    "truncated JPEG": saved("JPEG")[:200],
    "header only": PNG[:33],
    "bomb": bomb(20_000, 20_000),
    "wide bomb": bomb(2**31 - 1, 1),
    "zero size": bomb(0, 5),
    "HEIC": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1",
    "JSON": b'{"inputs": []}',
    "form": b"a=b&c=d",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_what_is_no_image_is_a_422(client: httpx.Client, name: str) -> None:
    """Bytes that are not an image we read are refused with the decoder's reason, raw and in a form."""
    assert is_problem(client.post("/predict", content=BAD_IMAGES[name]), 422).startswith("The image cannot be used: ")
    is_problem(client.post("/predict", files={"f": ("x", BAD_IMAGES[name])}), 422)


def test_one_bad_image_among_several_is_named(client: httpx.Client) -> None:
    """The problem says which of the files it was."""
    files = [("f", ("good.png", PNG)), ("f", ("bad.png", b"text"))]
    assert "Image 2 of 2 ('bad.png')" in is_problem(client.post("/predict", files=files), 422)


def test_an_empty_body_is_a_400(client: httpx.Client) -> None:
    """Nothing sent, nothing classified."""
    is_problem(client.post("/predict"), 400)
    is_problem(client.post("/predict", headers={"Content-Type": "image/png"}, content=b""), 400)


def test_an_empty_file_is_a_422(client: httpx.Client) -> None:
    """A form with an empty file in it is answered like any bad image."""
    is_problem(client.post("/predict", files={"f": ("a.png", b"")}), 422)


@pytest.mark.parametrize("body", [b"--x\r\nno header", b"garbage", b"--x--\r\n", b"--x\r\nA: b\r\n\r\n1\r\n--x--\r\n"])
def test_a_broken_form_is_a_400(client: httpx.Client, body: bytes) -> None:
    """Multipart that cannot be parsed, or holds no file, is the client's mistake."""
    is_problem(client.post("/predict", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}), 400)


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "multipart/mixed; boundary=x"}, {"Content-Encoding": "gzip", "Content-Type": "image/png"}],
)
def test_a_body_that_is_certainly_no_image_is_a_415(client: httpx.Client, headers: dict[str, str]) -> None:
    """Other multipart types and compressed bodies are refused by name."""
    is_problem(client.post("/predict", content=PNG, headers=headers), 415)


def chunks(megabytes: int) -> Iterator[bytes]:
    """A body of unknown length."""
    for _ in range(megabytes):
        yield bytes(1 << 20)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("megabytes", [3, 7])
def test_a_body_over_the_limit_is_a_413(models: Registry, serve: Serve, megabytes: int, *, streamed: bool) -> None:
    """Declared or not, a body over the limit is refused while it is read, and the client gets to read why."""
    models.point_at(models.register(1))
    client = serve(max_body_mb=2)
    body = chunks(megabytes) if streamed else bytes(megabytes << 20)
    assert "2 MiB" in is_problem(client.post("/predict", content=body), 413)
    assert client.get("/v2/health/live").is_success


def test_a_declared_excess_is_refused_before_it_is_sent(client: httpx.Client) -> None:
    """A Content-Length over the limit is answered at once."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as waiting:
        waiting.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert waiting.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(client: httpx.Client) -> None:
    """A request that breaks off is no error of the server."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as leaving:
        leaving.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
    assert client.post("/predict", content=PNG).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/predict", 405), ("PUT", "/predict", 405), ("DELETE", "/docs", 405)],
)
def test_the_frameworks_own_refusals_are_problems_too(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    """Unknown paths and methods answer in the same shape."""
    answer = client.request(method, path)
    is_problem(answer, status)
    assert status != 405 or answer.headers["allow"]


def test_without_a_model_it_is_live_but_not_ready(serve: Serve) -> None:
    """Before a first version there is a 503 that says when to come again; health and status answer."""
    client = serve()
    assert client.get("/v2/health/live").json() == {"live": True}
    for answer in (client.get("/v2/health/ready"), client.post("/predict", content=PNG)):
        assert "No version of model 'shapes' is live yet." in is_problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
    wait_until(lambda: client.get(f"/v2/models/{MODEL}").json()["swap_error"] is not None)
    status = client.get(f"/v2/models/{MODEL}").json()
    assert (status["ready"], status["version"], status["alias"]) == (False, None, "champion")
    assert "no alias" in status["swap_error"]["reason"]


def test_the_status_tells_where_the_live_version_comes_from(client: httpx.Client) -> None:
    """Version, dataset version, classes and metrics are those of the manifest."""
    status = client.get(f"/v2/models/{MODEL}").json()
    assert status["ready"] is True
    assert status["version"] == client.post("/predict", content=PNG).json()["model_version"]
    assert status["dataset_version"] == tiny_models.DATASET.version
    assert status["classes"] == list(tiny_models.DATASET.classes)
    assert status["metrics"]["accuracy"] == 0.9
    assert status["swap_error"] is None
    assert client.get(status["report"]).content == tiny_models.REPORT


def test_another_model_is_not_served(client: httpx.Client) -> None:
    """A question about another model is a 404 that names the one that is served."""
    assert "'shapes'" in is_problem(client.get("/v2/models/cats"), 404)
    is_problem(client.get("/v2/models/cats/versions/20261122T000100Z-00000000/report"), 404)


def test_the_report_of_another_model_is_shown(models: Registry, serve: Serve) -> None:
    """A run links its report, whichever model the server behind the link answers with."""
    other = tiny_models.register(models.checkpoints, models.models, "cats", 1)
    assert serve().get(f"/v2/models/cats/versions/{other.version}/report").content == tiny_models.REPORT


def test_a_report_can_fetch_nothing(client: httpx.Client) -> None:
    """Its policy confines it to what is in it, apart from the server's origin."""
    report = client.get(client.get(f"/v2/models/{MODEL}").json()["report"])
    assert report.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.partition(" ")[::2] for part in report.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["sandbox"] == "allow-scripts"
    assert not any("*" in sources or ":" in sources.replace("data:", "") for sources in policy.values())
    assert report.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("version", ["20261122T000100Z-00000000", "1", "..", "aliases"])
def test_a_version_that_is_not_there_has_no_report(client: httpx.Client, version: str) -> None:
    """Unknown versions, and names that are none, are a 404."""
    is_problem(client.get(f"/v2/models/{MODEL}/versions/{version}/report"), 404)


def test_an_altered_report_is_not_shown(models: Registry, serve: Serve) -> None:
    """Bytes that are not those of the manifest are a 502, whether or not the version is live."""
    version = models.register(1).version
    models.models.put(f"{MODEL}/{version}/report.html", b"<script>")
    assert "was altered" in is_problem(serve().get(f"/v2/models/{MODEL}/versions/{version}/report"), 502)


def test_the_docs_need_no_internet(client: httpx.Client) -> None:
    """The page of /docs loads its files from this server alone, and they are there."""
    page = client.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", page.text)
    for path in re.findall(r"(?:src|href)=[\"'](/[^\"']+)", page.text):
        assert client.get(path).status_code == 200


def test_openapi_describes_what_is_answered(client: httpx.Client) -> None:
    """Answers and problems fit the schemas that the document gives them, and so do its own examples."""
    document = client.get("/openapi.json").json()

    def check(value: object, pointer: str) -> None:
        Draft202012Validator(document | {"$ref": f"#{pointer}"}).validate(value)

    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            check(example, f"/components/schemas/{name}")
    check(client.post("/predict", content=PNG).json(), "/components/schemas/Prediction")
    several = client.post("/predict", files=[("f", ("a", PNG)), ("f", ("b", PNG))]).json()
    check(several, "/components/schemas/Predictions")
    check(client.get(f"/v2/models/{MODEL}").json(), "/components/schemas/ModelStatus")
    check(client.post("/predict", content=b"x").json(), "/components/schemas/Problem")


def test_openapi_lists_every_status_of_predict(client: httpx.Client) -> None:
    """The statuses that a client of /predict can meet are documented, all problems by their media type."""
    document = client.get("/openapi.json").json()
    responses = document["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "413", "415", "422", "503"} <= responses.keys()
    for status, response in responses.items():
        expected = "application/json" if status == "200" else "application/problem+json"
        assert list(response["content"]) == [expected]
    assert "HTTPValidationError" not in json.dumps(document["paths"])


def test_openapi_describes_both_kinds_of_body(client: httpx.Client) -> None:
    """Raw images and forms."""
    content = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"image/png", "image/jpeg", "application/octet-stream", "multipart/form-data"} <= content.keys()
