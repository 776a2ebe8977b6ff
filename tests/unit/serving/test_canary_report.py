"""What was counted of champion and challenger since the canary began."""

from live_server import Registry, ReplicaByHand, with_challenger

from serving.canary_report import canary_report
from serving.counts import Counts


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
