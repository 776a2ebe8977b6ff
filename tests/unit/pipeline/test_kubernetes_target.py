"""Which cluster a deployment talks to, and what is refused before it talks to any."""

from pathlib import Path

import pytest
import yaml

from pipeline import kubernetes_target
from pipeline.artifacts import CanaryConfig, ModelVersion
from pipeline.deploy import deploy
from pipeline.errors import InvalidSettings
from pipeline.settings import Settings
from pipeline.store import open_store
from pipeline.zones import Zones

VERSION = ModelVersion(model="shapes", version="20260101T000000Z-00000000")
SETTINGS = Settings(deploy_target="kubernetes", inference_url="http://serving:8080")


def kubeconfig(file: Path, **context: str) -> str:
    """A file that names a cluster."""
    described = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", **context}}],
    }
    file.write_text(yaml.safe_dump(described))
    return str(file)


@pytest.mark.parametrize(
    ("context", "settings", "place"),
    [
        ({}, SETTINGS, ("default", "serving")),
        ({"namespace": "shop"}, SETTINGS, ("shop", "serving")),
        (
            {"namespace": "shop"},
            SETTINGS.model_copy(update={"kubernetes_namespace": "other", "kubernetes_deployment": "pets"}),
            ("other", "pets"),
        ),
    ],
)
def test_the_deployment_is_the_one_that_is_named(
    context: dict[str, str],
    settings: Settings,
    place: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the settings, else in the kubeconfig's namespace; nothing is asked for that."""
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", **context))
    with kubernetes_target.opened(settings, 0) as target:
        assert (target.namespace, target.name) == place
        assert target.apps.api_client.configuration.host == "https://127.0.0.1:1"


@pytest.mark.parametrize("content", [None, "", "clusters: [", "a: b"])
def test_without_a_cluster_it_says_so(content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, an empty one, or one that is none."""
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with (
        pytest.raises(InvalidSettings, match="DEPLOY_TARGET=kubernetes: no cluster is named"),
        kubernetes_target.opened(SETTINGS, 0),
    ):
        pass


def test_a_service_is_needed_and_a_canary_is_not_offered() -> None:
    """Before anything is read, or a cluster asked."""
    nothing = open_store("memory:///", Settings())
    zones = Zones(nothing, nothing, nothing, nothing, nothing)
    with pytest.raises(InvalidSettings, match="INFERENCE_URL is not set: under target kubernetes it is the Service's"):
        deploy(zones, Settings(deploy_target="kubernetes"), VERSION)
    with pytest.raises(InvalidSettings, match="DEPLOY_TARGET=kubernetes: its containers have one version each"):
        deploy(zones, SETTINGS, VERSION, ramp=CanaryConfig())
