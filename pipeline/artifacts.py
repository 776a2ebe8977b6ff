"""The records that travel between steps: frozen, small, and refusing what they do not know.

Keys travel, bytes stay in the object store: a step gets and returns these records, never tensors, so that it can run
on another machine, be retried, or be started by hand from what the store holds.
"""

import hashlib
import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

PIXEL_FORMAT = 2
"""Raised whenever the same encoded image would decode to other pixels than before."""

TRAINING_FORMAT = 2
"""Raised whenever the same dataset version and configuration would train to other weights than before."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?$")]
"""A dataset's, model's or alias's name: 1 to 63 of a-z, 0-9, ``-``, ``_``; it becomes a part of keys and URLs."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""

Split = Literal["train", "validation", "test"]


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """UTF-8 JSON, indented for people, equal for equal records."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The record in ``data``.

        Raises:
            pydantic.ValidationError: it is not one of this type and format.
        """
        return cls.model_validate_json(data)


def digest_of(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of ``value``'s canonical JSON: sorted names, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def utc_now() -> datetime:
    """The time in UTC, whole seconds, as every stored time is; pydantic writes it as RFC 3339 with ``Z``."""
    return datetime.now(UTC).replace(microsecond=0)


class PixelSpec(Record):
    """How encoded bytes become a model's input: everything that ``images.decode`` needs to know.

    Attributes:
        height: rows of the result, in pixels.
        width: columns of the result, in pixels.
        channels: 1 for grey, 3 for RGB.
        fit: ``crop`` takes the largest centred part of the target's shape, then resizes; ``stretch`` resizes all.
        format: the decoder's format number.
    """

    height: int = Field(ge=8, le=1024)
    width: int = Field(ge=8, le=1024)
    channels: Literal[1, 3]
    fit: Literal["crop", "stretch"] = "crop"
    format: int = Field(PIXEL_FORMAT, ge=PIXEL_FORMAT, le=PIXEL_FORMAT)


class PrepareConfig(Record):
    """What a person can choose about preparation.

    It is part of a dataset version's identity only by what it makes of the images.
    """

    size: Literal["auto"] | Annotated[int, Field(ge=8, le=1024)] = Field(
        "auto",
        description="Height and width in pixels; auto: 28 or 32 when every image is that small, else 64.",
    )
    colour: Literal["auto", "grey", "rgb"] = Field(
        "auto", description="auto: grey when every image is stored in grey, else RGB."
    )
    fit: Literal["crop", "stretch"] = Field("crop", description="Centre-crop to a square before resizing, or stretch.")
    test_share: float = Field(0.15, ge=0.01, le=0.9, description="Share of test images where splits are not given.")
    validation_share: float = Field(0.05, ge=0.0, le=0.5, description="Share of the training images held out.")
    keep: tuple[str, ...] = Field((), description="Keys whose label wins where the same bytes carry two labels.")


class DatasetVersion(Record):
    """A complete dataset version.

    Attributes:
        dataset: the dataset's name.
        version: 16 hexadecimal digits of the digest of its logical content.
        classes: labels by class index.
        pixels: what one row of its shards is.
        counts: images per split.
    """

    dataset: Name
    version: str = Field(pattern=r"^[0-9a-f]{16}$")
    classes: tuple[str, ...]
    pixels: PixelSpec
    counts: dict[Split, int]


Architecture = Literal["small_resnet", "resnet18", "mobilenet_v3_small"]


class TrainConfig(Record):
    """What a person can choose about training; all of it is part of a training run's identity."""

    architecture: Architecture = Field(
        "small_resnet", description="small_resnet for images up to 64 pixels; the others for larger ones."
    )
    width: int | None = Field(
        None,
        ge=4,
        le=512,
        description="Channels of small_resnet's first layer, by default 16; more learn more, slower.",
    )
    epochs: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Passes over the images; by default 12, 5 for large networks, and more for small datasets.",
    )
    batch_size: int = Field(
        128, ge=2, le=8192, description="Images per optimizer step; fewer where an epoch would have too few steps."
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Peak of the one-cycle schedule, per 256 images; by default 0.5, and 0.05 from starting weights.",
    )
    weight_decay: float = Field(5e-4, ge=0, le=1, description="L2 penalty on the weights, norms and biases excepted.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of each label spread over all classes.")
    flip: bool = Field(default=True, description="Mirror training images left to right every other time.")
    shift: int = Field(0, ge=0, le=32, description="Move training images at random by up to this many pixels.")
    seed: int = Field(0, ge=0, lt=2**32, description="Fixes starting weights, order and augmentation.")
    starting_weights: str | None = Field(
        None, description="A .safetensors file to start from: a path, or a key of the checkpoints zone."
    )


class EpochMetrics(Record):
    """One line of a training run's history; times are seconds, rates are images per second."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    images_per_s: float
    seconds: float


class TrainingRun(Record):
    """A finished training run.

    Attributes:
        id: 16 hexadecimal digits of the digest of all that decides the weights.
        checkpoint: key (in the checkpoints zone) of the best checkpoint's manifest.
        exact: False when it was resumed where bit-for-bit repetition cannot be promised.
        finished_at: fixed when the run's result was first written.
    """

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    dataset: DatasetVersion
    config: TrainConfig
    checkpoint: str
    history: tuple[EpochMetrics, ...]
    exact: bool
    environment: dict[str, str]
    finished_at: datetime


class StoredFile(Record):
    """An object and what its bytes must be."""

    key: str
    sha256: Digest
    size: int

    @classmethod
    def of(cls, key: str, data: bytes) -> Self:
        """``data`` as it is stored under ``key``."""
        return cls(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class ExportedModel(Record):
    """A training run's best weights as files that serving can load, proven to answer like torch.

    Attributes:
        files: by file name (``model.onnx``, ``model.safetensors``), in the checkpoints zone.
        parity: largest difference of a probability between torch and ONNX Runtime, and images compared.
    """

    training_run: TrainingRun
    files: dict[str, StoredFile]
    parity: dict[str, float]


class ClassMetrics(Record):
    """How one class fared on the test split."""

    label: str
    images: int
    precision: float
    recall: float
    f1: float


class EvaluationReport(Record):
    """What a training run's best weights do on the test split.

    Attributes:
        ece: expected calibration error with 15 equal-width bins.
        confusion: rows are true classes, columns predicted ones.
        files: by file name (``report.html``, ``evaluation.json``, ``predictions.parquet``), in the checkpoints zone.
    """

    training_run: TrainingRun
    images: int
    accuracy: float
    ece: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    files: dict[str, StoredFile] = {}


class ModelVersion(Record):
    """A registered model version: its manifest is in the models zone, and so is every file that it names."""

    model: Name
    version: str = Field(pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{8}$")


class GateConfig(Record):
    """The quality gate's bounds."""

    minimum_accuracy: float = Field(
        0.6, ge=0, le=1, description="Below this nothing goes live, the first model included."
    )
    margin: float = Field(0.0, ge=-1, le=1, description="How much better than the champion the challenger must be.")
    class_drop: float = Field(
        0.05, ge=0, le=1, description="How much recall a class shared with the champion may lose."
    )
    class_images: int = Field(30, ge=1, description="Classes with fewer test images are not judged one by one.")
    allow: tuple[Literal["removed_class", "seen_test_images"], ...] = Field(
        (), description="Accept that a class is gone, or that the champion trained on test images."
    )


class CanaryConfig(Record):
    """How a challenger gets more and more of the requests, and what stops it."""

    steps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.01, 0.1, 0.5),
        min_length=1,
        max_length=20,
        description="Shares of the requests, more than 0 and less than 1, that the challenger gets before it gets all.",
    )
    shadow_first: bool = Field(
        default=False,
        description="Begin with a step in which the challenger gets copies, and the champion answers everything.",
    )
    minimum_requests: int = Field(
        200, ge=1, le=1_000_000, description="Requests of champion and challenger each that a step is judged by."
    )
    real_traffic: bool = Field(
        default=False, description="Judge by requests of clients alone; test images that were sent again do not do."
    )
    step_s: float = Field(
        20, ge=0, le=86_400, description="Seconds that a step lasts; without any request, test images are sent then."
    )
    hold_s: float = Field(
        900, ge=0, le=604_800, description="Seconds after which a step that could not be judged ends the ramp."
    )
    more_errors: float = Field(
        0.01, ge=0, le=1, description="By how much more often than the champion's the challenger's requests may fail."
    )
    slower: float = Field(
        1.5, ge=1, le=100, description="How many times the champion's 95th percentile the challenger's may take."
    )
    slower_ms: float = Field(
        20, ge=0, le=60_000, description="Milliseconds by which the challenger may always be slower."
    )
    more_disagreement: float = Field(
        0.05, ge=0, le=1, description="How much more than on the test images champion and challenger may disagree."
    )

    @model_validator(mode="after")
    def _refuse_descent(self) -> Self:
        if any(two <= one for one, two in pairwise(self.steps)):
            raise ValueError("steps: each share has to be larger than the one before it")
        return self


class CanaryStep(Record):
    """What a step of a ramp came to, summed over all processes of all replicas.

    Attributes:
        share: of the requests, from 0 to 1.
        mode: ``split``: the challenger answered its share; ``shadow``: it got copies.
        requests: to the challenger; ``champion_requests`` to the champion meanwhile.
        errors: those of them in which the model failed.
        p95_ms: 95th percentile of the time that they took, from a histogram, in milliseconds; None without any.
        compared: images that both models answered.
        disagreed: those with two answers.
        replayed: requests that were test images, sent by the ramp itself.
        seconds: how long the step took.
        outcome: ``go on``, ``hold`` or ``back``.
        reason: the sentence that goes with it.
    """

    share: float
    mode: Literal["split", "shadow"]
    requests: int
    errors: int
    p95_ms: float | None
    champion_requests: int
    champion_errors: int
    champion_p95_ms: float | None
    compared: int
    disagreed: int
    replayed: int
    seconds: float
    outcome: Literal["go on", "hold", "back"]
    reason: str


class PromotionDecision(Record):
    """What the quality gate said, and why.

    Attributes:
        challenger: the version that was judged.
        champion: the version that was live before, if any.
        promoted: True when the alias points at the challenger now.
        alias: ``champion``; ``challenger`` where the version is to prove itself on a share of the requests first.
        reasons: one sentence per finding, the deciding ones first.
        challenger_accuracy: on the challenger's test images.
        champion_accuracy: of the champion, evaluated anew on the same images.
    """

    challenger: ModelVersion
    champion: ModelVersion | None
    promoted: bool
    reasons: tuple[str, ...]
    challenger_accuracy: float
    champion_accuracy: float | None
    alias: Literal["champion", "challenger"] = "champion"


class Deployment(Record):
    """A model version that is live and has proven it.

    Attributes:
        url: where the inference server answers.
        smoke_images: images that were sent to each replica over HTTP and answered as the evaluation predicted.
        replicas: of the inference server, all of which answer with the version.
        target: how it went live; ``follow``: the replicas followed the alias, ``docker``: new containers took over,
            ``kubernetes``: a Deployment was rolled out.
        canary: the steps by which it got there, if it was not at once.
    """

    model_version: ModelVersion
    url: str
    smoke_images: int
    replicas: int = 1
    target: Literal["follow", "docker", "kubernetes"] = "follow"
    canary: tuple[CanaryStep, ...] = ()
