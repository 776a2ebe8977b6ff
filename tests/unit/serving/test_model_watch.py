import logging

import pytest
import tiny_models
from live_server import MODEL, Registry, wait_until
from obstore.store import MemoryStore
from pydantic import SecretStr

from pipeline.artifacts import ModelVersion
from pipeline.errors import StoreUnavailable
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from serving.model_watch import ModelWatch
from serving.settings import ServingSettings

POLL_S = 0.05


def watch(models: Registry, **settings: object) -> ModelWatch:
    """A watch that looks only when told to."""
    return ModelWatch(models.models, ServingSettings.model_validate({"model": MODEL, "poll_s": POLL_S, **settings}))


def version_at(watching: ModelWatch) -> str | None:
    """The version that answers."""
    live = watching.state.live
    return live.manifest.version if live else None


def alter(models: Registry, version: ModelVersion, data: bytes = b"other bytes") -> None:
    """Change a registered model under its manifest."""
    models.models.put(f"{MODEL}/{version.version}/model.onnx", data)


def test_before_any_model_there_is_a_reason(models: Registry) -> None:
    """Without an alias nothing is live, and the state says why."""
    watching = watch(models)
    watching.look()
    assert version_at(watching) is None
    assert watching.state.error
    assert "no alias 'champion' yet" in watching.state.error.reason


def test_it_follows_the_alias(models: Registry) -> None:
    """Each look brings the version that the alias points at, and no error."""
    watching = watch(models)
    for seed in (1, 2, 1):
        version = models.register(seed)
        models.point_at(version)
        watching.look()
        assert version_at(watching) == version.version
        assert watching.state.error is None


def test_a_look_at_an_unchanged_alias_loads_nothing(models: Registry) -> None:
    """The very same loaded model stays."""
    models.point_at(models.register(1))
    watching = watch(models)
    watching.look()
    before = watching.state.live
    watching.look()
    assert watching.state.live is before


def test_an_alias_that_points_at_nothing_takes_the_model_away(models: Registry) -> None:
    """A withdrawn first version answers no more."""
    models.point_at(models.register(1))
    watching = watch(models)
    watching.look()
    models.point_at(None)
    watching.look()
    assert version_at(watching) is None


def test_an_alias_that_vanished_does_not(models: Registry) -> None:
    """Nobody decided that: the model goes on answering, and the state says what is wrong."""
    version = models.register(1)
    models.point_at(version)
    watching = watch(models)
    watching.look()
    models.models.delete([f"{MODEL}/aliases/champion.json"])
    watching.look()
    assert version_at(watching) == version.version
    assert watching.state.error


def test_altered_bytes_never_go_live(models: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """The old model stays, the error names the new version, and it is logged once, not at every look."""
    good, bad = models.register(1), models.register(2)
    models.point_at(good)
    watching = watch(models)
    watching.look()
    alter(models, bad)
    models.point_at(bad)
    with caplog.at_level(logging.WARNING, "serving"):
        for _ in range(5):
            watching.look()
    assert version_at(watching) == good.version
    assert watching.state.error
    assert watching.state.error.version == bad.version
    assert "was altered" in watching.state.error.reason
    assert len(caplog.records) == 1


class Flickering(Store):
    """A store that goes away before a model is read."""

    away = True

    def get(self, key: str) -> bytes:
        """The bytes under ``key``."""
        if self.away and key.endswith("model.onnx"):
            raise StoreUnavailable("the store is away.")
        return super().get(key)


def test_a_store_that_goes_away_says_nothing_against_a_version() -> None:
    """A version that could not be read for an outage is not the one blamed, and is loaded at the next look."""
    models = Registry(Store(MemoryStore(), "memory:"), Flickering(MemoryStore(), "memory:"))
    version = models.register(1)
    models.point_at(version)
    watching = watch(models)
    watching.look()
    assert watching.state.error
    assert watching.state.error.version is None
    models.models.away = False  # type: ignore[attr-defined]
    watching.look()
    assert version_at(watching) == version.version


@pytest.mark.parametrize(
    "onnx_file",
    [
        b"not a model",
        tiny_models.linear_onnx(tiny_models.DATASET.model_copy(update={"classes": ("a", "b")}), 1),
        tiny_models.linear_onnx(
            tiny_models.DATASET.model_copy(
                update={"pixels": tiny_models.DATASET.pixels.model_copy(update={"width": 11})}
            ),
            1,
        ),
    ],
    ids=["no model", "other classes", "other pixels"],
)
def test_a_model_that_cannot_answer_never_goes_live(models: Registry, onnx_file: bytes) -> None:
    """A registered file that is no model, or not of these classes and pixels, leaves the old model alone."""
    good, bad = models.register(1), models.register(2, onnx_file=onnx_file)
    watching = watch(models)
    models.point_at(good)
    watching.look()
    models.point_at(bad)
    watching.look()
    assert version_at(watching) == good.version
    assert watching.state.error
    assert watching.state.error.version == bad.version


def test_a_version_that_failed_is_tried_again_later(models: Registry) -> None:
    """Repaired in the store, it goes live by itself; in between it is not loaded at every look."""
    good, bad = models.register(1), models.register(2)
    whole = models.models.get(f"{MODEL}/{bad.version}/model.onnx")
    watching = watch(models)
    models.point_at(good)
    watching.look()
    alter(models, bad)
    models.point_at(bad)
    watching.look()
    alter(models, bad, whole)
    watching.look()
    assert version_at(watching) == good.version
    wait_until(lambda: (watching.look(), version_at(watching) == bad.version)[1])
    assert watching.state.error is None


def test_another_version_is_not_kept_waiting_by_a_bad_one(models: Registry) -> None:
    """After a failure, an alias that points elsewhere is followed at the next look."""
    good, bad = models.register(1), models.register(2)
    watching = watch(models, poll_s=60)
    alter(models, bad)
    models.point_at(bad)
    watching.look()
    models.point_at(good)
    watching.look()
    assert version_at(watching) == good.version
    assert watching.state.error is None


def test_a_pinned_version_stays(models: Registry) -> None:
    """A server that is pinned to a version does not follow the alias."""
    pinned, other = models.register(1), models.register(2)
    models.point_at(other)
    watching = watch(models, version=pinned.version)
    watching.look()
    assert version_at(watching) == pinned.version


def test_a_store_that_cannot_be_reached_is_told() -> None:
    """Without a store there is no model, no crash, and a reason."""
    key = SecretStr("unused")
    settings = Settings(
        s3_endpoint="http://127.0.0.1:9", s3_access_key_id=key, s3_secret_access_key=key, store_patience_s=0
    )
    watching = ModelWatch(open_store("s3://nowhere/models", settings), ServingSettings(model=MODEL))
    watching.look()
    assert version_at(watching) is None
    assert watching.state.error
    assert "does not answer" in watching.state.error.reason


def test_it_looks_by_itself_until_it_is_stopped(models: Registry) -> None:
    """Started, it follows without being told; stopped, it does so no more."""
    first, second = models.register(1), models.register(2)
    watching = watch(models)
    watching.start()
    models.point_at(first)
    wait_until(lambda: version_at(watching) == first.version)
    watching.stop()
    models.point_at(second)
    with pytest.raises(AssertionError):
        wait_until(lambda: version_at(watching) == second.version, timeout_s=5 * POLL_S)
