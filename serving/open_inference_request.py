"""An inference request of the Open Inference Protocol, from a body's bytes to what is asked.

- **Bounded before it is parsed**: two bytes of JSON may become some hundred in memory, so there is a limit to how many
  values it may hold. What has more is sent in binary form, which costs nothing to read.
- What the protocol leaves to servers, and is not known here, is passed over: parameters of other servers, members such
  as Triton's ``model_name``. What would change the answer is refused.
- Three extensions of Triton are read: binary tensor data with raw requests, classification, and the time limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidInput
from serving.open_inference_schemas import (
    IMAGE,
    OUTPUTS,
    PIXELS,
    PROBABILITIES,
    RequestInput,
    RequestObject,
    RequestOutput,
)
from serving.open_inference_tensors import bytes_from_binary, bytes_from_json, pixels_from_binary, pixels_from_json
from serving.uploads import MAX_PARTS, Upload

MAX_IMAGES: Final = MAX_PARTS
"""Of one request, as in a form."""
MAX_JSON_VALUES: Final = 250_000
"""Enough for the pixels of 64 images of 28x28, or of one of 224x224 in colour; read within 45 ms, in 36 MiB."""
SHOWN_CHARS: Final = 80
"""Of a client's own words in an error's sentence."""
MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output, and how it is wanted; ``classification`` asks for so many best classes as strings."""

    name: str
    binary: bool = False
    classification: int | None = None


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a client asks.

    Attributes:
        images: encoded, or pixels as uint8 (height, width, channels); at least one.
        outputs: in the order of the answer.
        id: of the client; empty where it has none.
        timeout_s: after so many seconds the answer is not wanted any more.
    """

    images: Sequence[Upload | NDArray[np.uint8]]
    outputs: Sequence[WantedOutput]
    id: str = ""
    timeout_s: float | None = None


def read_request(body: bytes, json_length: str | None, pixels: PixelSpec) -> InferenceRequest:
    """What a body asks.

    Args:
        body: as it was sent.
        json_length: the header ``Inference-Header-Content-Length``, if there is one: how many bytes are JSON; the
            tensors' binary data follow. ``0`` stands for a body that is one encoded image and nothing else.
        pixels: what the live model takes.

    Raises:
        InvalidInput: it is no inference request that this server answers.
    """
    length = _json_length(json_length, len(body))
    if length == 0:
        return InferenceRequest([Upload("", body)], [WantedOutput(name, binary=True) for name in OUTPUTS])
    asked = _parsed(body[:length])
    return InferenceRequest(
        images=_images(asked.inputs[0], memoryview(body)[length:], pixels),
        outputs=_wanted(asked),
        id=asked.id,
        timeout_s=_timeout_s(asked),
    )


def _json_length(header: str | None, size: int) -> int:
    if not size:
        raise InvalidInput("The request has no body: send an inference request.")
    if header is None:
        return size
    if not (header.isascii() and header.isdecimal() and len(header) <= len(str(size)) and int(header) <= size):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {header[:SHOWN_CHARS]!r}, which is no part of the body's {size} bytes."
        )
    return int(header)


def _parsed(text: bytes) -> RequestObject:
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise InvalidInput(f"The JSON holds over {MAX_JSON_VALUES:,} values: send such tensors as binary data.")
    try:
        return RequestObject.model_validate(orjson.loads(text))
    except ValidationError as error:
        raise InvalidInput(_sentence(error)) from error
    except orjson.JSONDecodeError as error:
        raise InvalidInput(
            f"The request is not JSON ({error}); an image as it is needs Inference-Header-Content-Length: 0."
        ) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'The request'}: {first['msg']}."


def _images(tensor: RequestInput, rest: memoryview, pixels: PixelSpec) -> Sequence[Upload | NDArray[np.uint8]]:
    size = _number(tensor.parameters, "binary_data_size")
    if (size or 0) != len(rest):
        raise InvalidInput(
            f"Input {tensor.name!r} announces {size or 0} bytes of binary data, and {len(rest)} follow the JSON, whose "
            "length the header Inference-Header-Content-Length has to tell."
        )
    if (size is None) == (tensor.data is None):
        raise InvalidInput(f"Input {tensor.name!r} needs data, or binary_data_size and binary data after the JSON.")
    count = _count(tensor, pixels)
    if tensor.name == PIXELS:
        return list(
            pixels_from_json(tensor.data, tensor.shape, PIXELS)
            if size is None
            else pixels_from_binary(rest, tensor.shape, PIXELS)
        )
    found = bytes_from_json(tensor.data, count, IMAGE) if size is None else bytes_from_binary(rest, count, IMAGE)
    return [Upload(f"{IMAGE}[{number}]", each) for number, each in enumerate(found)]


def _count(tensor: RequestInput, pixels: PixelSpec) -> int:
    """How many images there are, after a look at the shape and the type."""
    row = [pixels.height, pixels.width, pixels.channels] if tensor.name == PIXELS else []
    wanted = "UINT8" if tensor.name == PIXELS else "BYTES"
    if tensor.datatype != wanted or len(tensor.shape) != len(row) + 1 or tensor.shape[1:] != row:
        shape = ", ".join(map(str, ["n", *row]))
        raise InvalidInput(
            f"Input {tensor.name!r} is {wanted} of shape [{shape}], not {tensor.datatype} of shape {_shown(tensor)}."
        )
    if not 1 <= tensor.shape[0] <= MAX_IMAGES:
        raise InvalidInput(f"Input {tensor.name!r} holds {tensor.shape[0]} images: send 1 to {MAX_IMAGES} at once.")
    return tensor.shape[0]


def _shown(tensor: RequestInput) -> str:
    return str(tensor.shape)[:SHOWN_CHARS]


def _wanted(asked: RequestObject) -> Sequence[WantedOutput]:
    binary = _switch(asked.parameters, "binary_data_output", otherwise=False)
    named = asked.outputs or [RequestOutput(name=name) for name in OUTPUTS]
    if len({output.name for output in named}) < len(named):
        raise InvalidInput("An output is asked for twice.")
    return [
        WantedOutput(output.name, _switch(output.parameters, "binary_data", otherwise=binary), _classification(output))
        for output in named
    ]


def _classification(output: RequestOutput) -> int | None:
    count = _number(output.parameters, "classification")
    if count is None:
        return None
    if output.name != PROBABILITIES or count == 0:
        raise InvalidInput(f"The parameter classification asks for 1 or more classes, of output {PROBABILITIES!r}.")
    return count


def _timeout_s(asked: RequestObject) -> float | None:
    """0 stands for none, as Triton has it."""
    microseconds = _number(asked.parameters, "timeout")
    return microseconds / MICROSECONDS if microseconds else None


def _number(parameters: dict[Any, Any], name: str) -> int | None:
    value = parameters.get(name)
    if value is None or (type(value) is int and 0 <= value < 1 << 63):
        return value
    raise InvalidInput(f"The parameter {name} is a whole number, not negative.")


def _switch(parameters: dict[Any, Any], name: str, *, otherwise: bool) -> bool:
    value = parameters.get(name, otherwise)
    if isinstance(value, bool):
        return value
    raise InvalidInput(f"The parameter {name} is true or false.")
