"""An answer of the Open Inference Protocol: from probabilities to a body's bytes.

``label`` and ``probability`` are of the best class. Probabilities are the model's float32 to the last bit, in JSON as
well as in binary form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline.registry import ModelManifest
from serving.counts import Role
from serving.open_inference_request import WantedOutput
from serving.open_inference_schemas import LABEL, PROBABILITIES
from serving.open_inference_tensors import bytes_to_binary


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body; where binary data follow, ``json_length`` says how many of its bytes are JSON."""

    body: bytes
    json_length: int | None


def write_response(
    request_id: str,
    manifest: ModelManifest,
    probabilities: NDArray[np.float32],
    wanted: Sequence[WantedOutput],
    role: Role = "champion",
) -> Encoded:
    """The answer to a request.

    Args:
        request_id: what ``id`` says.
        manifest: of the version that computed this.
        probabilities: float32 (images, classes).
        wanted: the outputs, in this order.
        role: as which that version answered.
    """
    tensors = [_tensor(output, manifest.classes, probabilities) for output in wanted]
    binary = [_binary(tensor) if output.binary else None for output, tensor in zip(wanted, tensors, strict=True)]
    answer = {
        "id": request_id,
        "model_name": manifest.model,
        "model_version": manifest.version,
        "parameters": {
            "dataset": manifest.dataset.dataset,
            "dataset_version": manifest.dataset.version,
            "role": role,
        },
        "outputs": [_described(*each) for each in zip(wanted, tensors, binary, strict=True)],
    }
    text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    following = [data for data in binary if data is not None]
    return Encoded(b"".join([text, *following]), len(text) if following else None)


def _tensor(output: WantedOutput, classes: Sequence[str], probabilities: NDArray[np.float32]) -> NDArray[Any]:
    """float32, or strings as objects."""
    if output.classification:
        return np.array([_best(row, classes, output.classification) for row in probabilities], object)
    if output.name == PROBABILITIES:
        return probabilities
    if output.name == LABEL:
        return np.array([classes[best] for best in probabilities.argmax(axis=1)], object)
    best: NDArray[np.float32] = probabilities.max(axis=1)
    return best


def _best(row: NDArray[np.float32], classes: Sequence[str], count: int) -> list[str]:
    """``value:index:label`` of the best classes, as Triton writes them."""
    best = np.argsort(-row, kind="stable")[:count]
    return [f"{row[index]:f}:{index}:{classes[index]}" for index in best]


def _binary(tensor: NDArray[Any]) -> bytes:
    if tensor.dtype == object:
        return bytes_to_binary(text.encode() for text in tensor.flat)
    return tensor.astype("<f4").tobytes()


def _flat(tensor: NDArray[Any]) -> Any:
    """As orjson takes it: float32 is written in as few digits as name it."""
    return tensor.ravel().tolist() if tensor.dtype == object else np.ascontiguousarray(tensor).ravel()


def _described(output: WantedOutput, tensor: NDArray[Any], binary: bytes | None) -> dict[str, Any]:
    return {
        "name": output.name,
        "datatype": "BYTES" if tensor.dtype == object else "FP32",
        "shape": list(tensor.shape),
        **({"data": _flat(tensor)} if binary is None else {"parameters": {"binary_data_size": len(binary)}}),
    }
