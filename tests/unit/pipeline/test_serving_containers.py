from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import ModelVersion
from pipeline.serving_containers import (
    LONGEST_DEPLOYMENT_S,
    Blueprint,
    Container,
    blueprint,
    described,
    is_as_made,
    labels,
    named,
    outlived,
)

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
OLD, NEW, OTHER = (f"2026010{day}T000000Z-0000000{day}" for day in (1, 2, 3))
VERSION = ModelVersion(model="cats", version=NEW)


def pattern(number: int = 1, **config: Any) -> dict[str, Any]:
    """What the engine says of a container that compose made."""
    return {
        "Name": f"/shop-serving-{number}",
        "Image": "sha256:1",
        "Config": {
            "Hostname": f"{number}",
            "User": "10001",
            "Env": ["SAFELIGHT_SERVING_MODEL=cats", "SAFELIGHT_SERVING_ALIAS=champion", "SAFELIGHT_SERVING_VERSION=x"],
            "Cmd": ["serve"],
            "Entrypoint": ["true"],
            "Healthcheck": None,
            "StopTimeout": 40,
            "Labels": {"com.docker.compose.container-number": f"{number}"},
        }
        | config,
        "HostConfig": {"ReadonlyRootfs": True, "PortBindings": {"8080/tcp": []}, "RestartPolicy": {"Name": "no"}},
        "NetworkSettings": {"Networks": {"shop_default": {}, "back": {}}},
    }


def container(name: str = "one", **different: Any) -> Container:
    """One that is live."""
    made: dict[str, Any] = {
        "name": name,
        "identity": "0" * 12,
        "version": OLD,
        "generation": 1,
        "created": NOW,
        "state": "running",
        "networks": ("back", "shop_default"),
        "addresses": ("10.0.0.1",),
        "takes_requests": True,
        "ending": "status 0",
    }
    return Container(**made | different)


def test_a_container_is_made_like_composes_but_pinned_to_a_version() -> None:
    """All that compose was told, except the entrypoint that ends at once, published ports, and the alias."""
    plan = blueprint([pattern()], VERSION)
    assert plan.config == {
        "Cmd": ["serve"],
        "Env": ["SAFELIGHT_SERVING_MODEL=cats", f"SAFELIGHT_SERVING_VERSION={NEW}"],
        "HostConfig": {"ReadonlyRootfs": True, "PortBindings": {}, "RestartPolicy": {"Name": "no"}},
        "Image": "sha256:1",
        "StopTimeout": 40,
        "User": "10001",
    }
    assert (plan.networks, plan.port, plan.replicas) == (("back", "shop_default"), 8080, 1)


def test_all_patterns_give_one_blueprint_whichever_comes_first() -> None:
    """Their number is how many are wanted; what differs between them is nothing of a container's."""
    both = [pattern(1), pattern(2)]
    assert blueprint(both, VERSION) == blueprint(both[::-1], VERSION)
    assert blueprint(both, VERSION).replicas == 2
    assert blueprint(both, VERSION).identity == blueprint(both[:1], VERSION).identity


@pytest.mark.parametrize("changed", [{"User": "0"}, {"Env": ["SAFELIGHT_SERVING_PORT=81"]}, {"Cmd": ["other"]}])
def test_what_is_made_otherwise_has_another_name(changed: dict[str, Any]) -> None:
    """So that containers of an older image or configuration are never taken for what is wanted."""
    before, after = blueprint([pattern()], VERSION), blueprint([pattern(**changed)], VERSION)
    assert not set(named("shop", VERSION, before)) & set(named("shop", VERSION, after))
    other = ModelVersion(model="cats", version=OTHER)
    assert blueprint([pattern()], other).identity != before.identity


def test_the_port_is_the_one_that_compose_says() -> None:
    """8080 where it says nothing."""
    assert blueprint([pattern(Env=["SAFELIGHT_SERVING_PORT=81"])], VERSION).port == 81


def inspected(plan: Blueprint, *, aliases: list[str] | None, address: str = "10.0.0.7") -> dict[str, Any]:
    """What the engine says of a container of ours."""
    network = {"IPAddress": address, "GlobalIPv6Address": "", "Aliases": aliases}
    return {
        "Name": f"/{named('shop', VERSION, plan)[0]}",
        "Created": "2026-11-22T09:00:00.123456789Z",
        "Config": {"Labels": labels("shop", VERSION, plan, 1, 4)},
        "State": {"Status": "running", "OOMKilled": False, "ExitCode": 0},
        "NetworkSettings": {"Networks": {"shop_default": network}},
    }


def test_a_container_is_known_again_by_its_labels() -> None:
    """What was written into the labels is read back; it takes requests under the gateway's name alone."""
    plan = blueprint([pattern()], VERSION)
    found = described(inspected(plan, aliases=["serving", "abc"]))
    assert found == Container(
        name=named("shop", VERSION, plan)[0],
        identity=plan.identity,
        version=NEW,
        generation=4,
        created=NOW,
        state="running",
        networks=("shop_default",),
        addresses=("10.0.0.7",),
        takes_requests=True,
        ending="status 0",
    )
    for none in (None, [], ["abc"]):
        assert not described(inspected(plan, aliases=none)).takes_requests
    assert described(inspected(plan, aliases=None, address="")).addresses == ()


def test_one_that_was_taken_off_its_networks_is_not_as_it_was_made() -> None:
    """Nor is one that ended; one that was only created needs nothing but to be started."""
    plan = blueprint([pattern()], VERSION)
    assert is_as_made(container(), plan)
    assert is_as_made(container(state="created", addresses=()), plan)
    assert not is_as_made(container(networks=("back",)), plan)
    assert not is_as_made(container(state="exited"), plan)
    assert not is_as_made(container(state="restarting"), plan)


def gone(*found: Container, kept: tuple[str, ...] = ()) -> list[str]:
    """The names of those that have to go where the alias is at NEW since generation 5."""
    return [each.name for each in outlived(found, kept, NEW, 5, NOW)]


def test_predecessors_and_losers_go_and_later_comers_stay() -> None:
    """Whatever was made before the alias said what it says; a candidate since then may still win, but not for ever."""
    long_ago = NOW - timedelta(seconds=LONGEST_DEPLOYMENT_S + 1)
    assert gone(container("predecessor", generation=4)) == ["predecessor"]
    assert gone(container("loser", version=OTHER, generation=4, takes_requests=False)) == ["loser"]
    assert gone(container("contender", version=OTHER, generation=5, takes_requests=False)) == []
    assert gone(container("left", version=OTHER, generation=5, takes_requests=False, created=long_ago)) == ["left"]
    assert gone(container("winner", version=OTHER, generation=5, created=long_ago)) == []


def test_of_the_same_version_only_what_is_kept_stays() -> None:
    """Surplus ones and those made otherwise go, whenever they were made."""
    both = (container("kept", version=NEW, generation=9), container("surplus", version=NEW, generation=9))
    assert gone(*both, kept=("kept",)) == ["surplus"]


@given(st.lists(st.tuples(st.sampled_from([OLD, NEW, OTHER]), st.integers(1, 8), st.booleans(), st.booleans())))
def test_what_is_kept_never_goes(drawn: list[tuple[str, int, bool, bool]]) -> None:
    """And of two deployments at once, each with its own containers, never do both remove the other's."""
    found = [
        container(str(number), version=version, generation=generation, takes_requests=live)
        for number, (version, generation, live, _) in enumerate(drawn)
    ]
    kept = [str(number) for number, each in enumerate(drawn) if each[3]]
    assert not {each.name for each in outlived(found, kept, NEW, 5, NOW)} & set(kept)
    mine = [each for each in found if each.version == NEW and each.generation < 5]
    theirs = [each for each in found if each.version == OTHER and each.generation == 5]
    removed_by_me = outlived(theirs, [each.name for each in mine], NEW, 5, NOW)
    assert removed_by_me == []
    assert outlived(mine, [each.name for each in theirs], OTHER, 6, NOW) == mine
