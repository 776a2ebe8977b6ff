import base64
from typing import Any

import httpx
import numpy as np
import tiny_models
from jsonschema import Draft202012Validator
from live_server import MODEL, Registry, Serve, wait_until

from pipeline import images
from pipeline.onnx_model import OnnxModel
from serving.open_inference_tensors import bytes_from_binary

PICTURES = [tiny_models.picture(seed) for seed in range(3)]
PNGS = [images.encode_png(each) for each in PICTURES]
CLASSES = tiny_models.DATASET.classes
EXPECTED = OnnxModel(tiny_models.linear_onnx(tiny_models.DATASET, 1)).probabilities(np.stack(PICTURES))
INFER = f"/v2/models/{MODEL}/infer"
JSON_LENGTH = "Inference-Header-Content-Length"


def as_json(**other: Any) -> dict[str, Any]:
    """A request about all pictures in JSON."""
    texts = [base64.b64encode(each).decode() for each in PNGS]
    return {"inputs": [{"name": "image", "shape": [3], "datatype": "BYTES", "data": texts}]} | other


def outputs(answer: httpx.Response) -> dict[str, Any]:
    """The data of an answer in JSON, by the outputs' names."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def refusal(answer: httpx.Response, status: int) -> str:
    """The sentence of a problem, where clients of the protocol look for it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"] == answer.json()["detail"]
    return str(answer.json()["error"])


def test_the_server_says_what_it_is(client: httpx.Client) -> None:
    """Name, version and the extensions that it speaks, with and without the last slash."""
    said = client.get("/v2").json()
    assert said == client.get("/v2/").json()
    assert said["name"] == "safelight"
    assert set(said["extensions"]) == {"binary_tensor_data", "classification"}


def test_metadata_describe_the_tensors(client: httpx.Client) -> None:
    """The protocol's members tell inputs and outputs as they are, beside what is known of the live version."""
    said = client.get(f"/v2/models/{MODEL}").json()
    assert (said["name"], said["versions"], said["platform"]) == (MODEL, [said["version"]], "onnx_onnxv1")
    assert said["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, 12, 10, 3]},
    ]
    assert said["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "probability", "datatype": "FP32", "shape": [-1]},
    ]
    assert client.get(f"/v2/models/{MODEL}/versions/{said['version']}").json() == said


def test_metadata_tell_the_lineage(client: httpx.Client) -> None:
    """From the dataset version by the training run to the live version, and how good it is."""
    said = client.get(f"/v2/models/{MODEL}").json()
    run = tiny_models.training_run(1)
    assert (said["dataset"], said["dataset_version"]) == (run.dataset.dataset, run.dataset.version)
    assert (said["training_run"], said["code_revision"], said["parents"]) == (run.id, "test", [])
    assert said["metrics"]["accuracy"] == 0.9


def test_images_in_json_are_answered(client: httpx.Client) -> None:
    """Each image has its row, and the answer says which version and dataset version it is of."""
    answer = client.post(INFER, json=as_json(id="42"))
    found = outputs(answer)
    np.testing.assert_allclose(np.reshape(found["probabilities"], (3, 3)), EXPECTED, atol=1e-6)
    assert found["label"] == [CLASSES[best] for best in EXPECTED.argmax(axis=1)]
    np.testing.assert_allclose(found["probability"], EXPECTED.max(axis=1), atol=1e-6)
    said = answer.json()
    assert (said["id"], said["model_name"]) == ("42", MODEL)
    assert said["model_version"] == client.get(f"/v2/models/{MODEL}").json()["version"]
    assert said["parameters"]["dataset_version"] == tiny_models.DATASET.version


def test_pixels_are_answered_like_the_images_that_they_are_of(client: httpx.Client) -> None:
    """In JSON, nested, and as binary data."""
    pixels = np.stack(PICTURES)
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8"}
    expected = outputs(client.post(INFER, json=as_json()))
    assert outputs(client.post(INFER, json={"inputs": [tensor | {"data": pixels.tolist()}]})) == expected
    text = httpx.Request(
        "POST", "http://x", json={"inputs": [tensor | {"parameters": {"binary_data_size": pixels.size}}]}
    ).content
    headers = {JSON_LENGTH: str(len(text))}
    assert outputs(client.post(INFER, content=text + pixels.tobytes(), headers=headers)) == expected


def test_binary_data_come_back_where_they_are_asked_for(client: httpx.Client) -> None:
    """The header tells where the JSON ends, and each output's size where its own data do."""
    answer = client.post(INFER, json=as_json(parameters={"binary_data_output": True}))
    assert answer.headers["content-type"] == "application/octet-stream"
    rest = answer.content[int(answer.headers[JSON_LENGTH]) :]
    np.testing.assert_allclose(np.frombuffer(rest[:36], "<f4").reshape(3, 3), EXPECTED, atol=1e-6)
    labels = bytes_from_binary(rest[36:-12], 3, "label")
    assert labels == [CLASSES[best].encode() for best in EXPECTED.argmax(axis=1)]


def test_a_body_that_is_an_image_is_answered(client: httpx.Client) -> None:
    """With a JSON length of 0 the body is the image itself."""
    answer = client.post(INFER, content=PNGS[0], headers={JSON_LENGTH: "0"})
    assert answer.status_code == 200
    np.testing.assert_allclose(np.frombuffer(answer.content[-4:], "<f4"), EXPECTED[0].max(), atol=1e-6)


def test_a_request_without_an_id_gets_one(client: httpx.Client) -> None:
    """It is the HTTP request's."""
    assert client.post(INFER, json=as_json()).json()["id"]


def test_a_pinned_version_answers_or_nobody(models: Registry, serve: Serve) -> None:
    """Under its own name the live version answers, says so and is ready; another one does not, registered or not."""
    old, live = models.register(1), models.register(2)
    models.point_at(live)
    client = serve()
    wait_until(lambda: client.get("/v2/health/ready").is_success)
    path = f"/v2/models/{MODEL}/versions"
    assert client.post(f"{path}/{live.version}/infer", json=as_json()).json()["model_version"] == live.version
    assert client.get(f"{path}/{live.version}/ready").json() == {"name": MODEL, "ready": True}
    for other in (old.version, "20261122T000100Z-00000000", "1"):
        for answer in (
            client.post(f"{path}/{other}/infer", json=as_json()),
            client.get(f"{path}/{other}/ready"),
            client.get(f"{path}/{other}"),
        ):
            assert live.version in refusal(answer, 404)


def test_the_versions_are_listed(models: Registry, serve: Serve) -> None:
    """The newest first, as many as are asked for, with their metrics, and which one is live."""
    registered = [models.register(seed).version for seed in (1, 2, 3)]
    client = serve()
    path = f"/v2/models/{MODEL}/versions"
    assert client.get(path).json()["live"] is None
    models.point_at(tiny_models.ModelVersion(model=MODEL, version=registered[1]))
    wait_until(lambda: client.get("/v2/health/ready").is_success)
    said = client.get(path).json()
    assert (said["name"], said["live"]) == (MODEL, registered[1])
    assert [each["version"] for each in said["versions"]] == registered[::-1]
    assert [each["live"] for each in said["versions"]] == [False, True, False]
    newest = said["versions"][0]
    assert newest["metrics"]["accuracy"] == 0.9
    assert newest["created_at"].endswith("Z")
    assert newest["dataset_version"] == tiny_models.DATASET.version
    assert client.get(newest["report"]).content == tiny_models.REPORT
    assert [each["version"] for each in client.get(path, params={"limit": 1}).json()["versions"]] == registered[2:]
    refusal(client.get(path, params={"limit": 0}), 422)


def test_without_a_model_it_says_so(serve: Serve) -> None:
    """Metadata are there, sizes unknown; readiness and inference are 503 with the reason."""
    client = serve()
    said = client.get(f"/v2/models/{MODEL}").json()
    assert said["versions"] == []
    assert said["inputs"][1]["shape"] == [-1, -1, -1, -1]
    for answer in (client.get(f"/v2/models/{MODEL}/ready"), client.post(INFER, json=as_json())):
        assert "No version of model 'shapes' is live yet." in refusal(answer, 503)
        assert answer.headers["retry-after"]


def test_another_model_is_not_asked(client: httpx.Client) -> None:
    """Whatever is asked of it, it is a 404 that names the one that is served."""
    for answer in (
        client.post("/v2/models/cats/infer", json=as_json()),
        client.post("/v2/models/cats/versions/1/infer", json=as_json()),
        client.get("/v2/models/cats/ready"),
        client.get("/v2/models/cats/versions"),
        client.get("/v2/models/cats/versions/1"),
        client.get("/v2/models/cats/versions/1/ready"),
    ):
        assert "'shapes'" in refusal(answer, 404)


def test_what_cannot_be_answered_is_said_where_its_clients_look(client: httpx.Client) -> None:
    """Each mistake has its status and its sentence."""
    broken = as_json()
    broken["inputs"][0]["data"][1] = base64.b64encode(b"text").decode()
    assert "Image 2 of 3 ('image[1]')" in refusal(client.post(INFER, json=broken), 422)
    assert "base64" in refusal(client.post(INFER, json={"inputs": [broken["inputs"][0] | {"data": ["?"] * 3}]}), 400)
    assert "not JSON" in refusal(client.post(INFER, content=PNGS[0]), 400)
    assert "no body" in refusal(client.post(INFER), 400)
    refusal(client.post(INFER, json=as_json(), headers={"Content-Encoding": "gzip"}), 415)
    refusal(client.get(INFER), 405)


def test_a_body_over_the_limit_is_refused(models: Registry, serve: Serve) -> None:
    """As anywhere else."""
    models.point_at(models.register(1))
    client = serve(max_body_mb=1)
    wait_until(lambda: client.get("/v2/health/ready").is_success)
    refusal(client.post(INFER, content=bytes(2 << 20)), 413)


def test_openapis_example_is_answered(client: httpx.Client) -> None:
    """What /docs offers to try works as it is."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    example = schemas["RequestObject"]["examples"][0]
    answer = client.post(INFER, json=example)
    assert list(outputs(answer)) == [output["name"] for output in example["outputs"]]
    assert answer.json()["id"] == example["id"]


def test_openapi_describes_requests_and_answers(client: httpx.Client) -> None:
    """What is sent and answered fits the schemas of the document."""
    document = client.get("/openapi.json").json()

    def check(value: object, schema: dict[str, Any]) -> None:
        Draft202012Validator(document | schema).validate(value)

    operation = document["paths"]["/v2/models/{name}/infer"]["post"]
    body = operation["requestBody"]["content"]
    assert body.keys() == {"application/json", "application/octet-stream"}
    check(as_json(id="1", parameters={"timeout": 5}), body["application/json"]["schema"])
    answer = operation["responses"]["200"]["content"]
    assert answer.keys() == {"application/json", "application/octet-stream"}
    check(client.post(INFER, json=as_json()).json(), answer["application/json"]["schema"])
    for path, example in (
        ("/v2", "/v2"),
        ("/v2/models/{name}/versions", f"/v2/models/{MODEL}/versions"),
        ("/v2/models/{name}/ready", f"/v2/models/{MODEL}/ready"),
    ):
        described = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        check(client.get(example).json(), described)
