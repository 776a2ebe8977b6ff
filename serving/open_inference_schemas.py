"""The JSON objects of the Open Inference Protocol, as this server reads and writes them and OpenAPI describes them."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

IMAGE: Final = "image"
PIXELS: Final = "pixels"
PROBABILITIES: Final = "probabilities"
LABEL: Final = "label"
PROBABILITY: Final = "probability"
OutputName = Literal["probabilities", "label", "probability"]
OUTPUTS: Final[tuple[OutputName, ...]] = (PROBABILITIES, LABEL, PROBABILITY)

PLATFORM: Final = "onnx_onnxv1"
"""The protocol's name for a model in ONNX that ONNX Runtime computes."""
EXTENSIONS: Final = ("binary_tensor_data", "classification")
MAX_ID_CHARS: Final = 1000
EXAMPLE_PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mM4AQAAygDJNEIn8wAAAABJRU5ErkJggg=="
"""One light grey pixel."""


class _Given(BaseModel):
    """A JSON object of a client; members that are null count as absent, since some clients write all that they know."""

    model_config = ConfigDict(frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: object) -> object:
        return {name: value for name, value in given.items() if value is not None} if type(given) is dict else given


class RequestInput(_Given):
    """An input tensor."""

    name: Literal["image", "pixels"] = Field(
        description="`image` for encoded images, `pixels` for decoded ones of the size that the model's metadata name."
    )
    shape: list[Annotated[int, Field(ge=0)]] = Field(
        max_length=8, description="`[n]` for images, `[n, height, width, channels]` for pixels."
    )
    datatype: Literal["BYTES", "UINT8"] = Field(description="`BYTES` for images, `UINT8` for pixels.")
    parameters: dict[Any, Any] = Field(
        {}, description="`binary_data_size`: bytes of this tensor after the JSON, in its place."
    )
    data: Any = Field(
        None,
        description="Base64 strings for images; whole numbers for pixels, flat or nested.",
        json_schema_extra={"type": "array", "items": {"type": ["string", "integer", "array"]}},
    )


class RequestOutput(_Given):
    """An output tensor that is wanted."""

    name: OutputName
    parameters: dict[Any, Any] = Field(
        {},
        description="`binary_data`: in binary form. `classification`: of probabilities, so many best ones as strings.",
    )


class RequestObject(_Given):
    """The JSON of an inference request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [EXAMPLE_PNG]}],
                    "outputs": [{"name": "label"}, {"name": "probability"}],
                }
            ]
        },
    )

    id: str = Field("", max_length=MAX_ID_CHARS, description="Comes back with the answer.")
    parameters: dict[Any, Any] = Field(
        {},
        description="`timeout`: in microseconds, after which the answer is not wanted any more. "
        "`binary_data_output`: all outputs in binary form, unless one says otherwise.",
    )
    inputs: list[RequestInput] = Field(min_length=1, max_length=1, description="One tensor: `image` or `pixels`.")
    outputs: list[RequestOutput] = Field(
        default_factory=list, max_length=len(OUTPUTS), description="All, where none is named."
    )


class ResponseOutput(BaseModel):
    """An output tensor; without ``data``, its binary data follow the JSON."""

    model_config = ConfigDict(frozen=True)

    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    parameters: dict[str, int] | None = Field(None, description="`binary_data_size`, where it is in binary form.")
    data: list[float] | list[str] | None = Field(None, description="In row-major order.")


class ResponseObject(BaseModel):
    """The JSON of an answer."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "model_name": "fashion-mnist",
                    "model_version": "20261122T093000Z-1f3a5c7e",
                    "parameters": {
                        "dataset": "fashion-mnist",
                        "dataset_version": "0b7d52c3a1e94f68",
                        "role": "champion",
                    },
                    "outputs": [
                        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["ankle boot"]},
                        {"name": "probability", "datatype": "FP32", "shape": [1], "data": [0.974312]},
                    ],
                }
            ]
        },
    )

    id: str = Field(description="The request's; where it has none, the request id of the HTTP headers.")
    model_name: str
    model_version: str = Field(description="The version that computed this answer.")
    parameters: dict[str, str] = Field(
        description="`dataset` and `dataset_version` that it was trained on; its `role`: champion or challenger."
    )
    outputs: list[ResponseOutput]


class ServerMetadata(BaseModel):
    """What this server is."""

    model_config = ConfigDict(frozen=True)

    name: Literal["safelight"] = "safelight"
    version: str
    extensions: tuple[str, ...] = Field(EXTENSIONS, description="Of the protocol, as Triton defines them.")


class TensorMetadata(BaseModel):
    """An input or an output of a model; -1 stands for any number."""

    model_config = ConfigDict(frozen=True)

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelReady(BaseModel):
    """A model answers."""

    model_config = ConfigDict(frozen=True)

    name: str
    ready: Literal[True] = True


class RegisteredVersion(BaseModel):
    """A complete version in the registry."""

    model_config = ConfigDict(frozen=True)

    version: str
    live: bool = Field(description="Whether this server answers with it.")
    created_at: datetime = Field(description="When it was registered.")
    metrics: dict[str, FiniteFloat] = Field(description="Of the evaluation on the test split.")
    dataset: str
    dataset_version: str
    training_run: str
    code_revision: str
    report: str = Field(description="Path of its evaluation report on this server.")


class RegisteredVersions(BaseModel):
    """The versions of a model, newest first."""

    model_config = ConfigDict(frozen=True)

    name: str
    live: str | None = Field(description="The version that answers.")
    versions: tuple[RegisteredVersion, ...]
