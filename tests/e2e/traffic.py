"""Clients that send images without a pause, and remember every answer.

Half of them keep their connection open; the others open one for each request, as ``curl`` does. Nothing is tried
again: one refused connection, one status other than 200 or one cut answer is a failed request.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """One request that was answered, with the seconds (monotonic clock) at which it was sent and answered."""

    sent: float
    received: float
    image: str
    version: str
    probabilities: dict[str, float]


@dataclass
class Traffic:
    """What happened."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def versions_after(self, moment: float) -> set[str]:
        """The versions that answered requests sent after ``moment``."""
        return {answer.version for answer in self.answers if answer.sent > moment}

    def odd_answers(self, reference: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
        """Answers that are not what that version says of that image: ``reference[version][image][label]``."""
        odd = []
        for answer in self.answers:
            wanted = reference[answer.version][answer.image]
            worst = max(abs(share - wanted.get(label, -1)) for label, share in answer.probabilities.items())
            if worst > 1e-4:
                odd.append(f"{answer.image} by {answer.version}: {answer.probabilities} and not {wanted}")
        return odd


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[str, dict[str, float]]:
    """Version and probabilities of one answer.

    Raises:
        OSError: there was none.
        http.client.HTTPException: it was cut.
        ValueError: its status is not 200.
    """
    connection.request("POST", "/predict", body, {"Content-Type": "image/png"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise ValueError(f"{response.status} {text[:300]!r}")
    said = json.loads(text)
    return said["model_version"], {each["label"]: each["probability"] for each in said["top"]}


def ask_all(url: str, images: Mapping[str, bytes]) -> tuple[str, dict[str, dict[str, float]]]:
    """The version that answers at ``url``, and what it says of each image."""
    connection = _connection(url)
    said = {name: ask(connection, body) for name, body in images.items()}
    connection.close()
    versions = {version for version, _ in said.values()}
    assert len(versions) == 1, versions
    return versions.pop(), {name: probabilities for name, (_, probabilities) in said.items()}


@contextmanager
def traffic(url: str, images: Mapping[str, bytes], clients: int = 8, pause_s: float = 0.02) -> Iterator[Traffic]:
    """Clients that are at work as long as the context; each has sent something when it begins."""
    seen, stop = Traffic(), threading.Event()
    threads = [
        threading.Thread(
            target=_client,
            args=(url, images, number),
            kwargs={"pause_s": pause_s, "stop": stop, "seen": seen},
            name=f"client-{number}",
        )
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        while len(seen.answers) < clients and not seen.failures:
            time.sleep(0.02)
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert seen.answers or seen.failures


def _connection(url: str) -> http.client.HTTPConnection:
    at = urlsplit(url)
    return http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)


def _client(
    url: str, images: Mapping[str, bytes], number: int, *, pause_s: float, stop: threading.Event, seen: Traffic
) -> None:
    keeps_alive, names = number % 2 == 0, sorted(images)
    connection = _connection(url)
    turn = number
    while not stop.wait(pause_s):
        name = names[turn % len(names)]
        turn += 1
        sent = time.monotonic()
        try:
            version, probabilities = ask(connection, images[name])
        except (OSError, http.client.HTTPException, ValueError) as error:
            kind = "kept-alive" if keeps_alive else "new"
            seen.failures.append(f"{kind} connection, at {sent:.3f}: {type(error).__name__}: {error}")
            connection.close()
        else:
            seen.answers.append(Answer(sent, time.monotonic(), name, version, probabilities))
        if not keeps_alive:
            connection.close()
    connection.close()
