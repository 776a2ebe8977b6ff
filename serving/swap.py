"""When a proposed version may go live: the rule by which the processes of a replica flip together, or not at all.

It is a two-phase commit whose coordinator cannot be lost alone (it lives in the process that all others depend on),
with one concession: **who gives no sign of life has no vote**. A process that died or hangs does not answer requests
either, and when it comes back it finds the new generation and must load that before it answers anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

HUNG_S = 5.0
"""Without a sign of life for so long, a process is not waited for."""
START_S = 20.0
"""How long the first version waits for processes that are still starting."""
PREPARE_S = 60.0
"""How long a process that is alive may take to load a version."""
FATAL_DEATHS = 2
"""So many processes that end while they load a version are the version's fault."""


@dataclass(frozen=True, slots=True)
class Voter:
    """One process, as seen on the board.

    Attributes:
        silent_s: seconds since its last sign of life; None if it has given none yet.
        holds: it has loaded the proposed version.
        refusal: why it cannot, if it said so.
    """

    pid: int
    silent_s: float | None
    holds: bool
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a proposal: committed, refused for a reason, or, with neither, waited for."""

    committed: bool = False
    refusal: str | None = None


def verdict(voters: Sequence[Voter], waited_s: float, *, deaths: int, first: bool) -> Verdict:
    """What becomes of a proposal.

    Args:
        voters: all processes of the replica.
        waited_s: since the proposal was made, in seconds.
        deaths: processes that ended since then.
        first: nothing was live before, so nobody is kept waiting by a process that is still starting.
    """
    refused = [voter for voter in voters if voter.refusal]
    if refused:
        return Verdict(refusal=refused[0].refusal)
    if deaths >= FATAL_DEATHS:
        return Verdict(refusal=f"{deaths} processes ended while they loaded the version.")
    counted = [voter for voter in voters if _has_a_vote(voter, starting=first and waited_s < START_S)]
    missing = [voter for voter in counted if not voter.holds]
    if counted and not missing:
        return Verdict(committed=True)
    if waited_s > PREPARE_S:
        who = ", ".join(str(voter.pid) for voter in missing) or "of this replica"
        return Verdict(refusal=f"Process {who} did not load the version within {PREPARE_S:.0f} s.")
    return Verdict()


def _has_a_vote(voter: Voter, *, starting: bool) -> bool:
    return starting if voter.silent_s is None else voter.silent_s <= HUNG_S
