"""Triton's own client, which knows nothing of Safelight, against a server process."""

import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from numpy.typing import NDArray
from serving_process import MODEL, Serving, point_at, register, started
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from pipeline import images
from pipeline.onnx_model import OnnxModel
from pipeline.settings import Settings
from pipeline.zones import open_zones

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PICTURES = [tiny_models.picture(seed) for seed in range(5)]
PNGS = np.array([images.encode_png(each) for each in PICTURES], dtype=object)
EXPECTED = OnnxModel(tiny_models.linear_onnx(tiny_models.DATASET, 1)).probabilities(np.stack(PICTURES))
LABELS = [tiny_models.DATASET.classes[best].encode() for best in EXPECTED.argmax(axis=1)]


@pytest.fixture(scope="module")
def server(shared_zone_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server at which a version is live; no test changes anything."""
    zones = open_zones(shared_zone_settings)
    version = register(zones, 1)
    point_at(zones, version)
    with started(shared_zone_settings, tmp_path_factory.mktemp("open-inference") / "serving.log", {}) as server:
        server.wait_for(version)
        yield server


@pytest.fixture
def live(server: Serving) -> str:
    """The version that is live."""
    return str(server.version())


@pytest.fixture
def triton(server: Serving) -> Iterator[InferenceServerClient]:
    """Triton's client of it."""
    with InferenceServerClient(server.client.base_url.netloc.decode()) as client:
        yield client


def images_input(encoded: NDArray[np.object_]) -> InferInput:
    """Images as binary data."""
    tensor = InferInput("image", list(encoded.shape), "BYTES")
    tensor.set_data_from_numpy(encoded)
    return tensor


def images_in_json(encoded: NDArray[np.object_]) -> InferInput:
    """Images in JSON, into which this client puts the strings that it is given."""
    tensor = InferInput("image", list(encoded.shape), "BYTES")
    tensor.set_data_from_numpy(np.array([b64encode(each) for each in encoded], dtype=object), binary_data=False)
    return tensor


def pixels_input(*, binary: bool) -> InferInput:
    """All pictures as pixels."""
    pixels = np.stack(PICTURES)
    tensor = InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def test_tritons_client_finds_a_model_that_is_ready(triton: InferenceServerClient, live: str) -> None:
    """Health and metadata, of the server, of the model and of its version."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(MODEL)
    assert triton.is_model_ready(MODEL, live)
    assert not triton.is_model_ready(MODEL, "1")
    assert not triton.is_model_ready("cats")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    described = triton.get_model_metadata(MODEL)
    assert described == triton.get_model_metadata(MODEL, live)
    assert [tensor["name"] for tensor in described["inputs"]] == ["image", "pixels"]
    assert described["versions"] == [live]


@pytest.mark.parametrize("binary_answer", [True, False])
@pytest.mark.parametrize(
    "tensor",
    [images_input(PNGS), images_in_json(PNGS), pixels_input(binary=True), pixels_input(binary=False)],
    ids=["images", "images in JSON", "pixels", "pixels in JSON"],
)
def test_tritons_client_gets_the_models_answers(
    triton: InferenceServerClient, tensor: InferInput, *, binary_answer: bool
) -> None:
    """Several images at once, sent and answered in JSON and in binary form, each as the model itself answers."""
    wanted = [InferRequestedOutput(name, binary_data=binary_answer) for name in ("label", "probabilities")]
    answer = triton.infer(MODEL, [tensor], outputs=wanted, request_id="my id")
    np.testing.assert_allclose(answer.as_numpy("probabilities"), EXPECTED, atol=1e-4)
    labels = answer.as_numpy("label").tolist()
    assert [each if isinstance(each, bytes) else each.encode() for each in labels] == LABELS
    assert answer.as_numpy("probability") is None
    assert answer.get_response()["id"] == "my id"


def test_tritons_client_gets_everything_where_it_asks_for_nothing(triton: InferenceServerClient, live: str) -> None:
    """All outputs, from the version that it names; and the best classes, if it wants those."""
    answer = triton.infer(MODEL, [images_input(PNGS)], model_version=live, timeout=30_000_000)
    np.testing.assert_allclose(answer.as_numpy("probability"), EXPECTED.max(axis=1), atol=1e-4)
    assert answer.as_numpy("label").tolist() == LABELS
    assert answer.get_response()["model_version"] == live
    best = triton.infer(MODEL, [images_input(PNGS)], outputs=[InferRequestedOutput("probabilities", class_count=2)])
    rows = best.as_numpy("probabilities")
    assert rows.shape == (len(PNGS), 2)
    assert [row[0].split(b":")[2] for row in rows] == LABELS


def test_tritons_client_reads_what_was_wrong(triton: InferenceServerClient, live: str) -> None:
    """Each refusal arrives as its sentence."""
    text = np.array([PNGS[0], b"text"], dtype=object)
    with pytest.raises(InferenceServerException, match=r"Image 2 of 2 .* cannot be used"):
        triton.infer(MODEL, [images_input(text)])
    with pytest.raises(InferenceServerException, match=r"inputs\.0\.name: "):
        triton.infer(MODEL, [InferInput("input0", [1], "BYTES").set_data_from_numpy(PNGS[:1])])
    small = np.zeros((1, 5, 5, 3), np.uint8)
    with pytest.raises(InferenceServerException, match=r"of shape \[n, 12, 10, 3\]"):
        triton.infer(MODEL, [InferInput("pixels", [1, 5, 5, 3], "UINT8").set_data_from_numpy(small)])
    with pytest.raises(InferenceServerException, match=r"outputs\.0\.name: "):
        triton.infer(MODEL, [images_input(PNGS)], outputs=[InferRequestedOutput("output0")])
    with pytest.raises(InferenceServerException, match=f"is not live; '{live}' is"):
        triton.infer(MODEL, [images_input(PNGS)], model_version="1")
    with pytest.raises(InferenceServerException, match="deadline of this request has passed"):
        triton.infer(MODEL, [images_input(PNGS)], timeout=1)  # microsecond
    with pytest.raises(InferenceServerException, match="serves model 'shapes', not 'cats'"):
        triton.infer("cats", [images_input(PNGS)])


def test_readmes_examples_work(server: Serving, tmp_path: Path) -> None:
    """Each command and the program under "Asking the model" answer with a class, copied as they are."""
    section = README.split("## Asking the model")[1].split("\n## ")[0]
    address = server.client.base_url.netloc.decode()
    (tmp_path / "boot.png").write_bytes(PNGS[0])
    for language, code in re.findall(r"```(sh|python)\n(.*?)```", section, re.DOTALL):
        ours = code.replace("127.0.0.1:8080", address).replace("fashion-mnist", MODEL)
        for part in re.split(r"\n(?=curl )", ours) if language == "sh" else [ours]:
            command = ["sh", "-c", part] if language == "sh" else [sys.executable, "-c", part]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
            assert LABELS[0].decode() in done.stdout


def test_the_protocols_own_requests_are_answered(server: Serving) -> None:
    """Bytes as the protocol's and the extension's texts write them down, without any client's help."""
    text = (
        b'{ "id" : "42", "inputs" : [ { "name" : "image", "shape" : [ 1 ], "datatype" : "BYTES", "data" : [ "'
        + b64encode(PNGS[0])
        + b'" ] } ], "outputs" : [ { "name" : "probability" } ] }'
    )
    answer = server.client.post(
        f"/v2/models/{MODEL}/infer", content=text, headers={"Content-Type": "application/json"}
    ).json()
    assert (answer["id"], answer["outputs"][0]["shape"]) == ("42", [1])
    packed = len(PNGS[0]).to_bytes(4, "little") + PNGS[0]
    header = (
        b'{ "model_name" : "shapes", "inputs" : [ { "name" : "image", "shape" : [ 1 ], "datatype" : "BYTES", '
        b'"parameters" : { "binary_data_size" : %d } } ], '
        b'"outputs" : [ { "name" : "probability", "parameters" : { "binary_data" : true } } ] }' % len(packed)
    )
    sent = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    binary = server.client.post(f"/v2/models/{MODEL}/infer", content=header + packed, headers=sent)
    number = np.frombuffer(binary.content[int(binary.headers["Inference-Header-Content-Length"]) :], "<f4")
    assert number.tolist() == np.array(answer["outputs"][0]["data"], np.float32).tolist()
