"""Aliases: names of a model's versions that move, as ``champion`` does. What serving follows, and rollback turns back.

- **An alias changes by compare and swap only.** Each state has a random nonce, so that no two states have equal bytes
  and a stale writer loses even where the alias points again at what that writer saw (A → B → A). The nonces in the
  history settle what an etag cannot: a change that went through, and was replaced before we heard of it, is ours.
- **Every change is one loop**: read the state, decide purely what it becomes, swap; again where another was quicker.
- **Rolling back never toggles.** A version that was rolled back from is not returned to until somebody sets the alias
  to it again; rolling back twice goes two versions back.
- **A canary is a part of the alias**: one object says which version is live and which other one gets how much of the
  requests, so that no reader sees one without the other. A canary belongs to the champion that it is measured against:
  where the alias moves, it is gone.
"""

import secrets
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final, Literal, TypeVar

from pydantic import Field

from pipeline import registry
from pipeline.artifacts import ModelVersion, Name, Record, utc_now
from pipeline.errors import Conflict, Corrupted, InvalidInput, NotFound, ObjectMissing
from pipeline.sealing import sealed, unsealed
from pipeline.store import Store

CHAMPION: Final = "champion"
"""The alias that the quality gate moves and that serving follows."""

CHALLENGER: Final = "challenger"
"""The alias that the quality gate moves instead where a version is to prove itself on a share of the requests first."""

NEWEST: Final = "newest"
"""In place of an alias: the version whose training finished last. No alias can have this name."""

ANY: Final = "*"
"""In place of an etag: whatever the alias says at the moment."""

HISTORY = 100
"""Changes that an alias remembers."""

LONGEST_HISTORY = 1000
"""Changes that it remembers where fewer would forget which version was live before: those of canaries move nothing."""

ATTEMPTS = 20
"""Times that a change is tried again which does not care what the alias said before."""


class AliasChange(Record):
    """One change of an alias.

    Attributes:
        version: what the alias pointed at from then on; None for nothing.
        rolled_back: the version that this change took back as bad, if it was a rollback.
    """

    generation: int
    nonce: str
    version: str | None
    changed_at: datetime
    reason: str
    rolled_back: str | None = None


Mode = Literal["split", "shadow"]
"""How a challenger gets its share: it answers it, or it gets a copy and the champion answers."""


class Canary(Record):
    """A version that gets a share of the requests, to be compared with the one that the alias points at.

    Attributes:
        challenger: the version.
        share: of the requests, from 0 to 1.
        mode: how it gets it.
        step: of the ramp, counted from 0.
        started_at: when this challenger got its first share.
    """

    challenger: str
    share: float = Field(ge=0, le=1)
    mode: Mode = "split"
    step: int = Field(0, ge=0)
    started_at: datetime


class AliasState(Record):
    """What an alias says.

    Attributes:
        version: None after the first version was taken back: then there is nothing to serve.
        generation: grows by one with every change.
        nonce: random; no two states are equal.
        history: the last ``HISTORY`` changes or more, oldest first; the last of them is this state.
        canary: not stored where there is none, so that readers of earlier releases go on reading.
    """

    alias: Name
    version: str | None
    generation: int
    nonce: str
    changed_at: datetime
    reason: str
    history: tuple[AliasChange, ...]
    canary: Canary | None = Field(None, exclude_if=lambda canary: canary is None)


Next = TypeVar("Next", AliasState, AliasState | None)
"""What a change makes of an alias: its next state, or the present one where nothing is to change."""


def resolve(models: Store, model: str, name: str) -> ModelVersion:
    """The complete version that ``name`` stands for: a version, an alias, or ``NEWEST``.

    Raises:
        NotFound: there is no such alias or version, or the alias points at nothing.
    """
    registry.check_name("model", model)
    version = name if registry.VERSION_ID.fullmatch(name) else _pointed_at(models, model, name)
    return registry.find(models, model, version)


def read_alias(models: Store, model: str, alias: str) -> tuple[AliasState, str] | None:
    """What an alias says, and the etag that ``set_alias`` expects; None if it was never set.

    Raises:
        Corrupted: the stored alias is not one.
    """
    key = _key(model, alias)
    try:
        data, etag = models.get_with_etag(key)
        return unsealed(AliasState, data, key), etag
    except ObjectMissing:
        return None
    except Corrupted as error:
        raise Corrupted(f"{models.url}/{key} is not an alias: {error}.") from error


def etag_of(models: Store, model: str, alias: str) -> str | None:
    """The etag of what an alias says, for one request without a body; another etag, another state. None: not set."""
    found = models.head(_key(model, alias))
    return found.etag if found else None


def list_aliases(models: Store, model: str) -> dict[str, str | None]:
    """The version that each alias of a model points at, by the alias's name, sorted."""
    return {alias: state.version for alias, state in _states(models, model).items()}


def versions_in_use(models: Store, model: str) -> set[str]:
    """The versions that aliases of a model point at, and those that get a share beside them."""
    states = _states(models, model).values()
    challengers = {state.canary.challenger for state in states if state.canary}
    return challengers | {state.version for state in states if state.version}


def set_alias(
    models: Store, model: str, alias: str, version: str | None, *, reason: str, expected: str | None = ANY
) -> AliasState:
    """Point an alias at a complete version (None: at nothing). Pointing it where it points already writes nothing.

    A canary ends where the alias moves.

    Args:
        models: the models zone.
        model: the model's name.
        alias: the alias's name; it is created if need be.
        version: where to point it.
        reason: why, kept in the alias's history.
        expected: the etag of the state that was judged, None if there was none, or ``ANY``.

    Raises:
        InvalidInput: the alias's name is not one, or is ``NEWEST``.
        NotFound: there is no such complete version.
        Conflict: the alias is not in the expected state any more.
    """
    if alias == NEWEST:
        raise InvalidInput(f"{NEWEST!r} always stands for the newest version: give the alias another name.")
    if version is not None:
        registry.read_manifest(models, model, version)

    def pointed(current: AliasState | None, etag: str | None) -> AliasState:
        if expected not in (ANY, etag):
            raise _changed_meanwhile(model, alias)
        if current and current.version == version:
            return current
        return _following(alias, current, version, reason)

    return _change(models, model, alias, pointed)


def set_canary(
    models: Store, model: str, alias: str, canary: Canary | None, *, reason: str, expected: str | None = ANY
) -> AliasState:
    """Give a complete version a share of the requests beside the one that an alias points at (None: end that).

    Asking for what the alias says already writes nothing.

    Args:
        models: the models zone.
        model: the model's name.
        alias: the alias's name.
        canary: the version, its share and how it gets it.
        reason: why, kept in the alias's history.
        expected: the etag of the state that was judged, or ``ANY``.

    Raises:
        InvalidInput: the version is the one that the alias points at.
        NotFound: the alias points at nothing, or there is no such complete version.
        Conflict: the alias is not in the expected state any more.
    """
    if canary is not None:
        registry.read_manifest(models, model, canary.challenger)

    def beside(current: AliasState | None, etag: str | None) -> AliasState:
        if expected not in (ANY, etag):
            raise _changed_meanwhile(model, alias)
        if current is None or current.version is None:
            raise NotFound(
                f"Alias {alias!r} of model {model!r} points at no version, so there is nothing to compare with: deploy "
                "without a canary."
            )
        if canary and canary.challenger == current.version:
            raise InvalidInput(f"Version {canary.challenger} of model {model!r} is what alias {alias!r} points at.")
        if current.canary == canary:
            return current
        return _following(alias, current, current.version, reason, canary=canary)

    return _change(models, model, alias, beside)


def rollback(models: Store, model: str, alias: str, reason: str) -> AliasState:
    """Point an alias at the version that was live before, by ``version_before``; a canary ends.

    A change by another writer at the same time is never rolled back unseen.

    Raises:
        NotFound: the alias was never set, or there is no version to go back to.
        Conflict: another writer changed the alias meanwhile.
    """

    def before(current: AliasState | None, _etag: str | None) -> AliasState:
        if current is None:
            raise registry.not_found(models, model, f"no alias {alias!r}")
        target = version_before(current, registry.version_ids(models, model))
        if target is None:
            raise NotFound(
                f"Alias {alias!r} of model {model!r} points at {current.version or 'nothing'}, and no complete version "
                "was live before it that was not rolled back itself: name one with `safelight models set-alias`."
            )
        return _following(alias, current, target, reason, rolled_back=current.version)

    return _change(models, model, alias, before, attempts=1)


def withdraw(models: Store, model: str, alias: str, version: str, reason: str) -> AliasState | None:
    """Take an alias off a version that failed: back to the version before it, or to nothing if it was the first.

    Does nothing when the alias does not point at ``version`` any more. Returns what the alias says then.

    Raises:
        Conflict: other writers kept changing the alias.
    """

    def without(current: AliasState | None, _etag: str | None) -> AliasState | None:
        if current is None or current.version != version:
            return current
        target = version_before(current, registry.version_ids(models, model))
        return _following(alias, current, target, reason, rolled_back=version)

    return _change(models, model, alias, without)


def version_before(state: AliasState, known: Collection[str]) -> str | None:
    """Where a rollback goes: the last other version in the history that is still known and was not rolled back.

    A version counts as rolled back until the alias is set to it again by an ordinary change. None if there is none.
    """
    passed: set[str] = set()
    for change in reversed(state.history):
        if change.version not in (None, state.version) and change.version not in passed and change.version in known:
            return change.version
        passed |= {change.rolled_back} if change.rolled_back else set()
    return None


def _change(
    models: Store,
    model: str,
    alias: str,
    decide: Callable[[AliasState | None, str | None], Next],
    *,
    attempts: int = ATTEMPTS,
) -> Next:
    """Swap the alias's state for what ``decide`` makes of it and of its etag, until no other writer was quicker."""
    for _ in range(attempts):
        current, etag = read_alias(models, model, alias) or (None, None)
        state = decide(current, etag)
        if state is None or state is current or _swapped(models, model, state, etag):
            return state
    raise _changed_meanwhile(model, alias)


def _following(
    alias: str,
    current: AliasState | None,
    version: str | None,
    reason: str,
    *,
    rolled_back: str | None = None,
    canary: Canary | None = None,
) -> AliasState:
    """The state after one more change."""
    change = AliasChange(
        generation=current.generation + 1 if current else 1,
        nonce=secrets.token_hex(16),
        version=version,
        changed_at=utc_now(),
        reason=reason,
        rolled_back=rolled_back,
    )
    history = _kept((*(current.history if current else ()), change))
    return AliasState(alias=alias, history=history, canary=canary, **change.model_dump(exclude={"rolled_back"}))


def _kept(history: tuple[AliasChange, ...]) -> tuple[AliasChange, ...]:
    """The last changes, back to the one that a rollback needs."""
    live = history[-1].version
    others = (count for count, change in enumerate(reversed(history), 1) if change.version not in (None, live))
    return history[-min(max(HISTORY, next(others, 0)), LONGEST_HISTORY) :]


def _swapped(models: Store, model: str, state: AliasState, etag: str | None) -> bool:
    """Whether ``state`` took the place of the state with ``etag``."""
    key = _key(model, state.alias)
    try:
        models.compare_and_swap(key, sealed(state, key), etag=etag)
    except Conflict:
        found = read_alias(models, model, state.alias)
        return found is not None and state.history[-1] in found[0].history
    return True


def _states(models: Store, model: str) -> dict[str, AliasState]:
    """What each alias of a model says, by the alias's name, sorted."""
    registry.check_name("model", model)
    keys = sorted(stored.key for stored in models.listing(f"{model}/aliases"))
    names = [key.removesuffix(".json").rpartition("/")[2] for key in keys]
    return {alias: found[0] for alias in names if (found := read_alias(models, model, alias))}


def _pointed_at(models: Store, model: str, name: str) -> str:
    """The version that an alias, or ``NEWEST``, points at; it need not be complete."""
    if name == NEWEST and (known := registry.version_ids(models, model)):
        return max(known)
    found = None if name == NEWEST else read_alias(models, model, name)
    if found is None:
        raise registry.not_found(models, model, f"no version and no alias {name!r}")
    state, _ = found
    if state.version is None:
        raise NotFound(f"Alias {name!r} of model {model!r} points at no version: {state.reason}")
    return state.version


def _changed_meanwhile(model: str, alias: str) -> Conflict:
    return Conflict(
        f"Alias {alias!r} of model {model!r} was changed by another writer meanwhile: look at it with "
        f"`safelight models list {model}` and decide again."
    )


def _key(model: str, alias: str) -> str:
    registry.check_name("model", model)
    registry.check_name("alias", alias)
    return f"{model}/aliases/{alias}.json"
