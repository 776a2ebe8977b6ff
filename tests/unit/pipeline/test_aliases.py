"""Aliases on obstore's in-memory store; the races are in tests/integration/test_registry.py."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore
from synthetic import memory_store
from tiny_models import register

from pipeline import aliases
from pipeline.aliases import CHAMPION, NEWEST, AliasChange, AliasState, Canary
from pipeline.errors import Conflict, Corrupted, InvalidInput, NotFound
from pipeline.store import Store

NOW = datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)
A, B, C, D = (f"2026112{day}T010203Z-0000000{day}" for day in range(4))
LETTERS = {"A": A, "B": B, "C": C, "D": D}


def alias_state(changes: str) -> AliasState:
    """The state after changes like ``"A B B>A 0"``: set to A, to B, rolled back from B to A, set to nothing."""
    history = []
    for number, change in enumerate(changes.split(), start=1):
        left, _, target = change.rpartition(">")
        history.append(
            AliasChange(
                generation=number,
                nonce=str(number),
                version=LETTERS.get(target),
                changed_at=NOW,
                reason="",
                rolled_back=LETTERS.get(left),
            )
        )
    last = history[-1].model_dump(exclude={"rolled_back"})
    return AliasState(alias=CHAMPION, history=tuple(history), **last)


def two_versions(backend: MemoryStore | None = None) -> tuple[Store, str, str]:
    """A models zone with two versions of ``pets``."""
    checkpoints, models = memory_store(), memory_store(backend)
    one, two = (register(checkpoints, models, "pets", number).version for number in (1, 2))
    return models, one, two


def etag(models: Store) -> str:
    """The champion's etag."""
    found = aliases.read_alias(models, "pets", CHAMPION)
    assert found is not None
    return found[1]


class TestAlias:
    """How an alias changes, and for whom it does not."""

    def test_it_is_created_and_changed(self) -> None:
        """Each change counts the generation up, draws a nonce and is remembered with its reason."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="first")
        state = aliases.set_alias(models, "pets", CHAMPION, two, reason="second")
        assert (state.version, state.generation, state.reason) == (two, 2, "second")
        assert [(change.version, change.reason) for change in state.history] == [(one, "first"), (two, "second")]
        assert len({change.nonce for change in state.history}) == 2
        assert (found := aliases.read_alias(models, "pets", CHAMPION)) is not None
        assert found[0] == state
        assert aliases.resolve(models, "pets", CHAMPION).version == two

    def test_the_same_version_again_writes_nothing(self) -> None:
        """Setting an alias to what it says already is no change."""
        models, one, _ = two_versions()
        first = aliases.set_alias(models, "pets", CHAMPION, one, reason="first")
        assert aliases.set_alias(models, "pets", CHAMPION, one, reason="again") == first

    def test_a_stale_writer_loses(self) -> None:
        """Who judged an older state is refused, also when the alias points again where it did (A, B, A)."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="A")
        stale = etag(models)
        aliases.set_alias(models, "pets", CHAMPION, two, reason="B")
        aliases.set_alias(models, "pets", CHAMPION, one, reason="A")
        before = aliases.read_alias(models, "pets", CHAMPION)
        for expected in (stale, None):
            with pytest.raises(Conflict, match="was changed by another writer meanwhile"):
                aliases.set_alias(models, "pets", CHAMPION, two, reason="stale", expected=expected)
        assert aliases.read_alias(models, "pets", CHAMPION) == before

    def test_a_stale_writer_loses_even_where_nothing_would_change(self) -> None:
        """An outdated etag is refused also when the alias says already what is asked for."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="A")
        stale = etag(models)
        aliases.set_alias(models, "pets", CHAMPION, two, reason="B")
        with pytest.raises(Conflict):
            aliases.set_alias(models, "pets", CHAMPION, two, reason="stale", expected=stale)

    def test_a_change_that_was_replaced_before_its_answer_came_is_ours(self) -> None:
        """A swap that went through counts as won, although a rival's change is what the store holds by then."""
        backend = MemoryStore()
        models, one, two = two_versions(backend)

        class LateAnswer(Store):
            def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
                super().compare_and_swap(key, data, etag=etag)
                aliases.set_alias(models, "pets", CHAMPION, two, reason="rival")
                raise Conflict(key)

        late = LateAnswer(backend, "memory://zone")
        assert aliases.set_alias(late, "pets", CHAMPION, one, reason="ours", expected=None).version == one
        state, _ = aliases.read_alias(models, "pets", CHAMPION) or pytest.fail("no alias")
        assert [change.reason for change in state.history] == ["ours", "rival"]

    def test_the_history_is_bounded(self) -> None:
        """An alias remembers its last hundred changes and goes on counting."""
        models, one, two = two_versions()
        for number in range(103):
            state = aliases.set_alias(models, "pets", CHAMPION, (one, two)[number % 2], reason=str(number))
        assert (state.generation, len(state.history)) == (103, 100)
        assert (state.history[0].reason, state.history[-1].reason) == ("3", "102")

    def test_aliases_are_listed(self) -> None:
        """All aliases of a model come with the versions that they point at."""
        models, one, two = two_versions()
        assert aliases.list_aliases(models, "pets") == {}
        aliases.set_alias(models, "pets", CHAMPION, one, reason="first")
        aliases.set_alias(models, "pets", "challenger", two, reason="next")
        aliases.set_alias(models, "pets", "old", None, reason="none")
        assert aliases.list_aliases(models, "pets") == {CHAMPION: one, "challenger": two, "old": None}

    def test_newest_is_no_alias(self) -> None:
        """The word that stands for the newest version cannot be made an alias."""
        models, one, _ = two_versions()
        with pytest.raises(InvalidInput, match="give the alias another name"):
            aliases.set_alias(models, "pets", NEWEST, one, reason="no")

    def test_an_alias_that_is_none_is_corrupted(self) -> None:
        """Bytes that are no alias are an error, not an absent alias."""
        models, _, _ = two_versions()
        models.put(f"pets/aliases/{CHAMPION}.json", b"{}")
        with pytest.raises(Corrupted, match="is not an alias"):
            aliases.resolve(models, "pets", CHAMPION)

    def test_a_deleted_version_is_not_resolved(self) -> None:
        """An alias that points at a version without a manifest resolves to an error that names it."""
        models, one, _ = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="first")
        models.delete([f"pets/{one}/manifest.json"])
        with pytest.raises(NotFound, match=f"no version '{one}'"):
            aliases.resolve(models, "pets", CHAMPION)


def canary_of(challenger: str, share: float = 0.1, step: int = 1) -> Canary:
    """A version with a share of the requests."""
    return Canary(challenger=challenger, share=share, step=step, started_at=NOW)


class TestCanary:
    """A second version beside the one that an alias points at."""

    def test_it_comes_and_goes_in_the_alias_itself(self) -> None:
        """Each change of it is one of the alias: another generation and nonce, its reason in the history."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="live")
        seen = []
        for canary in (canary_of(two), canary_of(two, 0.5, 2), None):
            state = aliases.set_canary(models, "pets", CHAMPION, canary, reason="step", expected=etag(models))
            assert (state.version, state.canary) == (one, canary)
            assert aliases.read_alias(models, "pets", CHAMPION) == (state, etag(models))
            seen.append(state)
        assert [state.generation for state in seen] == [2, 3, 4]
        assert len({change.nonce for change in seen[-1].history}) == 4
        assert [change.version for change in seen[-1].history] == [one] * 4

    @pytest.mark.parametrize("canary", [None, canary_of(B)])
    def test_what_it_says_already_writes_nothing(self, canary: Canary | None) -> None:
        """Asked twice, the alias changes once."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="live")
        wanted = canary and canary.model_copy(update={"challenger": two})
        state = aliases.set_canary(models, "pets", CHAMPION, wanted, reason="first")
        assert aliases.set_canary(models, "pets", CHAMPION, wanted, reason="again") == state

    def test_a_stale_writer_loses(self) -> None:
        """Whoever judged another state changes nothing, be it of the alias or of the canary alone."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="live")
        stale = etag(models)
        aliases.set_canary(models, "pets", CHAMPION, canary_of(two), reason="by hand")
        before = aliases.read_alias(models, "pets", CHAMPION)
        for canary in (canary_of(two, 0.5), None):
            with pytest.raises(Conflict):
                aliases.set_canary(models, "pets", CHAMPION, canary, reason="stale", expected=stale)
        with pytest.raises(Conflict):
            aliases.set_alias(models, "pets", CHAMPION, two, reason="stale", expected=stale)
        assert aliases.read_alias(models, "pets", CHAMPION) == before

    @pytest.mark.parametrize(
        "move",
        [
            lambda models, _, two: aliases.set_alias(models, "pets", CHAMPION, two, reason="promoted"),
            lambda models, _, __: aliases.set_alias(models, "pets", CHAMPION, None, reason="nothing"),
            lambda models, one, _: aliases.withdraw(models, "pets", CHAMPION, one, "failed"),
            lambda models, _, __: aliases.rollback(models, "pets", CHAMPION, "worse"),
        ],
    )
    def test_it_is_gone_where_the_alias_moves(self, move: Callable[[Store, str, str], AliasState]) -> None:
        """A canary belongs to the champion that it was measured against."""
        models, one, two = two_versions()
        for version in (two, one):
            aliases.set_alias(models, "pets", CHAMPION, version, reason="live")
        aliases.set_canary(models, "pets", CHAMPION, canary_of(two), reason="1 %")
        assert move(models, one, two).canary is None

    def test_it_stays_where_the_alias_is_set_to_what_it_says(self) -> None:
        """A promotion that is repeated ends no canary."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="live")
        state = aliases.set_canary(models, "pets", CHAMPION, canary_of(two), reason="1 %")
        assert aliases.set_alias(models, "pets", CHAMPION, one, reason="again") == state

    def test_there_must_be_two_versions(self) -> None:
        """Nothing to compare with, nothing to compare, and the champion itself are refused."""
        models, one, two = two_versions()
        with pytest.raises(NotFound, match="points at no version"):
            aliases.set_canary(models, "pets", CHAMPION, canary_of(one), reason="too early")
        aliases.set_alias(models, "pets", CHAMPION, one, reason="live")
        with pytest.raises(InvalidInput, match="is what alias 'champion' points at"):
            aliases.set_canary(models, "pets", CHAMPION, canary_of(one), reason="itself")
        with pytest.raises(NotFound, match="no version"):
            aliases.set_canary(models, "pets", CHAMPION, canary_of(D), reason="unknown")
        assert aliases.versions_in_use(models, "pets") == {one}
        aliases.set_canary(models, "pets", CHAMPION, canary_of(two), reason="1 %")
        assert aliases.versions_in_use(models, "pets") == {one, two}

    def test_an_alias_without_one_is_stored_as_ever(self) -> None:
        """Earlier releases, which know no such field, read it, and what they stored is read here."""
        models, one, _ = two_versions()
        state = aliases.set_alias(models, "pets", CHAMPION, one, reason="live")
        assert b"canary" not in models.get(f"pets/aliases/{CHAMPION}.json")
        assert aliases.read_alias(models, "pets", CHAMPION) == (state, etag(models))
        assert state.canary is None

    def test_any_number_of_them_leaves_the_way_back(self) -> None:
        """The history does not forget for canaries which version was live before, and stays bounded nevertheless."""
        models, one, two = two_versions()
        for version in (one, two):
            state = aliases.set_alias(models, "pets", CHAMPION, version, reason="live")
        for number in range(150):
            share = number % 100 / 100
            state = aliases.set_canary(models, "pets", CHAMPION, canary_of(one, share), reason=str(number))
        assert len(state.history) == 152
        assert aliases.rollback(models, "pets", CHAMPION, "worse").version == one


class TestRollback:
    """Where an alias goes back to."""

    def test_it_goes_to_the_version_before(self) -> None:
        """A rollback points the alias at what was live before and says what it took back."""
        models, one, two = two_versions()
        for version in (one, two):
            aliases.set_alias(models, "pets", CHAMPION, version, reason="promoted")
        state = aliases.rollback(models, "pets", CHAMPION, "worse in the field")
        assert (state.version, state.history[-1].rolled_back, state.reason) == (one, two, "worse in the field")

    def test_there_is_nothing_before_the_first(self) -> None:
        """Without an earlier version the alias stays as it is and the sentence says so."""
        models, one, _ = two_versions()
        with pytest.raises(NotFound, match="no alias 'champion'"):
            aliases.rollback(models, "pets", CHAMPION, "?")
        aliases.set_alias(models, "pets", CHAMPION, one, reason="promoted")
        with pytest.raises(NotFound, match=f"points at {one}, and no complete version was live before it"):
            aliases.rollback(models, "pets", CHAMPION, "?")
        assert aliases.resolve(models, "pets", CHAMPION).version == one

    def test_a_failed_first_version_leaves_nothing(self) -> None:
        """Withdrawing the first version points the alias at nothing; then nothing is resolved, and the reason shows."""
        models, one, two = two_versions()
        aliases.set_alias(models, "pets", CHAMPION, one, reason="promoted")
        state = aliases.withdraw(models, "pets", CHAMPION, one, "It did not get ready.")
        assert state is not None
        assert state.version is None
        with pytest.raises(NotFound, match="points at no version: It did not get ready"):
            aliases.resolve(models, "pets", CHAMPION)
        with pytest.raises(NotFound, match="points at nothing"):
            aliases.rollback(models, "pets", CHAMPION, "?")
        assert aliases.set_alias(models, "pets", CHAMPION, two, reason="promoted").generation == 3

    def test_withdrawing_spares_a_newer_champion(self) -> None:
        """A version that is not live any more cannot be withdrawn: whoever came after it stays."""
        models, one, two = two_versions()
        assert aliases.withdraw(models, "pets", CHAMPION, one, "failed") is None
        for version in (one, two):
            aliases.set_alias(models, "pets", CHAMPION, version, reason="promoted")
        before = aliases.read_alias(models, "pets", CHAMPION)
        assert before is not None
        assert aliases.withdraw(models, "pets", CHAMPION, one, "failed") == before[0]
        assert aliases.read_alias(models, "pets", CHAMPION) == before

    @pytest.mark.parametrize(
        ("changes", "known", "target"),
        [
            ("A", "A", None),
            ("A B", "AB", A),
            ("A B A", "AB", B),
            ("A B C", "ABC", B),
            ("A B C", "AC", A),
            ("A B C", "C", None),
            ("A B B>A", "AB", None),
            ("A B C C>B", "ABC", A),
            ("A B C C>B B>A", "ABC", None),
            ("A B B>A B", "AB", A),
            ("A B B>A B C", "ABC", B),
            ("A B B>A C", "ABC", A),
            ("A A>0", "A", None),
            ("A A>0 B", "AB", None),
            ("A A>0 A B", "AB", A),
            ("A 0", "A", A),
        ],
    )
    def test_where_it_goes(self, changes: str, known: str, target: str | None) -> None:
        """A rollback goes to the last other version that is there and was not rolled back itself (B>A: B to A)."""
        assert aliases.version_before(alias_state(changes), {LETTERS[letter] for letter in known}) == target

    @given(st.lists(st.sampled_from("ABCD"), min_size=1, max_size=8))
    def test_it_never_toggles(self, promoted: list[str]) -> None:
        """Rolled back again and again, an alias goes through the versions once, latest first, and ends at the first."""
        changes, live = promoted[:], promoted[-1]
        seen = [live]
        while target := aliases.version_before(alias_state(" ".join(changes)), set(LETTERS.values())):
            letter = next(key for key, version in LETTERS.items() if version == target)
            changes.append(f"{live}>{letter}")
            live = letter
            seen.append(live)
        assert seen == list(dict.fromkeys(reversed(promoted)))
