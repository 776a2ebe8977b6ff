import pytest
import tiny_models

from pipeline import aliases
from pipeline.artifacts import CanaryConfig, Deployment, ModelVersion, utc_now
from pipeline.deploy import deploy, summary, target
from pipeline.errors import InvalidSettings, NotFound
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


def test_under_target_docker_there_is_no_canary() -> None:
    """Each of its containers has one version: refused before anything is read or moved."""
    nothing = open_store("memory:///", Settings())
    zones = Zones(nothing, nothing, nothing, nothing, nothing)
    version = ModelVersion(model="shapes", version="20260101T000000Z-00000000")
    settings = Settings(deploy_target="docker", docker_project="shop", inference_url="http://gateway:8080")
    with pytest.raises(InvalidSettings, match="DEPLOY_TARGET=docker: its containers have one version each"):
        deploy(zones, settings, version, ramp=CanaryConfig())


def test_which_version_is_deployed() -> None:
    """The champion; with a canary the one that is under way, else the alias that the quality gate has set for it."""
    models = open_store("memory:///", Settings())
    one, two, three = (tiny_models.register(models, models, "shapes", number) for number in (1, 2, 3))
    aliases.set_alias(models, "shapes", aliases.CHAMPION, one.version, reason="live")
    with pytest.raises(NotFound, match="'challenger'"):
        target(models, "shapes", None, by_canary=True)
    aliases.set_alias(models, "shapes", aliases.CHALLENGER, two.version, reason="promoted")
    assert target(models, "shapes", None, by_canary=False) == one
    assert target(models, "shapes", None, by_canary=True) == two
    canary = aliases.Canary(challenger=three.version, share=0.1, started_at=utc_now())
    aliases.set_canary(models, "shapes", aliases.CHAMPION, canary, reason="by hand")
    assert target(models, "shapes", None, by_canary=True) == three
    assert target(models, "shapes", two.version, by_canary=True) == two


def test_a_deployment_says_how_many_answer() -> None:
    """In a line; one replica is not counted."""
    version = ModelVersion(model="shapes", version="20260101T000000Z-00000000")
    one = Deployment(model_version=version, url="http://gateway", smoke_images=32)
    assert summary(one) == "shapes 20260101T000000Z-00000000 answers at http://gateway."
    three = one.model_copy(update={"replicas": 3})
    assert summary(three).endswith("at http://gateway, all 3 replicas of it.")
