import os
import threading

import pytest
from at_work import at_work
from live_server import MODEL, Registry, ReplicaByHand, wait_until

from pipeline.artifacts import ModelVersion
from serving.status import processes


def before_a_swap(models: Registry, processes: int) -> tuple[ReplicaByHand, ModelVersion, ModelVersion]:
    """A replica that is at the first version, when its alias has just moved on to the second."""
    first, second = models.register(1), models.register(2)
    models.point_at(first)
    replica = ReplicaByHand(models.models, processes)
    replica.look()
    models.point_at(second)
    return replica, first, second


def test_no_process_flips_before_all_have_loaded(models: Registry) -> None:
    """While one still loads, every process answers as before; then all at once."""
    replica, first, second = before_a_swap(models, 3)
    replica.watch.look()
    for each in replica.participants[:2]:
        each.step()
        replica.watch.step()
    assert replica.version == first.version
    replica.participants[2].step()
    assert replica.version == first.version
    replica.watch.step()
    assert replica.version == second.version


def test_the_old_model_goes_when_nobody_needs_it(models: Registry) -> None:
    """After a swap each process holds one model, also after many."""
    replica = ReplicaByHand(models.models, 2)
    for seed in (1, 2, 3):
        models.point_at(models.register(seed))
        replica.look()
    for seat in range(2):
        assert list(replica.board.report(seat).held) == [3]
    assert sorted(os.fstat(file).st_size > 0 for file in replica.shelf.files) == [False, False, True]


def test_an_alias_that_moves_on_is_not_waited_for(models: Registry) -> None:
    """A version that is still being loaded when the alias leaves it is given up."""
    versions = [models.register(seed) for seed in (1, 2, 3)]
    replica = ReplicaByHand(models.models, 2)
    models.point_at(versions[0])
    replica.look()
    models.point_at(versions[1])
    replica.watch.look()
    replica.participants[0].step()
    models.point_at(versions[2])
    replica.look()
    replica.look()
    assert replica.version == versions[2].version
    assert replica.error is None


def test_a_process_that_starts_later_joins(models: Registry) -> None:
    """It needs no store: what the others answer with lies in the memory that they share."""
    version = models.register(1)
    models.point_at(version)
    replica = ReplicaByHand(models.models, 2)
    replica.look()
    replica.board.vacate(1)
    models.models.delete([f"{MODEL}/{version.version}/model.onnx"])
    newcomer = replica.newcomer(1)
    assert not newcomer.has_joined
    newcomer.step()
    assert newcomer.has_joined
    assert replica.version == version.version


def test_a_request_waits_for_a_process_that_was_left_behind(models: Registry) -> None:
    """It is answered by what the others answer with, as soon as that is loaded, and by nothing older."""
    replica, _, second = before_a_swap(models, 2)
    late = replica.participants.pop()
    replica.board.vacate(late.seat)
    replica.look()
    assert replica.version == second.version
    assert late.live_now() is None
    answers = []
    asking = threading.Thread(target=lambda: answers.append(late.live()))
    asking.start()
    late.step()
    asking.join(10)
    assert [live.manifest.version for live in answers if live] == [second.version]


def test_the_status_tells_of_each_process(models: Registry) -> None:
    """Who lags behind, hangs, or will end is not ready, and its version is what it has."""
    first, second = models.register(1), models.register(2)
    models.point_at(first)
    replica = ReplicaByHand(models.models, 3)
    replica.look()
    assert [each.ready for each in processes(replica.board).values()] == [True] * 3
    replica.participants[2].drain()
    replica.participants[2].step()
    assert [each.ready for each in processes(replica.board).values()] == [True, True, False]
    late = replica.participants.pop(0)
    report = replica.board.report(late.seat)
    replica.board.vacate(late.seat)
    models.point_at(second)
    replica.look()
    replica.board.say(late.seat, report)
    replica.board.beat(late.seat)
    found = {each.pid: (each.version, each.generation, each.ready) for each in processes(replica.board).values()}
    assert found == {
        100: (first.version, 1, False),
        101: (second.version, 2, True),
        102: (second.version, 2, False),
    }


def test_a_version_at_which_processes_die_is_refused(models: Registry) -> None:
    """One death may be anything; the second one in a row speaks against the version, and the old one stays."""
    replica, first, second = before_a_swap(models, 2)
    replica.watch.look()
    for _ in range(2):
        replica.board.vacate(1)
    replica.watch.step()
    assert replica.version == first.version
    assert replica.error
    assert replica.error.version == second.version


@pytest.mark.parametrize("processes", [1, 2])
def test_a_withdrawn_alias_takes_the_model_from_all(models: Registry, processes: int) -> None:
    """None of them answers, and the next version brings them back."""
    models.point_at(models.register(1))
    replica = ReplicaByHand(models.models, processes)
    replica.look()
    models.point_at(None)
    replica.look()
    assert replica.version is None
    again = models.register(2)
    models.point_at(again)
    replica.look()
    assert replica.version == again.version


def test_a_swap_in_the_middle_of_a_look_up_is_noticed(models: Registry) -> None:
    """A reader who has the old number when the old model goes gets the new model, never an error."""
    replica = ReplicaByHand(models.models)
    versions = [models.register(seed) for seed in (1, 2)]
    models.point_at(versions[0])
    replica.look()
    seen = set()

    def read(stop: threading.Event) -> None:
        while not stop.is_set():
            live = replica.participants[0].live()
            seen.add(live.manifest.version if live else None)

    with at_work([read] * 4):
        for number in range(20):
            models.point_at(versions[(number + 1) % 2])
            replica.look()
        wait_until(lambda: len(seen) == 2)
    assert seen == {each.version for each in versions}
