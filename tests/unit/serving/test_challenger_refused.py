"""A challenger that does not load, does not come or kills is dropped, and the champion answers meanwhile."""

import os
import threading

from live_server import MODEL, Registry, with_challenger
from obstore.store import MemoryStore

from pipeline.store import Store
from serving.canary_report import canary_report
from serving.settings import ServingSettings
from serving.status import model_status
from serving.swap import FATAL_DEATHS


def test_a_challenger_that_does_not_load_gets_no_requests(models: Registry) -> None:
    """The champion goes on, status and report say why, and a challenger that is repaired goes live by itself."""
    replica, champion, _ = with_challenger(models)
    bad = models.register(3, onnx_file=b"not a model")
    models.challenge(bad)
    replica.look()
    assert replica.lineups() == {(champion, None, 0.0, 0)}
    said = model_status(ServingSettings(model=MODEL), replica.board, replica.participants[0].live_now(), draining=False)
    assert said.canary is None
    assert said.version == champion
    assert said.swap_error
    assert said.swap_error.version == bad.version
    assert canary_report(replica.board).error == said.swap_error
    good = models.register(4)
    models.challenge(good)
    replica.look()
    assert replica.lineups() == {(champion, good.version, 0.5, 1)}
    assert replica.board.agreement().canary_error is None


def test_a_bad_challenger_holds_up_no_champion(models: Registry) -> None:
    """While it is being refused again and again, the next champion goes live at the first look."""
    replica, _, other = with_challenger(models)
    models.challenge(models.register(3, onnx_file=b"not a model"))
    replica.look()
    models.point_at(other)
    replica.look()
    assert replica.version == other.version
    assert replica.error is None
    assert replica.board.agreement().canary_error is None


class Stuck(Store):
    """A store that does not come to an end with one model."""

    stuck: str | None = None
    goes_on = threading.Event()

    def get(self, key: str) -> bytes:
        """The bytes under ``key``."""
        if self.stuck and self.stuck in key:
            self.goes_on.wait(30)
        return super().get(key)


def test_a_challenger_that_is_still_on_its_way_holds_up_no_champion() -> None:
    """However long its download takes."""
    store = Stuck(MemoryStore(), "memory:")
    models = Registry(Store(MemoryStore(), "memory:"), store)
    replica, _, challenger = with_challenger(models)
    store.stuck = f"{challenger.version}/model.onnx"
    models.challenge(challenger)
    replica.watch.look()
    third = models.register(3)
    models.point_at(third)
    try:
        replica.watch.look()
        for each in replica.participants:
            each.step()
        replica.watch.step()
        assert replica.version == third.version
    finally:
        store.goes_on.set()


def test_a_champion_that_fails_ends_the_canary_of_the_one_before(models: Registry) -> None:
    """The alias names neither of them any more; the champion stays because something has to answer."""
    replica, champion, challenger = with_challenger(models, poll_s=60)
    models.challenge(challenger)
    replica.look()
    bad = models.register(3, onnx_file=b"not a model")
    models.point_at(bad)
    replica.look()
    assert replica.lineups() == {(champion, None, 0.0, 0)}
    assert replica.error
    assert replica.error.version == bad.version


def test_a_process_that_cannot_have_the_challenger_lets_the_champion_answer(models: Registry) -> None:
    """One that starts again when the challenger's bytes are spoilt is ready, and the status shows the difference."""
    replica, champion, challenger = with_challenger(models)
    models.challenge(challenger, 1.0)
    replica.look()
    replica.board.vacate(1)
    file = replica.board.agreement().live.files[challenger.version]
    os.ftruncate(replica.shelf.files[file], 100)
    newcomer = replica.newcomer(1)
    for _ in range(3):
        newcomer.step()
        replica.settle_aside()
    assert newcomer.lineup().choose("anybody")[1] == "champion"
    said = model_status(ServingSettings(model=MODEL), replica.board, newcomer.live_now(), draining=False)
    assert [(each.ready, each.version, each.challenger) for each in said.processes] == [
        (True, champion, challenger.version),
        (True, champion, None),
    ]


def test_a_challenger_with_which_processes_die_is_dropped(models: Registry) -> None:
    """One death may be anything; at the second one it gets no requests any more, also while the store is away."""
    replica, champion, challenger = with_challenger(models, poll_s=60)
    models.challenge(challenger)
    replica.look()
    models.models.delete([f"{MODEL}/aliases/champion.json"])
    for _ in range(FATAL_DEATHS):
        assert replica.lineups() == {(champion, challenger.version, 0.5, 1)}
        replica.board.vacate(1)
        replica.newcomer(1)
        replica.look()
    assert replica.lineups() == {(champion, None, 0.0, 0)}
    error = replica.board.agreement().canary_error
    assert error
    assert error.version == challenger.version
