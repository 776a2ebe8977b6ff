"""The inference server over real HTTP in a thread, on a registry in memory; and its inner parts, moved by hand."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import tiny_models

from pipeline import aliases
from pipeline.artifacts import ModelVersion
from pipeline.store import Store
from serving.app import create_app
from serving.board import Board, new_board_file
from serving.canary import Mode
from serving.live_model import LiveModel
from serving.model_files import Shelf
from serving.model_watch import ModelWatch
from serving.participant import Participant
from serving.schemas import SwapError
from serving.settings import ServingSettings
from serving.worker import server_of

MODEL = "shapes"
ROUNDS = 8
"""In which a replica gets from any state to what the alias says: a champion, then its challenger."""

STARTED = datetime(2026, 11, 22, tzinfo=UTC)

Serve = Callable[..., httpx.Client]


@dataclass(frozen=True)
class Registry:
    """A registry in memory."""

    checkpoints: Store
    models: Store

    def register(self, seed: int, *, onnx_file: bytes | None = None) -> ModelVersion:
        """A version of ``MODEL``."""
        return tiny_models.register(self.checkpoints, self.models, MODEL, seed, onnx_file=onnx_file)

    def challenge(self, version: ModelVersion | None, share: float = 0.5, step: int = 1, mode: Mode = "split") -> None:
        """Give a version a share beside the champion; none: to none."""
        canary = None
        if version:
            asked = {"challenger": version.version, "share": share, "step": step, "mode": mode, "started_at": STARTED}
            canary = aliases.Canary.model_validate(asked)
        aliases.set_canary(self.models, MODEL, aliases.CHAMPION, canary, reason="test")

    def point_at(self, version: ModelVersion | None) -> None:
        """Move the champion alias."""
        name = version.version if version else None
        aliases.set_alias(self.models, MODEL, aliases.CHAMPION, name, reason="test")


class ReplicaByHand:
    """A replica's coordinator and participants without threads or processes: everything happens when it is told to."""

    def __init__(self, models: Store, processes: int = 1, **settings: object) -> None:
        """Nothing is looked at yet."""
        self.board, self.shelf = Board(new_board_file(processes)), Shelf.new()
        given = {"model": MODEL, "poll_s": 0.05, **settings}
        self.watch = ModelWatch(models, ServingSettings.model_validate(given), self.board, self.shelf)
        self.participants = [Participant(self.board, self.shelf, seat, 100 + seat) for seat in range(processes)]
        for each in self.participants:
            self.board.beat(each.seat)
            each.step()

    def newcomer(self, seat: int) -> Participant:
        """A process that takes a seat which was vacated; it has not looked yet."""
        self.participants[seat] = Participant(self.board, self.shelf, seat, 200 + seat)
        self.board.beat(seat)
        return self.participants[seat]

    def look(self) -> None:
        """Look at the alias, and go on until nothing more happens."""
        self.watch.look()
        for _ in range(ROUNDS):
            self.settle_aside()
            for each in self.participants:
                self.board.beat(each.seat)
                each.step()
            self.watch.step()

    def settle_aside(self) -> None:
        """Return when no challenger is on its way any more."""
        wait_until(lambda: not any(each.name.startswith("challenger-") for each in threading.enumerate()))

    def versions(self) -> list[str | None]:
        """The version that each process answers with."""
        return [live.manifest.version if (live := each.live_now()) else None for each in self.participants]

    def lineups(self) -> set[tuple[str | None, str | None, float, int]]:
        """Champion, challenger, share and step, as the processes answer."""
        found = [each.lineup_now() for each in self.participants]
        return {
            (version_of(each.champion), version_of(each.challenger), each.share, each.step) for each in found if each
        }

    @property
    def version(self) -> str | None:
        """The version that all processes answer with."""
        (found,) = set(self.versions())
        return found

    @property
    def error(self) -> SwapError | None:
        """Why nothing newer is live."""
        return self.board.agreement().error


def with_challenger(models: Registry, processes: int = 2, **own: object) -> tuple[ReplicaByHand, str, ModelVersion]:
    """A replica at its champion, and a version that could challenge it."""
    champion, challenger = models.register(1), models.register(2)
    models.point_at(champion)
    replica = ReplicaByHand(models.models, processes, **own)
    replica.look()
    return replica, champion.version, challenger


def version_of(live: LiveModel | None) -> str | None:
    """Of a model that is live."""
    return live.manifest.version if live else None


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Return when ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def serving(models: Registry, settings: dict[str, object]) -> Iterator[httpx.Client]:
    """A client of a server that runs as long as the context."""
    given = ServingSettings.model_validate({"model": MODEL, "poll_s": 0.05, **settings})
    server = server_of(create_app(given, models.models), given, alone=True)
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
