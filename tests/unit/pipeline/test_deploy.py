import pytest
import tiny_models

from pipeline import aliases
from pipeline.artifacts import Deployment, ModelVersion
from pipeline.deploy import deploy, summary
from pipeline.errors import InvalidSettings
from pipeline.settings import Settings
from pipeline.store import open_store
from pipeline.zones import Zones


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://host:port", "host:8080"])
def test_a_bad_url_of_the_server_is_refused_first(url: str) -> None:
    """It is named before anything is read or moved."""
    nothing = open_store("memory:///", Settings())
    zones = Zones(nothing, nothing, nothing, nothing, nothing)
    version = tiny_models.register(nothing, nothing, "shapes", 1)
    with pytest.raises(InvalidSettings, match="SAFELIGHT_INFERENCE_URL"):
        deploy(zones, Settings(inference_url=url), version)
    assert aliases.read_alias(nothing, "shapes", aliases.CHAMPION) is None


def test_under_target_docker_the_gateway_has_to_be_named() -> None:
    """Before anything is read, or an engine asked."""
    nothing = open_store("memory:///", Settings())
    zones = Zones(nothing, nothing, nothing, nothing, nothing)
    version = ModelVersion(model="shapes", version="20260101T000000Z-00000000")
    with pytest.raises(InvalidSettings, match="SAFELIGHT_INFERENCE_URL is not set: under target docker"):
        deploy(zones, Settings(deploy_target="docker", docker_project="shop"), version)


def test_a_deployment_says_how_many_answer() -> None:
    """In a line; one replica is not counted."""
    version = ModelVersion(model="shapes", version="20260101T000000Z-00000000")
    one = Deployment(model_version=version, url="http://gateway", smoke_images=32)
    assert summary(one) == "shapes 20260101T000000Z-00000000 answers at http://gateway."
    three = one.model_copy(update={"replicas": 3})
    assert summary(three).endswith("at http://gateway, all 3 replicas of it.")
