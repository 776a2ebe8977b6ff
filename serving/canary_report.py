"""What a canary is judged by: the counts of all processes of this replica, since its challenger went live here.

The counters themselves never fall, for ``/metrics``' sake; what had been counted when the challenger went live is
remembered with it, and taken off.
"""

from serving.agreement import CanaryCounts, RoleCounts
from serving.board import Board
from serving.counts import COMPARED, FAILURES, PREDICTION_SECONDS, SECONDS, Role, Totals
from serving.schemas import CanaryReport, Durations, RoleReport


def counted(board: Board) -> CanaryCounts:
    """All that was ever counted."""
    totals = Totals([board.counts(seat) for seat in range(board.seats)])
    disagreed, agreed = (totals.count(COMPARED[name]) for name in ("disagreed", "agreed"))
    return CanaryCounts(
        champion=_role(totals, "champion"),
        challenger=_role(totals, "challenger"),
        compared=disagreed + agreed,
        disagreed=disagreed,
    )


def canary_report(board: Board) -> CanaryReport:
    """How champion and challenger did on this replica; without a challenger, how the champions did since it started."""
    agreement = board.agreement()
    live, asked, found = agreement.live, agreement.live.asked, counted(board)
    if asked and agreement.baseline:
        found = _since(agreement.baseline.counts, found)
    return CanaryReport(
        replica=board.replica,
        generation=live.generation,
        step=asked.step if asked else 0,
        mode=asked.mode if asked else "split",
        share=asked.share if asked else 0.0,
        champion=_reported(live.version, found.champion) if live.version else None,
        challenger=_reported(asked.challenger, found.challenger) if asked else None,
        compared=found.compared if asked else 0,
        disagreed=found.disagreed if asked else 0,
        error=agreement.canary_error,
    )


def _role(totals: Totals, role: Role) -> RoleCounts:
    seconds = totals.histogram(PREDICTION_SECONDS[role], SECONDS)
    return RoleCounts(buckets=seconds.counts, seconds=seconds.sum, failures=totals.count(FAILURES[role]))


def _since(before: CanaryCounts, now: CanaryCounts) -> CanaryCounts:
    return CanaryCounts(
        champion=_role_since(before.champion, now.champion),
        challenger=_role_since(before.challenger, now.challenger),
        compared=now.compared - before.compared,
        disagreed=now.disagreed - before.disagreed,
    )


def _role_since(before: RoleCounts, now: RoleCounts) -> RoleCounts:
    return RoleCounts(
        buckets=tuple(count - earlier for earlier, count in zip(before.buckets, now.buckets, strict=True)),
        seconds=now.seconds - before.seconds,
        failures=now.failures - before.failures,
    )


def _reported(version: str, counts: RoleCounts) -> RoleReport:
    durations = Durations(bounds=SECONDS, counts=counts.buckets, sum=counts.seconds)
    requests = sum(counts.buckets) + counts.failures
    return RoleReport(version=version, requests=requests, errors=counts.failures, seconds=durations)
