import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import MODEL, STARTED, Registry, ReplicaByHand
from obstore.store import MemoryStore

from pipeline.aliases import Canary
from pipeline.artifacts import ModelVersion
from pipeline.errors import StoreUnavailable
from pipeline.store import Store
from serving.agreement import PreparedCanary
from serving.board import Board, new_board_file
from serving.canary import Lineup, position
from serving.canary_report import canary_report
from serving.coordinator import Coordinator
from serving.counts import Counts
from serving.live_model import LiveModel
from serving.model_files import Shelf
from serving.settings import ServingSettings
from serving.status import model_status
from serving.swap import FATAL_DEATHS

CALLERS = st.text(max_size=40)
SHARES = st.floats(0, 1)
CHALLENGER = "20261122T000200Z-00000000"


def with_challenger(models: Registry, processes: int = 2, **own: object) -> tuple[ReplicaByHand, str, ModelVersion]:
    """A replica at its champion, and a version that could challenge it."""
    champion, challenger = models.register(1), models.register(2)
    models.point_at(champion)
    replica = ReplicaByHand(models.models, processes, **own)
    replica.look()
    return replica, champion.version, challenger


@pytest.fixture(scope="module")
def pair() -> tuple[LiveModel, LiveModel]:
    """Two loaded versions."""
    models = Registry(Store(MemoryStore(), "memory:"), Store(MemoryStore(), "memory:"))
    replica, _, challenger = with_challenger(models, 1)
    models.challenge(challenger)
    replica.look()
    lineup = replica.participants[0].lineup()
    assert lineup.champion
    assert lineup.challenger
    return lineup.champion, lineup.challenger


@given(caller=CALLERS, one=SHARES, other=SHARES)
def test_a_larger_share_only_adds_callers(caller: str, one: float, other: float) -> None:
    """Who is in at one per cent is in at ten; at 0 nobody is, at 1 everybody."""
    small, large = sorted((one, other))
    at = position(CHALLENGER, caller)
    assert 0 <= at < 1
    assert at >= small or at < large


@settings(max_examples=20)
@given(share=SHARES, seed=st.integers(0, 2**32))
def test_callers_are_spread_evenly(share: float, seed: int) -> None:
    """Of 2,000 callers a share's worth is in, within six standard deviations; of request ids as of counted names."""
    source = random.Random(seed)
    for callers in (
        [f"{source.getrandbits(128):032x}" for _ in range(2000)],
        [f"user-{seed}-{number}" for number in range(2000)],
    ):
        found = sum(position(CHALLENGER, caller) < share for caller in callers)
        assert abs(found - 2000 * share) <= 6 * (2000 * share * (1 - share)) ** 0.5 + 1


def test_not_always_the_same_callers_try_what_is_new() -> None:
    """Of those who are in for one challenger at a tenth, about a tenth is in for the next."""
    callers = [f"user-{number}" for number in range(5000)]
    first = [caller for caller in callers if position(CHALLENGER, caller) < 0.1]
    again = [caller for caller in first if position("20261122T000300Z-00000000", caller) < 0.1]
    assert 400 < len(first) < 600
    assert 20 < len(again) < 90


@given(caller=CALLERS, share=SHARES)
def test_shadow_never_answers_and_split_never_copies(
    pair: tuple[LiveModel, LiveModel], caller: str, share: float
) -> None:
    """In either mode the same callers are concerned, and in shadow mode the champion answers them all."""
    champion, challenger = pair
    split, shadow = Lineup(champion, challenger, share, "split"), Lineup(champion, challenger, share, "shadow")
    concerned = split.choose(caller)[0] is challenger
    assert split.choose(caller)[1] == ("challenger" if concerned else "champion")
    assert split.shadow(caller) is None
    assert shadow.choose(caller) == (champion, "champion")
    assert shadow.shadow(caller) is (challenger if concerned else None)


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


def test_a_pinned_server_has_no_canary(models: Registry) -> None:
    """Whatever the alias says."""
    _, champion, challenger = with_challenger(models)
    models.challenge(challenger)
    pinned = ReplicaByHand(models.models, version=champion)
    pinned.look()
    assert pinned.lineups() == {(champion, None, 0.0, 0)}


def test_the_report_begins_at_zero_with_each_challenger(models: Registry) -> None:
    """What was counted before is not its doing; what was counted since stays through all steps, and through a death."""
    replica, champion, challenger = with_challenger(models)
    counts = Counts(replica.board.counts(1))
    counts.failed("challenger")
    counts.failed("champion")
    counts.compared(agreed=False)
    models.challenge(challenger, 0.1, 1)
    replica.look()
    found = canary_report(replica.board)
    assert found.challenger
    assert found.champion
    assert (found.champion.version, found.challenger.version) == (champion, challenger.version)
    assert (found.step, found.mode, found.share, found.generation) == (1, "split", 0.1, 2)
    assert (found.challenger.errors, found.champion.errors, found.compared, found.disagreed) == (0, 0, 0, 0)
    counts.failed("challenger")
    counts.compared(agreed=False)
    counts.compared(agreed=True)
    replica.board.vacate(1)
    replica.newcomer(1)
    models.challenge(challenger, 0.5, 2)
    replica.look()
    found = canary_report(replica.board)
    assert found.challenger
    assert (found.challenger.requests, found.challenger.errors, found.compared, found.disagreed) == (1, 1, 2, 1)
    models.challenge(models.register(3))
    replica.look()
    found = canary_report(replica.board)
    assert found.challenger
    assert (found.challenger.requests, found.compared) == (0, 0)


def test_the_report_without_a_challenger(models: Registry) -> None:
    """It names none, and no champion before there is one; the server's nonce stays the same."""
    replica = ReplicaByHand(models.models)
    found = canary_report(replica.board)
    assert (found.champion, found.challenger, found.step, found.error) == (None, None, 0, None)
    models.point_at(models.register(1))
    replica.look()
    again = canary_report(replica.board)
    assert again.champion
    assert (again.challenger, again.replica) == (None, found.replica)
    assert canary_report(ReplicaByHand(models.models).board).replica != found.replica


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
