"""Which version answers a caller, and which one is asked beside it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import Registry, with_challenger
from obstore.store import MemoryStore

from pipeline.store import Store
from serving.canary import Lineup, position
from serving.live_model import LiveModel

CALLERS = st.text(max_size=40)
SHARES = st.floats(0, 1)
CHALLENGER = "20261122T000200Z-00000000"


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
