from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.swap import FATAL_DEATHS, HUNG_S, PREPARE_S, START_S, Voter, verdict

HOLDS = Voter(pid=1, silent_s=0.1, holds=True, refusal=None)
LOADS = Voter(pid=2, silent_s=0.1, holds=False, refusal=None)
REFUSES = Voter(pid=3, silent_s=0.1, holds=False, refusal="it is broken.")
HUNG = Voter(pid=4, silent_s=HUNG_S + 1, holds=False, refusal=None)
STARTS = Voter(pid=0, silent_s=None, holds=False, refusal=None)

voters = st.lists(st.sampled_from([HOLDS, LOADS, REFUSES, HUNG, STARTS]), max_size=6)


def test_all_hold_it() -> None:
    """The version goes live when every process has loaded it."""
    assert verdict([HOLDS, HOLDS], 1, deaths=0, first=False).committed


def test_one_still_loads() -> None:
    """One process that is still at it keeps all waiting."""
    found = verdict([HOLDS, LOADS], 1, deaths=0, first=False)
    assert (found.committed, found.refusal) == (False, None)


def test_one_refuses() -> None:
    """One process that cannot load it is enough, and the reason is its own."""
    found = verdict([HOLDS, REFUSES, LOADS], 1, deaths=0, first=False)
    assert (found.committed, found.refusal) == (False, "it is broken.")


@pytest.mark.parametrize("absent", [HUNG, STARTS])
def test_who_gives_no_sign_of_life_is_not_waited_for(absent: Voter) -> None:
    """Neither a process that hangs nor one that is just being replaced holds up a swap."""
    assert verdict([HOLDS, absent], 1, deaths=1, first=False).committed


def test_the_first_version_waits_for_processes_that_start() -> None:
    """So that all of a new server's processes get ready together; but not for ever."""
    assert not verdict([HOLDS, STARTS], START_S - 1, deaths=0, first=True).committed
    assert verdict([HOLDS, STARTS], START_S + 1, deaths=0, first=True).committed


def test_a_process_that_never_gets_done_is_a_refusal() -> None:
    """The sentence names it."""
    found = verdict([HOLDS, LOADS], PREPARE_S + 1, deaths=0, first=False)
    assert found.refusal == f"Process 2 did not load the version within {PREPARE_S:.0f} s."


def test_a_version_that_kills_is_refused() -> None:
    """Processes that end one after the other while they load it speak against the version."""
    assert verdict([HOLDS, STARTS], 1, deaths=FATAL_DEATHS, first=False).refusal


@given(found=voters, waited_s=st.floats(0, 2 * PREPARE_S), deaths=st.integers(0, 3), first=st.booleans())
def test_nothing_goes_live_while_a_living_process_lacks_it(
    found: list[Voter], waited_s: float, deaths: int, *, first: bool
) -> None:
    """Whatever the circumstances: committed means that somebody holds it, and nobody alive does not."""
    said = verdict(found, waited_s, deaths=deaths, first=first)
    assert not (said.committed and said.refusal)
    if said.committed:
        living = [voter for voter in found if voter.silent_s is not None and voter.silent_s <= HUNG_S]
        assert living
        assert all(voter.holds for voter in living)


@given(found=voters, deaths=st.integers(0, 1), first=st.booleans())
def test_every_proposal_comes_to_an_end(found: list[Voter], deaths: int, *, first: bool) -> None:
    """After the longest wait it is committed or refused."""
    said = verdict(found, PREPARE_S + 1, deaths=deaths, first=first)
    assert said.committed or said.refusal


def test_a_refusal_of_a_process_that_hangs_since_counts() -> None:
    """What it said was about the version."""
    assert verdict([HOLDS, replace(REFUSES, silent_s=HUNG_S + 1)], 1, deaths=0, first=False).refusal
