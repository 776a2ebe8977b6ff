import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import Corrupted, InvalidInput
from pipeline.onnx_model import OnnxModel

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(4 * 3 * 1, 5)).astype(np.float32)


def graph(
    *, given: str = "pixels", kind: int = TensorProto.UINT8, batch: str | int = "batch", height: str | int = 4
) -> bytes:
    """A linear classifier of 4 x 3 grey images into five classes, as an ONNX file."""
    constants = {"scale": np.float32(255), "shape": np.array([-1, 12], np.int64), "weights": WEIGHTS}
    nodes = [
        helper.make_node("Cast", [given], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["unit"]),
        helper.make_node("Reshape", ["unit", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(given, kind, [batch, height, 3, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model: onnx.ModelProto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def expected(pixels: np.ndarray) -> np.ndarray:
    """What ``graph`` computes, by numpy."""
    logits = (pixels.reshape(-1, 12) / np.float32(255)) @ WEIGHTS
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("images", [0, 1, 2, 257])
def test_any_batch_size_is_answered(images: int) -> None:
    """Batches of none, one and many images give the graph's probabilities, one row per image."""
    pixels = RNG.integers(0, 256, (images, 4, 3, 1), dtype=np.uint8)
    model = OnnxModel(graph())
    answer = model.probabilities(pixels)
    assert (model.shape, model.classes) == ((4, 3, 1), 5)
    assert answer.dtype == np.float32
    assert answer.shape == (images, 5)
    np.testing.assert_allclose(answer, expected(pixels), atol=1e-6)


@pytest.mark.parametrize("data", [b"", b"not a model", graph()[:-40], b"\x08\x07"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    """Empty, foreign and truncated bytes are reported as corrupted, in one line."""
    with pytest.raises(Corrupted, match="cannot be loaded as an ONNX model") as caught:
        OnnxModel(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (graph(given="image"), "image"),
        (graph(kind=TensorProto.FLOAT), "tensor\\(float\\)"),
        (graph(batch=8), "free batch size"),
        (graph(height="height"), "nothing else free"),
    ],
)
def test_a_graph_with_another_signature_is_refused_when_loaded(data: bytes, said: str) -> None:
    """A valid ONNX file that does not go from uint8 pixels to probabilities is named as such before it is used."""
    with pytest.raises(InvalidInput, match=said):
        OnnxModel(data)


@pytest.mark.parametrize("pixels", [np.zeros((1, 3, 4, 1), np.uint8), np.zeros((1, 4, 3, 1), np.float32)])
def test_pixels_of_another_shape_or_type_are_refused(pixels: np.ndarray) -> None:
    """A batch that the model was not made for is a person's mistake, and says what the model takes."""
    with pytest.raises(InvalidInput, match=r"takes uint8 images of shape \(4, 3, 1\)"):
        OnnxModel(graph()).probabilities(pixels)


def test_threads_share_one_model() -> None:
    """Many threads that use one model at once get the answers that they would get alone."""
    model = OnnxModel(graph(), threads=2)
    batches = [RNG.integers(0, 256, (1 + n % 9, 4, 3, 1), dtype=np.uint8) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for pixels, answer in zip(batches, pool.map(model.probabilities, batches), strict=True):
            np.testing.assert_allclose(answer, expected(pixels), atol=1e-6)


def test_nothing_is_reported_or_left_behind(tmp_path: Path) -> None:
    """A process that loads a model imports no torch, keeps no device id or event log, and has no uploader thread."""
    (tmp_path / "model.onnx").write_bytes(graph())
    program = (
        "import json, sys, psutil, pathlib\n"
        "from pipeline.onnx_model import OnnxModel\n"
        "before = 'onnxruntime' in sys.modules\n"
        "OnnxModel(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "heavy = [name for name in ('torch', 'pyarrow', 'prefect', 'cv2') if name in sys.modules]\n"
        "print(json.dumps([before, heavy, psutil.Process().num_threads()]))\n"
    )
    surroundings = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.onnx")],
        env=surroundings | {"HOME": str(tmp_path), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported_early, heavy, threads = json.loads(done.stdout)
    assert not imported_early
    assert heavy == []
    assert threads == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["model.onnx"]
