"""A version goes live on a Deployment, and back: pinned and proven, undone by a failure, by a person, by the alias."""

import time

import pytest
from kube_serving import clients, settled, versions
from kube_target import MODEL, PICTURE, Target

from pipeline import aliases, deploy, revisions, rollout
from pipeline.artifacts import ModelVersion
from pipeline.errors import DeployFailed
from pipeline.progress import Progress


def test_versions_go_live_and_kubectl_takes_one_back(target: Target) -> None:
    """From no model at all; each version is a revision, named; what kubectl undoes, the next deployment copes with."""
    first, second = target.version(), target.version()
    done = target.deploy(first)
    assert (done.target, done.replicas, done.url) == ("kubernetes", 2, "http://serving:8080")
    assert target.champion() == target.pinned() == first.version
    settled(target.cluster)
    with clients(target.cluster, PICTURE) as seen:
        target.deploy(second)
        live = time.monotonic()
        time.sleep(1)
    assert seen.failures == []
    assert {each.version for each in seen.answers} == {first.version, second.version}
    assert seen.versions_after(live) == {second.version}
    settled(target.cluster)
    assert versions(target.cluster, MODEL) == [second.version] * 2
    history = target.kubectl("rollout", "history", "deployment/serving")
    assert all(f"version {each.version}" in history for each in (first, second))
    target.kubectl("rollout", "undo", "deployment/serving")
    target.kubectl("rollout", "status", "deployment/serving", "--timeout=60s")
    settled(target.cluster)
    assert versions(target.cluster, MODEL) == [first.version] * 2
    assert target.champion() == second.version
    aliases.rollback(target.zones.models, MODEL, aliases.CHAMPION, "kubectl did it")
    assert target.deploy(deploy.target(target.zones.models, MODEL, None, by_canary=False)).replicas == 2
    assert target.champion() == target.pinned() == first.version


def test_a_version_that_answers_otherwise_is_undone(target: Target, deployed: ModelVersion) -> None:
    """By the first replica that is wrong; the former ones go on answering, and every answer of theirs is right."""
    target.kubectl("scale", "deployment/serving", "--replicas=2")
    settled(target.cluster)
    before = {each["metadata"]["uid"] for each in target.cluster.objects("Pod")}
    bad = target.version(evaluated_as=999)
    with clients(target.cluster, PICTURE) as seen:
        with pytest.raises(DeployFailed, match="to the server and") as caught:
            target.deploy(bad)
        time.sleep(0.5)
    assert f"is back at version {deployed.version}, in all 2 replicas" in str(caught.value)
    assert f"alias 'champion' still points at {deployed.version}" in str(caught.value)
    assert seen.failures == []
    assert len(seen.labels(deployed.version)) == 1
    settled(target.cluster)
    assert versions(target.cluster, MODEL) == [deployed.version] * 2
    assert target.champion() == target.pinned() == deployed.version
    assert {each["metadata"]["uid"] for each in target.cluster.objects("Pod")} & before


def test_a_version_that_does_not_run_is_undone_with_its_last_words(target: Target, deployed: ModelVersion) -> None:
    """Long before the Deployment's deadline, and without the right to read logs."""
    bad = target.version()
    target.broken.add(bad.version)
    with pytest.raises(DeployFailed, match="the last that it said: this machine has no such instruction") as caught:
        target.deploy(bad)
    assert f"is back at version {deployed.version}" in str(caught.value)
    assert target.champion() == target.pinned() == deployed.version


def test_a_model_is_rolled_back_and_other_replicas_come_meanwhile(target: Target, deployed: ModelVersion) -> None:
    """The alias is moved back, then the Deployment; replicas that a scaler wants meanwhile are proven as well."""
    version = target.version()
    target.deploy(version)
    state = aliases.rollback(target.zones.models, MODEL, aliases.CHAMPION, "a person said so")
    assert state.version == deployed.version

    def scale(progress: Progress) -> None:
        if progress.done == 1:
            target.kubectl("scale", "deployment/serving", "--replicas=2")

    wanted = deploy.target(target.zones.models, MODEL, None, by_canary=False)
    assert target.deploy(wanted, on_progress=scale).replicas == 2
    assert target.champion() == target.pinned() == deployed.version


def test_replicas_of_a_cluster_follow_an_alias_as_well(target: Target, deployed: ModelVersion) -> None:
    """Without the pin, and asked by the headless Service's name, which stands for each of them."""
    target.kubectl("set", "env", "deployment/serving", "SAFELIGHT_SERVING_VERSION-")
    target.kubectl("scale", "deployment/serving", "--replicas=2")
    settled(target.cluster)
    following = target.settings.model_copy(
        update={"deploy_target": "follow", "inference_url": "http://serving-replicas:8080"}
    )
    version = target.version()
    done = deploy.deploy(target.zones, following, version, resolve=target.cluster.addresses)
    assert (done.replicas, target.champion()) == (2, version.version)
    assert versions(target.cluster, MODEL) == [version.version] * 2
    assert version.version != deployed.version


def test_where_pods_cannot_be_reached_the_service_is_asked(
    target: Target, deployed: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a laptop: Kubernetes says that they are ready, and the Service proves it."""
    monkeypatch.setattr(rollout, "UNREACHABLE_S", 1.0)
    monkeypatch.setattr(revisions, "addresses", lambda pods: ["127.0.0.9"] * len(pods))
    version = target.version()
    assert target.deploy(version).replicas == 1
    assert target.champion() == target.pinned() == version.version != deployed.version
