"""Replicas that do with a canary what real ones do, without processes: httpx clients whose transport is a function.

They look at the alias whenever they are asked, choose by the caller, count as ``GET /v2/models/{name}/canary`` says it,
and misbehave as they are told to.
"""

import hashlib
import secrets
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from pipeline import aliases
from pipeline.aliases import CHAMPION, Canary
from pipeline.proof import Question
from pipeline.replicas import Answer, Replica, Replicas
from pipeline.store import Store

MODEL = "pets"
CLASSES = ("circle", "line", "square")
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


@dataclass
class Behaviour:
    """How a version answers: seconds that it says it takes, whether it fails, and with which class it is wrong."""

    seconds: float = 0.004
    fails: bool = False
    turned: int = 0
    """Classes between the right answer and its own."""


@dataclass
class Tally:
    """What a replica counted of one of its two models."""

    requests: int = 0
    errors: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def told(self, version: str) -> dict[str, Any]:
        """As JSON."""
        seconds = {"bounds": BOUNDS, "counts": self.counts, "sum": 0.0}
        return {"version": version, "requests": self.requests, "errors": self.errors, "seconds": seconds}


def question(number: int) -> Question:
    """A test image whose bytes are its number, of class ``number % 3`` to the evaluation."""
    probabilities = np.full(len(CLASSES), 0.1)
    probabilities[number % len(CLASSES)] = 0.8
    return Question(hashlib.sha256(b"%d" % number).hexdigest(), b"%d" % number, probabilities)


class Server:
    """One replica."""

    def __init__(self, models: Store, behaviours: dict[str, Behaviour]) -> None:
        self.models = models
        self.behaviours = behaviours
        self.answers = True
        self.stuck = False
        self.refuses: str | None = None
        self.restart()

    def restart(self) -> None:
        """Begin to count from zero, as another server."""
        self.nonce = secrets.token_hex(4)
        self.champion, self.challenger = Tally(), Tally()
        self.compared = self.disagreed = 0
        self.seen: Canary | None = None

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        if not self.answers:
            raise httpx.ConnectError("refused")
        found = aliases.read_alias(self.models, MODEL, CHAMPION)
        assert found
        state = found[0]
        refused = state.canary and (self.stuck or state.canary.challenger == self.refuses)
        if not refused:
            self.seen = state.canary
        if request.url.path == "/predict":
            return self._predict(request, str(state.version))
        return httpx.Response(200, json=self._report(str(state.version)))

    def _predict(self, request: httpx.Request, champion: str) -> httpx.Response:
        number, canary = int(request.content), self.seen
        version, tally = champion, self.champion
        digest = hashlib.sha256(request.headers["X-Caller-Key"].encode()).digest()
        if canary and canary.mode == "split" and int.from_bytes(digest[:6], "big") / 2**48 < canary.share:
            version, tally = canary.challenger, self.challenger
            if self._counted(tally, version):
                version, tally = champion, self.champion
            else:
                self._compare(champion, version)
        elif canary and canary.mode == "shadow" and not self._counted(self.challenger, canary.challenger):
            self._compare(champion, canary.challenger)
        if tally is self.champion:
            self._counted(tally, version)
        return httpx.Response(200, json=self._answer(number, version))

    def _counted(self, tally: Tally, version: str) -> bool:
        """Count a request; whether the model failed."""
        behaviour = self.behaviours[version]
        tally.requests += 1
        tally.errors += behaviour.fails
        if not behaviour.fails:
            tally.counts[bisect_left(BOUNDS, behaviour.seconds)] += 1
        return behaviour.fails

    def _compare(self, one: str, two: str) -> None:
        self.compared += 1
        self.disagreed += self.behaviours[one].turned != self.behaviours[two].turned

    def _answer(self, number: int, version: str) -> dict[str, Any]:
        label = CLASSES[(number + self.behaviours[version].turned) % len(CLASSES)]
        top = [{"label": each, "probability": 0.8 if each == label else 0.1} for each in CLASSES]
        return {"model_version": version, "label": label, "top": top}

    def _report(self, champion: str) -> dict[str, Any]:
        canary = self.seen
        return {
            "replica": self.nonce,
            "generation": 1,
            "step": canary.step if canary else 0,
            "mode": canary.mode if canary else "split",
            "share": canary.share if canary else 0.0,
            "champion": self.champion.told(champion),
            "challenger": self.challenger.told(canary.challenger) if canary else None,
            "compared": self.compared,
            "disagreed": self.disagreed,
            "error": {"version": self.refuses, "reason": "model.onnx was altered", "at": None}
            if self.refuses
            else None,
        }


class Fleet(Replicas):
    """All replicas; ``servers`` may change while a ramp is under way."""

    def __init__(self, models: Store, behaviours: dict[str, Behaviour], count: int = 2) -> None:
        super().__init__("http://serving:8080", lambda _: ())
        self.servers = {f"127.0.0.{number}": Server(models, behaviours) for number in range(1, count + 1)}
        self._sent = 0

    def each(self, question: Callable[[Replica], Answer | None]) -> dict[Replica, Answer | None]:
        """What each of them answers."""
        asked = [self._replica(address, server) for address, server in self.servers.items()]
        return {replica: question(replica) for replica in asked}

    def requests(self, count: int, questions: Sequence[Question]) -> None:
        """Requests of ``count`` clients, to each replica in turn."""
        servers = [server for server in self.servers.values() if server.answers]
        for _ in range(count):
            self._sent += 1
            content = questions[self._sent % len(questions)].encoded
            headers = {"X-Caller-Key": f"client {self._sent}"}
            servers[self._sent % len(servers)].handle(
                httpx.Request("POST", "http://serving:8080/predict", content=content, headers=headers)
            )

    def _replica(self, address: str, server: Server) -> Replica:
        client = httpx.Client(base_url=self.url, transport=httpx.MockTransport(server.handle))
        return Replica(address, f"the server at {address}", client)
