from collections.abc import Callable, Iterable, Mapping
from itertools import chain, repeat

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DeployFailed
from pipeline.replicas import Replica, Said, Status, addresses, counted, fault, read_status, wait_until_all

OLD, NEW = "20260101T000000Z-00000000", "20260202T000000Z-11111111"
LIVE = Status(frozenset({NEW}), "now")
BEFORE = Status(frozenset({OLD}), "before")
STUBBORN = Status(frozenset({OLD}), "before", NEW, "it was altered.")


def replica(address: str) -> Replica:
    """One that is never asked here."""
    return Replica(address, f"the server at http://serving ({address})", httpx.Client())


def round_of(**statuses: Status | None) -> Said:
    """What the replicas 10.0.0.a, 10.0.0.b, … say."""
    return {replica(f"10.0.0.{ord(name) - 96}"): status for name, status in statuses.items()}


def in_turn(*rounds: Said) -> Callable[[], Said]:
    """Asks as many rounds; the last one again and again."""
    following = chain(rounds, repeat(rounds[-1]))
    return lambda: next(following)


def test_all_replicas_must_have_followed() -> None:
    """One late replica is waited for; their number is returned."""
    ask = in_turn(round_of(a=LIVE, b=BEFORE), round_of(a=LIVE, b=None), round_of(a=LIVE, b=LIVE))
    assert wait_until_all(ask, NEW, 5) == 2


def test_one_that_has_left_the_name_is_not_waited_for() -> None:
    """A replica that does not answer counts only as long as its address belongs to the name."""
    assert wait_until_all(in_turn(round_of(a=LIVE, b=None), round_of(a=LIVE)), NEW, 5) == 1


def test_no_replica_for_a_moment_is_no_success() -> None:
    """Between the last old replica and the first new one there is nobody: that is waited through."""
    assert wait_until_all(in_turn({}, round_of(a=BEFORE), {}, round_of(b=LIVE)), NEW, 5) == 1


def test_no_replica_at_all_is_said_in_a_sentence() -> None:
    """Which setting names nobody, and what to do."""
    with pytest.raises(
        DeployFailed, match=r"no replica was found, because the host of SAFELIGHT_INFERENCE_URL .* runs"
    ):
        wait_until_all(in_turn({}), NEW, 0)


def test_a_new_replica_is_proven_too_and_one_started_again_once_more() -> None:
    """Each address is asked once, and again where it has been live only since then."""
    asked: list[str] = []

    def prove(client: httpx.Client) -> str | None:
        asked.append(str(client.base_url.host))
        return None

    first, second = (Replica(each, each, httpx.Client(base_url=f"http://{each}")) for each in ("one", "two"))
    later = Status(frozenset({NEW}), "later")
    rounds: list[Said] = [{first: LIVE}, {first: LIVE, second: LIVE}, {first: later, second: LIVE}]
    assert wait_until_all(in_turn(*rounds), NEW, 5, prove=prove) == 2
    assert asked == ["one", "two", "one"]


def test_a_replica_that_dies_while_it_proves_itself_is_asked_again_or_named() -> None:
    """It may come back; what hindered it is said when the time is over."""
    gone = "does not answer: gone"
    tries = iter([gone, None])
    assert wait_until_all(in_turn(round_of(a=LIVE)), NEW, 5, prove=lambda _: next(tries)) == 1
    both = round_of(a=LIVE, b=LIVE)
    dying = list(both)[1].client
    with pytest.raises(DeployFailed, match=r"^1 of 2 replicas did not go along: .*10.0.0.2\) does not answer: gone$"):
        wait_until_all(in_turn(both), NEW, 0.3, prove=lambda client: gone if client is dying else None)


def test_one_that_keeps_refusing_ends_the_wait_early() -> None:
    """Long before the time is over, with its reason."""
    with pytest.raises(DeployFailed, match=r"10.0.0.2\) did not load the version; it says: it was altered"):
        wait_until_all(in_turn(round_of(a=LIVE, b=STUBBORN)), NEW, 600)


def test_one_that_refused_only_for_a_moment_is_waited_for() -> None:
    """It tries again by itself, and so it may."""
    assert wait_until_all(in_turn(round_of(a=STUBBORN), round_of(a=BEFORE), round_of(a=LIVE)), NEW, 5) == 1


def test_nobody_waits_for_what_is_no_longer_wanted() -> None:
    """What ``still_wanted`` raises ends the wait before anybody is asked."""

    def moved() -> None:
        raise DeployFailed("moved")

    with pytest.raises(DeployFailed, match="moved"):
        wait_until_all(in_turn(round_of(a=LIVE)), NEW, 5, still_wanted=moved)


def test_a_wrong_answer_is_said_with_who_gave_it() -> None:
    """One replica that answers otherwise fails all, at once."""

    def prove(_: httpx.Client) -> str | None:
        raise DeployFailed("test image ab is 'a'")

    with pytest.raises(DeployFailed, match=r"^the server at http://serving \(10.0.0.1\): test image ab is 'a'$"):
        wait_until_all(in_turn(round_of(a=LIVE)), NEW, 600, prove=prove)


def test_processes_of_one_replica_have_to_agree() -> None:
    """A replica is at a version when each of its processes is; one without the list speaks for itself."""
    said = {"version": NEW, "swap_error": None, "live_since": "now", "processes": [{"version": NEW}, {"version": OLD}]}
    status = read_status(said)
    assert status.versions == {OLD, NEW}
    assert fault(status) == f"did not follow the alias in time; it is at {OLD}, {NEW}"
    with pytest.raises(DeployFailed, match="did not follow"):
        wait_until_all(in_turn({replica("10.0.0.1"): status}), NEW, 0)
    assert read_status({"version": None, "swap_error": None}).versions == {None}
    error = {"version": NEW, "reason": "altered"}
    assert read_status({"version": OLD, "swap_error": error, "processes": None}) == Status(
        frozenset({OLD}), None, NEW, "altered"
    )


IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).map(str)


@given(st.dictionaries(IPV4, st.booleans()), st.dictionaries(IPV6, st.booleans()))
def test_a_family_in_which_nobody_answers_is_left_out(four: Mapping[str, bool], six: Mapping[str, bool]) -> None:
    """Unless nobody answers in the other one either; within a family nobody is left out."""

    def said(families: Iterable[Mapping[str, bool]]) -> Said:
        return {
            Replica(address, "", None): LIVE if answers else None  # type: ignore[arg-type]
            for family in families
            for address, answers in family.items()
        }

    answering = [family for family in (four, six) if any(family.values())]
    assert counted(said([four, six])) == said(answering or [four, six])


def test_an_address_is_its_own_and_what_is_no_name_has_none() -> None:
    """No name service is needed to see that."""
    assert addresses("127.0.0.3") == ["127.0.0.3"]
    assert addresses("::1") == ["::1"]
    assert addresses("a" * 80) == []
