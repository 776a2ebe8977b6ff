"""How all processes of a replica come to a challenger beside their champion, follow its share, and lose it again."""

import os
from pathlib import Path

import pytest
from live_server import MODEL, STARTED, Registry, ReplicaByHand, with_challenger
from obstore.store import MemoryStore

from pipeline.aliases import Canary
from pipeline.errors import StoreUnavailable
from pipeline.store import Store
from serving.agreement import PreparedCanary
from serving.board import Board, new_board_file
from serving.coordinator import Coordinator
from serving.model_files import Shelf

CHALLENGER = "20261122T000200Z-00000000"


def test_no_process_has_a_challenger_before_all_have_loaded_it(models: Registry) -> None:
    """Then all of them have, with its share and step, in one generation."""
    replica, champion, challenger = with_challenger(models, 3)
    models.challenge(challenger, 0.1, 1)
    replica.watch.look()
    replica.settle_aside()
    replica.watch.step()
    for each in replica.participants:
        assert replica.lineups() == {(champion, None, 0.0, 0)}
        each.step()
        replica.settle_aside()
        each.step()
        assert replica.lineups() == {(champion, None, 0.0, 0)}
        replica.watch.step()
    assert replica.lineups() == {(champion, challenger.version, 0.1, 1)}
    assert replica.board.generation == 2


def test_a_ramp_loads_nothing_anew(models: Registry) -> None:
    """From the first share to the challenger's own life as champion, both loaded models stay the same objects.

    Nor is anything fetched anew.
    """
    replica, champion, challenger = with_challenger(models)
    models.challenge(challenger, 0.01, 1)
    replica.look()
    begun = replica.participants[0].lineup()
    models.models.delete([f"{MODEL}/{challenger.version}/model.onnx"])
    for share, step in ((0.1, 2), (0.5, 3), (1.0, 4)):
        models.challenge(challenger, share, step)
        replica.look()
        assert replica.lineups() == {(champion, challenger.version, share, step)}
        now = replica.participants[0].lineup()
        assert now.champion is begun.champion
        assert now.challenger is begun.challenger
    models.point_at(challenger)
    replica.look()
    assert replica.lineups() == {(challenger.version, None, 0.0, 0)}
    assert replica.participants[0].live_now() is begun.challenger
    assert replica.board.generation == 6


def test_a_share_that_moves_is_no_swap() -> None:
    """The champion goes on being live since when it was: whoever proved it need not do so again."""
    board = Board(new_board_file(1))
    coordinator = Coordinator(MODEL, board, Shelf.new())
    canary = Canary(challenger=CHALLENGER, share=0.1, started_at=STARTED)
    for beside in (None, PreparedCanary(asked=canary, file=1), None):
        coordinator.propose("champion", 0, beside)
        assert coordinator.proposal
        coordinator.commit(coordinator.proposal.prepared)
        assert (board.agreement().live.asked, board.agreement().swaps) == (canary if beside else None, 1)
        if coordinator.live.generation == 1:
            coordinator.say(since=STARTED)
        assert board.agreement().since == STARTED


@pytest.mark.parametrize("processes", [1, 2])
def test_memory_is_given_back(models: Registry, processes: int) -> None:
    """After a canary, taken or refused, the shelf holds no more than before, and each process one model."""
    replica, _, challenger = with_challenger(models, processes)
    before = shelved(replica)
    for _ in range(2):
        models.challenge(challenger)
        replica.look()
        assert shelved(replica) == before + 1
        models.challenge(None)
        replica.look()
        assert shelved(replica) == before
    models.challenge(challenger)
    replica.look()
    models.point_at(challenger)
    replica.look()
    assert shelved(replica) == before
    assert [list(replica.board.report(seat).held) for seat in range(processes)] == [[7]] * processes


def shelved(replica: ReplicaByHand) -> int:
    """How many files of the shelf take memory."""
    return sum(os.fstat(file).st_size > 0 for file in replica.shelf.files)


def test_one_challenger_after_the_other(models: Registry) -> None:
    """The first one is gone before the second is there; with three versions at most on the shelf."""
    replica, champion, first = with_challenger(models)
    for challenger in (first, models.register(3), models.register(4)):
        models.challenge(challenger)
        replica.look()
        assert replica.lineups() == {(champion, challenger.version, 0.5, 1)}
    assert shelved(replica) == 2


def test_a_process_that_starts_later_answers_before_it_has_the_challenger(models: Registry) -> None:
    """It joins with the champion, and needs no store for either."""
    replica, champion, challenger = with_challenger(models)
    models.challenge(challenger)
    replica.look()
    replica.board.vacate(1)
    for version in (champion, challenger.version):
        models.models.delete([f"{MODEL}/{version}/model.onnx"])
    newcomer = replica.newcomer(1)
    newcomer.step()
    assert newcomer.has_joined
    replica.settle_aside()
    newcomer.step()
    assert replica.lineups() == {(champion, challenger.version, 0.5, 1)}


def test_a_pinned_server_has_no_canary(models: Registry) -> None:
    """Whatever the alias says."""
    _, champion, challenger = with_challenger(models)
    models.challenge(challenger)
    pinned = ReplicaByHand(models.models, version=champion)
    pinned.look()
    assert pinned.lineups() == {(champion, None, 0.0, 0)}


def test_the_cache_keeps_a_challenger_only_once_it_is_the_champion(models: Registry, tmp_path: Path) -> None:
    """Then a server that starts without its store starts with it."""
    replica, champion, challenger = with_challenger(models, 1, cache=tmp_path)
    models.challenge(challenger)
    replica.look()
    for version, ends in ((champion, False), (challenger.version, True)):
        if ends:
            models.point_at(challenger)
            replica.look()
        alone = ReplicaByHand(Away(MemoryStore(), models.models.url), cache=tmp_path)
        alone.look()
        assert alone.version == version


class Away(Store):
    """A store that cannot be reached."""

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """Never anything."""
        raise StoreUnavailable(key)
