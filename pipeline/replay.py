"""Test images sent to replicas in place of requests that nobody sends, so that a canary can be judged all the same.

- **Callers that reach the challenger are found by asking**: a caller sticks to its model, and an answer says which one
  it came from. Who is told the rule by which callers are chosen would have to be told of every change of it.
- What the challenger answers must be what its evaluation said, as in any proof.
- Images are sent a few at a time: between two rounds the ramp looks at what the replicas have counted.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Literal

import httpx

from pipeline import proof
from pipeline.proof import CALLER, NOT_NOW, Question
from pipeline.registry import ModelManifest

ROUND = 50
"""Test images between two looks at what the replicas have counted, at most; no more than the minimum of requests, so
that a first round for one of the models leaves enough for the other."""

ROUND_S = 2.0
"""Seconds between them, of a challenger that takes its time."""

SURE = 14
"""A caller of a share of 1/n is found among so many times n nearly always: e to the power of -14 is a millionth."""

GENEROUS = 4
"""Times the minimum of requests that are sent at most, beside those that look for callers."""

ANSWER_S = 10.0
"""Seconds after which a test image that was not answered is a doubt."""

Role = Literal["champion", "challenger"]


class Replay:
    """Test images for one step of a ramp."""

    def __init__(
        self, questions: Callable[[], Sequence[Question]], challenger: ModelManifest, share: float, minimum: int
    ) -> None:
        """Nothing is read or sent yet.

        Args:
            questions: reads the test images, with what the challenger's evaluation says of them.
            challenger: whose answers are compared with that.
            share: of the callers that reach it; 0 if none does.
            minimum: requests to each model that the step needs.
        """
        self._read = questions
        self._questions: Sequence[Question] = ()
        self._challenger = challenger
        self._callers: dict[Role, str] = {}
        search = SURE / min(share, 1 - share) if 0 < share < 1 else 0
        self._left = int(GENEROUS * minimum + search)
        self._round = min(ROUND, minimum)
        self.sent = 0
        self.by_role: dict[Role, int] = {"champion": 0, "challenger": 0}

    @property
    def is_over(self) -> bool:
        """Whether it has sent all that it may, and there is no use in more."""
        return self._left <= 0

    def round(self, clients: Sequence[httpx.Client], lacking: Role) -> str | None:
        """Send some test images, to each replica in turn, as a caller of the model that lacks requests.

        Returns:
            What was wrong with an answer, as a clause; None where nothing was.
        """
        self._questions = self._questions or self._read()
        if not self._questions:
            self._left = 0
        begun = time.monotonic()
        for _ in range(min(self._round, self._left) if clients else 0):
            doubt = self._ask(clients[self.sent % len(clients)], lacking)
            if doubt or time.monotonic() - begun > ROUND_S:
                return doubt
        return None

    def _ask(self, client: httpx.Client, lacking: Role) -> str | None:
        question = self._questions[self.sent % len(self._questions)]
        caller = self._callers.get(lacking) or secrets.token_hex(8)
        self.sent += 1
        self._left -= 1
        image = f"test image {question.digest[:12]}"
        try:
            answer = client.post("/predict", content=question.encoded, headers={CALLER: caller}, timeout=ANSWER_S)
        except httpx.ReadTimeout:
            return f"{image} was not answered within {ANSWER_S:.0f} s"
        except httpx.TransportError:
            return None  # a replica that went is the ramp's to notice
        if answer.status_code in NOT_NOW:
            return None
        if not answer.is_success:
            return f"{image} was refused: {answer.text[:300]}"
        said = answer.json()
        role: Role = "challenger" if said["model_version"] == self._challenger.version else "champion"
        self._callers.setdefault(role, caller)
        self.by_role[role] += 1
        return proof.difference(question, said, self._challenger) if role == "challenger" else None
