"""Clients of one ``python -m serving`` in a test: each keeps its connection open and sends one image after the other.

They know the versions that may answer, so that an answer which is not its version's, or comes too late, is noticed.
Where a whole stack is tested, and all that is known is its address, ``e2e/traffic.py`` asks.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import tiny_models
from at_work import at_work
from serving_process import MODEL, PNG, Serving

from pipeline.artifacts import ModelVersion
from pipeline.onnx_model import OnnxModel
from pipeline.zones import Zones


@dataclass(frozen=True)
class Answer:
    """When a request was sent and answered, in seconds, and the number of the version that answered it."""

    sent: float
    received: float
    number: int


@dataclass
class Traffic:
    """What the clients were answered.

    Attributes:
        wrong: answers that are no prediction, or another one than their version gives.
        broken: connections that broke off.
    """

    answers: list[Answer] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    broken: int = 0

    @property
    def numbers(self) -> set[int]:
        """Of the versions that answered."""
        return {answer.number for answer in self.answers}

    def late(self) -> list[Answer]:
        """Answers by a version although a newer one had answered somebody before they were asked for."""
        first = {
            number: min(answer.received for answer in self.answers if answer.number == number)
            for number in self.numbers
        }
        return [
            answer
            for answer in self.answers
            if any(number > answer.number and received < answer.sent for number, received in first.items())
        ]


@contextmanager
def traffic(server: Serving, zones: Zones, versions: Sequence[ModelVersion], clients: int) -> Iterator[Traffic]:
    """So many clients, for as long as the context; a version's number is its place in ``versions``."""
    expected = {}
    for number, each in enumerate(versions):
        model = OnnxModel(zones.models.get(f"{MODEL}/{each.version}/model.onnx"))
        expected[each.version] = number, float(model.probabilities(tiny_models.picture(5)[None]).max())
    seen = Traffic()

    def send(stop: threading.Event) -> None:
        with httpx.Client(base_url=server.client.base_url, trust_env=False, timeout=30) as client:
            while not stop.is_set():
                sent = time.monotonic()
                try:
                    answer = client.post("/predict", content=PNG)
                except httpx.TransportError:
                    seen.broken += 1
                    continue
                said = answer.json()
                number, probability = expected.get(said.get("model_version"), (-1, -1.0))
                if answer.status_code != 200 or abs(said["probability"] - probability) > 1e-4:
                    seen.wrong.append(answer.text)
                seen.answers.append(Answer(sent, time.monotonic(), number))

    with at_work([send] * clients):
        yield seen
