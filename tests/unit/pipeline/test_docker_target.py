import gc
import socket
from pathlib import Path

import pytest

from pipeline import docker_target
from pipeline.errors import InvalidSettings, LocalServiceFailed
from pipeline.settings import Settings

SETTINGS = Settings(docker_project="shop")


def refused(settings: Settings) -> None:
    """Open the target, which does not work."""
    with docker_target.opened(settings):
        pytest.fail("it opened")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_an_engine_that_is_away_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket at all, and one that nobody listens on: what to do is said."""
    path = tmp_path / "engine.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with pytest.raises(
        LocalServiceFailed, match=r"No Docker engine answers: mount its socket as docker-compose.docker"
    ):
        refused(SETTINGS)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        with pytest.raises(LocalServiceFailed, match="or set SAFELIGHT_DEPLOY_TARGET=follow"):
            refused(SETTINGS)
    gc.collect()  # the SDK leaves a socket that could not connect to the garbage collector


def test_a_project_has_to_be_named() -> None:
    """Before any engine is asked."""
    with pytest.raises(InvalidSettings, match="SAFELIGHT_DOCKER_PROJECT is not set"):
        refused(Settings())
