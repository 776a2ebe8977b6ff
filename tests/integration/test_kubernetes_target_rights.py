"""What a deployment to Kubernetes needs before it changes anything: its rights, a Deployment that can work, a token."""

from pathlib import Path

import kube_serving
import pytest
from kube_access import account
from kube_api import Cluster
from kube_objects import Object
from kube_target import MODEL, Target
from kubernetes import config

from pipeline import deploy, kubernetes_target
from pipeline.artifacts import ModelVersion
from pipeline.errors import InvalidSettings


def test_a_deployment_needs_every_right_of_its_role(
    target: Target, deployed: ModelVersion, subtests: pytest.Subtests
) -> None:
    """With each verb of each rule taken away it says what it may not do, and has changed nothing."""
    role = target.cluster.get("Role", "deploy")
    version = target.version()
    taken = [(number, verb) for number, rule in enumerate(role["rules"]) for verb in rule["verbs"]]
    assert len(taken) == 4
    for number, verb in taken:
        rule = role["rules"][number]
        with subtests.test(f"{verb} {rule['resources'][0]}"), pytest.MonkeyPatch.context() as patch:
            account = f"without-{number}-{verb}"
            _grant(target.cluster, account, role["rules"], number, verb)
            patch.setenv("KUBECONFIG", str(target.cluster.kubeconfig(account)))
            with pytest.raises(InvalidSettings, match=f"cannot {verb} resource .{rule['resources'][0]}"):
                target.deploy(version)
            assert target.pinned() == deployed.version


def _grant(cluster: Cluster, account: str, rules: list[Object], number: int, verb: str) -> None:
    """Let an account do what rules say, but for one verb of one of them."""
    kept = [dict(each) for each in rules]
    kept[number]["verbs"] = [each for each in kept[number]["verbs"] if each != verb]
    group = "rbac.authorization.k8s.io"
    common = {"apiVersion": f"{group}/v1", "metadata": {"name": account}}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": cluster.namespace}
    reference = {"apiGroup": group, "kind": "Role", "name": account}
    cluster.apply([
        {**common, "kind": "Role", "rules": [each for each in kept if each["verbs"]]},
        {**common, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
    ])  # fmt: skip


def test_a_deployment_that_cannot_work_is_refused_before_anything_happens(
    target: Target, deployed: ModelVersion, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """Paused, without a replica, without a container of that name, of another model, or not there at all."""
    monkeypatch.setenv("KUBECONFIG", str(target.cluster.kubeconfig()))
    for number, (why, how) in enumerate(
        {
            "is paused, so that nothing": {"paused": True},
            "is scaled to 0 replicas": {"replicas": 0},
            "has no container 'serving'": {"container": "web"},
            "serves model 'figures' and not 'shapes'": {"model": "figures"},
            "There is no Deployment": None,
        }.items()
    ):
        name = f"odd-{number}"
        with subtests.test(why):
            if how is not None:
                target.cluster.apply([_odd(name, **how)])
            settings = target.settings.model_copy(update={"kubernetes_deployment": name})
            with pytest.raises(InvalidSettings, match=why):
                deploy.deploy(target.zones, settings, deployed, timeout_s=5, resolve=target.cluster.addresses)
            if how is not None:
                target.cluster.delete("Deployment", name)


def _odd(
    name: str, *, paused: bool = False, replicas: int = 1, container: str = "serving", model: str = MODEL
) -> Object:
    env = [{"name": "SAFELIGHT_SERVING_MODEL", "value": model}]
    labels = {"app": name}
    pod = {"containers": [{"name": container, "image": "not:there", "env": env}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "paused": paused,
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def test_a_pod_deploys_with_its_own_token_in_its_own_namespace(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found where a cluster mounts it, before any kubeconfig."""
    own = target.cluster.access.token(account(target.cluster.namespace, kube_serving.DEPLOYER))
    for name, content in (("token", own), ("namespace", f"{target.cluster.namespace}\n")):
        (tmp_path / name).write_text(content)
    mounted = config.incluster_config
    monkeypatch.setattr(mounted, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(mounted, "SERVICE_CERT_FILENAME", str(target.cluster.authority))
    monkeypatch.setattr(kubernetes_target, "OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(target.cluster.api.port))
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with kubernetes_target.opened(target.settings, 1) as found:
        assert kubernetes_target.read(found)["metadata"]["name"] == "serving"
    (tmp_path / "token").write_text("of somebody else")
    with (
        kubernetes_target.opened(target.settings, 1) as found,
        pytest.raises(InvalidSettings, match="does not know who asks"),
    ):
        kubernetes_target.read(found)
