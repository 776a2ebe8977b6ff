"""Target ``docker`` on a real engine: containers of a new version take over from those of the old one."""

import json
import os
import signal
import time

from e2e.docker_stack import MODEL, SERVICES, Target
from e2e.stack import wait_until
from e2e.traffic import Traffic, traffic

from pipeline import aliases
from pipeline.artifacts import ModelVersion


def test_the_first_version_goes_live_as_compose_would_have_made_it(target: Target) -> None:
    """Same image, rights, limits, volumes and logs; pinned; started again by the engine; no secret to be seen."""
    assert target.answering() is None
    version = target.version()
    done = target.deploy(version)
    assert (done.target, done.replicas, done.url) == ("docker", 1, target.stack.gateway)
    assert target.champion() == target.answering() == version.version
    (made,) = target.containers()
    (pattern,) = (target.stack.inspect(each) for each in target.stack.containers("serving"))
    kept = {"RestartPolicy"}
    for name in pattern["HostConfig"].keys() - kept:
        assert made["HostConfig"][name] == pattern["HostConfig"][name], name
    assert made["HostConfig"]["ReadonlyRootfs"]
    assert made["HostConfig"]["CapDrop"] == ["ALL"]
    assert made["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert made["HostConfig"]["Memory"] > 0
    assert made["HostConfig"]["LogConfig"]["Config"]["max-size"]
    assert made["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert (made["Image"], made["Config"]["User"]) == (pattern["Image"], pattern["Config"]["User"])
    pinned = f"SAFELIGHT_SERVING_VERSION={version.version}"
    assert set(made["Config"]["Env"]) == {*pattern["Config"]["Env"], pinned}
    for secret in target.stack.credentials("serving"):
        assert secret not in json.dumps(made)


def test_no_request_fails_while_containers_take_over(target: Target, deployed: ModelVersion) -> None:
    """Clients that keep their connections and clients that do not: all answered, afterwards by the new one alone."""
    following = target.version()
    with traffic(target.stack.gateway, target.images()) as seen:
        time.sleep(1)
        target.deploy(following)
        done = time.monotonic()
        time.sleep(2)
    _all_is_well(seen, done, deployed, following)
    assert target.versions() == [following.version]


def _all_is_well(seen: Traffic, done: float, before: ModelVersion, after: ModelVersion) -> None:
    assert seen.failures == []
    assert {each.version for each in seen.answers} == {before.version, after.version}
    assert seen.versions_after(done) == {after.version}


def test_three_replicas_take_over_from_one_and_one_from_three(target: Target, deployed: ModelVersion) -> None:
    """As many as compose is told; the same version deployed again is enough, and no request fails."""
    with traffic(target.stack.gateway, target.images()) as seen:
        for count in (3, 1):
            target.stack.compose("up", "--detach", "--no-build", "--scale", f"serving={count}", *SERVICES)
            assert target.deploy(deployed).replicas == count
            assert target.versions() == [deployed.version] * count
    assert seen.failures == []
    assert {each.version for each in seen.answers} == {deployed.version}


def test_two_replicas_give_way_to_two_of_another_version(target: Target, deployed: ModelVersion) -> None:
    """A rollout as people have it who run more than one: every request is answered, by the old version or the new."""
    target.stack.compose("up", "--detach", "--no-build", "--scale", "serving=2", *SERVICES)
    assert target.deploy(deployed).replicas == 2
    following = target.version()
    with traffic(target.stack.gateway, target.images()) as seen:
        time.sleep(1)
        assert target.deploy(following).replicas == 2
        done = time.monotonic()
        time.sleep(2)
    _all_is_well(seen, done, deployed, following)
    assert target.versions() == [following.version] * 2
    target.stack.compose("up", "--detach", "--no-build", "--scale", "serving=1", *SERVICES)
    assert target.deploy(following).replicas == 1


def test_deploying_what_is_live_changes_nothing(target: Target, deployed: ModelVersion) -> None:
    """It is proven again, in the containers that are there."""
    before = target.ids()
    target.deploy(deployed)
    target.undisturbed(deployed, before)


def test_a_rollback_brings_the_old_version_back(target: Target, deployed: ModelVersion) -> None:
    """In containers of its own, by the alias that was moved first."""
    target.deploy(target.version())
    state = aliases.rollback(target.zones.models, MODEL, aliases.CHAMPION, "a person said so")
    assert state.version == deployed.version
    began = time.monotonic()
    target.deploy(deployed)
    print(f"rolled back in {time.monotonic() - began:.1f} s")  # noqa: T201 - a figure
    assert target.answering() == deployed.version
    assert target.versions() == [deployed.version]


def test_a_container_that_dies_later_is_started_again(target: Target, deployed: ModelVersion) -> None:
    """Killed as by a lack of memory, it answers again without a deployment."""
    (container,) = target.ids()
    os.kill(target.stack.inspect(container)["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: target.stack.inspect(container)["RestartCount"] == 1, 30, "the engine did not start it again")
    wait_until(lambda: target.answering() == deployed.version, 30, "it did not answer again")


def test_down_takes_all_and_up_brings_what_was_live_back(target: Target, deployed: ModelVersion) -> None:
    """Compose removes the containers too; ``make-live``, a part of ``up``, deploys what the alias points at."""
    target.stack.compose("down", "--remove-orphans")
    assert target.containers() == []
    target.stack.compose("up", "--detach", "--no-build", *SERVICES)
    target.stack.compose("run", "--rm", "--no-deps", "-T", "make-live")
    assert target.answering() == deployed.version
    assert target.versions() == [deployed.version]
