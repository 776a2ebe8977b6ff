"""What the inference server answers, as OpenAPI describes it."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.open_inference_schemas import PLATFORM, TensorMetadata

Probability = Annotated[float, Field(ge=0, le=1)]


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": [fields]})


class ClassProbability(BaseModel):
    """A class, and how probable the model thinks it is."""

    model_config = _example(label="ankle boot", probability=0.974312)

    label: str
    probability: Probability


class Prediction(BaseModel):
    """What one model version says of one image."""

    model_config = _example(
        label="ankle boot",
        probability=0.974312,
        top=[{"label": "ankle boot", "probability": 0.974312}, {"label": "sneaker", "probability": 0.018245}],
        model="fashion-mnist",
        model_version="20261122T093000Z-1f3a5c7e",
        dataset_version="0b7d52c3a1e94f68",
        role="champion",
        request_id="5f0c9a7e2b6d4c1f8e3a9d0b7c2f4e61",
    )

    label: str = Field(description="The most probable class.")
    probability: Probability = Field(description="Of that class, rounded to six decimals.")
    top: tuple[ClassProbability, ...] = Field(description="The most probable classes, best first.")
    model: str
    model_version: str = Field(description="The version that computed this answer.")
    dataset_version: str = Field(description="The dataset version that it was trained on.")
    role: Literal["champion", "challenger"] = Field(description="challenger: on trial, for a share of the callers.")
    request_id: str = Field(description="The client's X-Request-Id or trace id, or one that was made up.")


class Predictions(BaseModel):
    """What one model version says of several images, in the order in which they were sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predictions: tuple[Prediction, ...]


class Problem(BaseModel):
    """What was wrong with a request, as RFC 9457 says it; its media type is ``application/problem+json``."""

    model_config = _example(
        type="about:blank",
        title="Unprocessable Content",
        status=422,
        detail="The image cannot be used: truncated PNG.",
        error="The image cannot be used: truncated PNG.",
    )

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="The HTTP status in words.")
    status: int
    detail: str = Field(description="One sentence for a person.")
    error: str = Field(description="The same, where clients of the Open Inference Protocol look for it.")


class Live(BaseModel):
    """The process answers."""

    live: Literal[True] = True


class Ready(BaseModel):
    """A model is loaded."""

    ready: Literal[True] = True


class SwapError(BaseModel):
    """Why the server does not serve what it should: a version that does not load, or a store that does not answer."""

    model_config = ConfigDict(frozen=True)

    version: str | None = Field(description="The version that was to go live, if that much is known.")
    reason: str
    at: datetime = Field(description="When this was first seen.")


class ProcessStatus(BaseModel):
    """One process of the server, and what it answers with."""

    model_config = ConfigDict(frozen=True)

    pid: int
    version: str | None
    challenger: str | None = Field(None, description="The version that it can answer a share of the requests with.")
    generation: int
    ready: bool


class CanaryStatus(BaseModel):
    """A version that gets a share of the requests beside the one that is live."""

    model_config = ConfigDict(frozen=True)

    challenger: str
    share: float = Field(ge=0, le=1, description="Of the callers, each of whom stays with one version.")
    mode: Literal["split", "shadow"] = Field(
        description="split: the challenger answers its share; shadow: it gets a copy, and the live version answers."
    )
    step: int


class Durations(BaseModel):
    """A histogram of durations in seconds."""

    model_config = ConfigDict(frozen=True)

    bounds: tuple[float, ...] = Field(description="Upper bounds of all buckets but the last one, which has none.")
    counts: tuple[int, ...] = Field(description="How many fell into each bucket alone.")
    sum: float


class RoleReport(BaseModel):
    """How one of the two versions did."""

    model_config = ConfigDict(frozen=True)

    version: str
    requests: int = Field(description="That it was asked, those included at which it failed.")
    errors: int = Field(description="At which it failed; what the challenger fails at is answered by the champion.")
    seconds: Durations = Field(description="From a request's header to its answer, of those that it answered.")


class CanaryReport(BaseModel):
    """What all processes of this server together counted since the challenger went live here."""

    model_config = ConfigDict(frozen=True)

    replica: str = Field(description="Another one after each start of the server; then the counts begin anew.")
    generation: int
    step: int
    mode: Literal["split", "shadow"]
    share: float
    champion: RoleReport | None = Field(description="Null while no version is live.")
    challenger: RoleReport | None = Field(description="Null while all requests go to one version.")
    compared: int = Field(description="Images that both versions saw.")
    disagreed: int = Field(description="Those of them in which each saw another class.")
    error: SwapError | None = Field(description="Why the challenger that the alias names gets no requests.")


class ModelStatus(BaseModel):
    """The model's metadata as the Open Inference Protocol has them, what is live, and where it comes from.

    What is only known of a version is null while none is live.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    alias: str | None = Field(description="The alias that the server follows; null when it is pinned to a version.")
    ready: bool
    version: str | None = Field(None, description="The version that every process of this server answers with.")
    generation: int = Field(0, description="Grows with each version that goes live; all processes share it.")
    dataset: str | None = None
    dataset_version: str | None = None
    classes: tuple[str, ...] | None = None
    metrics: dict[str, float] | None = Field(None, description="Of the evaluation on the test split.")
    created_at: datetime | None = Field(None, description="When the version was registered.")
    live_since: datetime | None = Field(None, description="When this server began to serve it.")
    training_run: str | None = Field(None, description="The training run that made it.")
    code_revision: str | None = Field(None, description="Of the code that registered it.")
    parents: tuple[str, ...] | None = Field(None, description="The weights that training started from, if any.")
    report: str | None = Field(None, description="Path of the version's evaluation report on this server.")
    canary: CanaryStatus | None = Field(None, description="Null while all requests go to one version.")
    swap_error: SwapError | None = Field(None, description="Null while the server serves what it should.")
    processes: tuple[ProcessStatus, ...] = Field((), description="Each process of this server.")
    versions: tuple[str, ...] = Field((), description="Versions that can be asked by their name: the live one.")
    platform: str = PLATFORM
    inputs: tuple[TensorMetadata, ...] = Field((), description="A request has one of these: `image` or `pixels`.")
    outputs: tuple[TensorMetadata, ...] = ()
