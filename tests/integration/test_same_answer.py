"""A trained model behind a server of two processes: every test image, in every way in which it can be asked about."""

import http.client
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scraping import total
from serving_process import MODEL, Serving, point_at, started
from tritonclient.http import InferenceServerClient, InferInput

from pipeline import datasets, evaluate, export, prepare, proof, registry, train
from pipeline.artifacts import ModelVersion, PrepareConfig, TrainConfig
from pipeline.proof import Question
from pipeline.registry import ModelManifest
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

GOLDEN = Path(__file__).parents[1] / "unit" / "pipeline" / "golden"
CLASSES = ("bright", "dark", "striped")
TRAINING_IMAGES, TEST_IMAGES = 150, 120
SIDES = (20, 28, 64, 150, 300)
"""Of test images: some are decoded by the event loop, some by threads, and JPEGs at a part of their size."""
SEVERAL = (2, 3, 7, 30, 64)
"""Images of one request."""
CONNECTIONS = 32
SMALL, LARGE = {"size": 28}, {"size": 64, "width": 48}
"""Models that are computed by the event loop, and by a thread of their own."""


@dataclass(frozen=True)
class Trained:
    """A server that answers with a trained model; all its test images in order, encoded and as the model's pixels."""

    server: Serving
    manifest: ModelManifest
    questions: Sequence[Question]
    pixels: NDArray[np.uint8]

    @property
    def encoded(self) -> list[bytes]:
        """Each test image as it was uploaded."""
        return [question.encoded for question in self.questions]


def picture(number: int, side: int, kind: str) -> bytes:
    """A noisy image of the class ``number % 3``."""
    label = CLASSES[number % len(CLASSES)]
    pixels = np.random.default_rng(number).integers(0, 100, (side, side, 3), np.uint8)
    if label == "bright":
        pixels += 120
    if label == "striped":
        pixels[:: max(2, side // 14)] += 120
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def upload(zones: Zones) -> None:
    """Store pictures to train on; and to test with such of other sizes and formats, and one of each kind we read."""
    kinds = cycle(["PNG", "JPEG", "WebP"])
    stored = {f"train-{number}.png": picture(number, 28, "PNG") for number in range(TRAINING_IMAGES)}
    for number in range(TRAINING_IMAGES, TRAINING_IMAGES + TEST_IMAGES):
        kind = next(kinds)
        stored[f"test-{number}.{kind.lower()}"] = picture(number, SIDES[number % len(SIDES)], kind)
    for case in json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"]:
        stored[f"test-{case['file']}"] = (GOLDEN / case["file"]).read_bytes()
    rows = [f"{name},{CLASSES[place % 3]},{name.partition('-')[0]}" for place, name in enumerate(stored)]
    stored["labels.csv"] = "\n".join(["key,label,split", *rows]).encode()
    assert len(list(zones.images.write_many((f"{MODEL}/{name}", data) for name, data in stored.items()))) == len(stored)


def trained_version(zones: Zones, size: int, width: int | None = None) -> ModelVersion:
    """Train, export, evaluate and register on what is uploaded."""
    config = TrainConfig(epochs=2, batch_size=16, flip=False, width=width)
    run = train.train(zones, prepare.prepare(zones, MODEL, PrepareConfig(size=size)).version, config, device="cpu")
    judged = evaluate.evaluate(zones, run, device="cpu")
    return registry.register(zones.checkpoints, zones.models, MODEL, export.export(zones, run), judged)


@pytest.fixture(scope="module", params=[SMALL, LARGE], ids=["small model", "large model"])
def trained(
    request: pytest.FixtureRequest, new_zone_settings: Callable[[], Settings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    """A server of two processes that names all classes, refuses nobody, and answers with a trained model."""
    settings = new_zone_settings()
    zones = open_zones(settings)
    upload(zones)
    version = trained_version(zones, **request.param)
    manifest = registry.read_manifest(zones.models, MODEL, version.version)
    questions = proof.smoke_set(zones, manifest, 1_000_000)
    test = datasets.load_split(zones.datasets, manifest.dataset, "test")
    assert [each.digest for each in questions] == [each.tobytes().hex() for each in test.digests]
    point_at(zones, version)
    own = {"PROCESSES": "2", "TOP_K": str(len(CLASSES)), "QUEUE_MS": "60000"}
    with started(settings, tmp_path_factory.mktemp("same-answer") / "serving.log", own) as server:
        server.wait_for(version, 2)
        yield Trained(server, manifest, questions, test.pixels)


def parts(count: int) -> Iterator[slice]:
    """All of so many images, several at a time."""
    start = 0
    for several in cycle(SEVERAL):
        if start >= count:
            return
        yield slice(start, start + several)
        start += several


def one_by_one(trained: Trained) -> list[Any]:
    """The answer to each image in a request of its own, when the last one is answered."""
    return [trained.server.client.post("/predict", content=each).json() for each in trained.encoded]


def in_forms(trained: Trained) -> list[Any]:
    """The answers to forms of several images."""
    answers = []
    for part in parts(len(trained.encoded)):
        files = [("image", (f"{number}.img", each)) for number, each in enumerate(trained.encoded[part])]
        answers += trained.server.client.post("/predict", files=files).json()["predictions"]
    return answers


def at_once(trained: Trained) -> list[Any]:
    """The answers where many clients ask for one image each before any of them is answered."""
    url = trained.server.client.base_url
    with ExitStack() as open_ones:
        connections = [
            open_ones.enter_context(closing(http.client.HTTPConnection(url.host, url.port, timeout=60)))
            for _ in range(CONNECTIONS)
        ]
        answers = []
        for start in range(0, len(trained.encoded), CONNECTIONS):
            asked = list(zip(connections, trained.encoded[start : start + CONNECTIONS], strict=False))
            for connection, each in asked:
                connection.request("POST", "/predict", each)
            answers += [json.loads(connection.getresponse().read()) for connection, _ in asked]
    return answers


def tensors(trained: Trained, kind: str) -> Iterator[InferInput]:
    """All images, one alone and then several at a time, encoded or as pixels."""
    for part in [slice(0, 1), *parts(len(trained.questions))]:
        if kind == "image":
            data, datatype = np.array(trained.encoded[part], object), "BYTES"
        else:
            data, datatype = trained.pixels[part], "UINT8"
        yield InferInput(kind, list(data.shape), datatype).set_data_from_numpy(data)


def check(trained: Trained, labels: Sequence[str], probabilities: NDArray[np.floating[Any]]) -> None:
    """Compare what was answered for all test images, in order, with what the evaluation said of them."""
    expected = np.stack([question.probabilities for question in trained.questions])
    best = [trained.manifest.classes[index] for index in expected.argmax(axis=1)]
    assert set(best) == set(CLASSES)
    assert list(labels) == best
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=proof.LARGEST_DIFFERENCE)


@pytest.mark.parametrize("ask", [one_by_one, in_forms, at_once])
def test_every_test_image_is_answered_as_it_was_evaluated(
    trained: Trained, ask: Callable[[Trained], list[Any]]
) -> None:
    """However images come together in a batch: the evaluation's class, and its probabilities up to 1e-4."""
    before = total(trained.server.get("/metrics").text, "safelight_batch_images_count")
    answers = ask(trained)
    rows = [{each["label"]: each["probability"] for each in answer["top"]} for answer in answers]
    probabilities = np.array([[row[label] for label in trained.manifest.classes] for row in rows])
    check(trained, [answer["label"] for answer in answers], probabilities)
    assert {answer["model_version"] for answer in answers} == {trained.manifest.version}
    batches = total(trained.server.get("/metrics").text, "safelight_batch_images_count") - before
    assert batches == len(answers) if ask is one_by_one else batches < len(answers)


@pytest.mark.parametrize("kind", ["image", "pixels"])
def test_every_test_image_is_answered_so_over_the_open_inference_protocol(trained: Trained, kind: str) -> None:
    """Encoded or as pixels: the evaluation's class, and its probabilities up to 1e-4."""
    with InferenceServerClient(trained.server.client.base_url.netloc.decode()) as client:
        first, *answers = [client.infer(MODEL, [tensor]) for tensor in tensors(trained, kind)]
    labels = np.concatenate([answer.as_numpy("label") for answer in answers])
    probabilities = np.concatenate([answer.as_numpy("probabilities") for answer in answers])
    check(trained, [label.decode() for label in labels], probabilities)
    np.testing.assert_allclose(first.as_numpy("probabilities"), probabilities[:1], rtol=0, atol=1e-6)
