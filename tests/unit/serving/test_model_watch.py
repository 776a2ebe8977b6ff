import logging

import pytest
import tiny_models
from live_server import MODEL, Registry, ReplicaByHand, wait_until
from obstore.store import MemoryStore
from pydantic import SecretStr

from pipeline.artifacts import ModelVersion
from pipeline.errors import StoreUnavailable
from pipeline.settings import Settings
from pipeline.store import Store, open_store


def replica_of(models: Registry, processes: int = 2, **settings: object) -> ReplicaByHand:
    """A replica that looks only when told to."""
    return ReplicaByHand(models.models, processes, **settings)


def alter(models: Registry, version: ModelVersion, data: bytes = b"other bytes") -> None:
    """Change a registered model under its manifest."""
    models.models.put(f"{MODEL}/{version.version}/model.onnx", data)


def test_before_any_model_there_is_a_reason(models: Registry) -> None:
    """Without an alias nothing is live, and the state says why."""
    replica = replica_of(models)
    replica.look()
    assert replica.version is None
    assert replica.error
    assert "no alias 'champion' yet" in replica.error.reason


def test_it_follows_the_alias(models: Registry) -> None:
    """Each look brings the version that the alias points at, and no error."""
    replica = replica_of(models)
    for seed in (1, 2, 1):
        version = models.register(seed)
        models.point_at(version)
        replica.look()
        assert replica.version == version.version
        assert replica.error is None


def test_a_look_at_an_unchanged_alias_loads_nothing(models: Registry) -> None:
    """The very same loaded model stays."""
    models.point_at(models.register(1))
    replica = replica_of(models)
    replica.look()
    before = replica.participants[0].live_now()
    replica.look()
    assert replica.participants[0].live_now() is before


def test_an_alias_that_points_at_nothing_takes_the_model_away(models: Registry) -> None:
    """A withdrawn first version answers no more."""
    models.point_at(models.register(1))
    replica = replica_of(models)
    replica.look()
    models.point_at(None)
    replica.look()
    assert replica.version is None


def test_an_alias_that_vanished_does_not(models: Registry) -> None:
    """Nobody decided that: the model goes on answering, and the state says what is wrong."""
    version = models.register(1)
    models.point_at(version)
    replica = replica_of(models)
    replica.look()
    models.models.delete([f"{MODEL}/aliases/champion.json"])
    replica.look()
    assert replica.version == version.version
    assert replica.error


def test_altered_bytes_never_go_live(models: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """The old model stays, the error names the new version, and it is logged once, not at every look."""
    good, bad = models.register(1), models.register(2)
    models.point_at(good)
    replica = replica_of(models)
    replica.look()
    alter(models, bad)
    models.point_at(bad)
    with caplog.at_level(logging.WARNING, "serving"):
        for _ in range(5):
            replica.look()
    assert replica.version == good.version
    assert replica.error
    assert replica.error.version == bad.version
    assert "was altered" in replica.error.reason
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
    replica = replica_of(models)
    replica.look()
    assert replica.error
    assert replica.error.version is None
    models.models.away = False  # type: ignore[attr-defined]
    wait_until(lambda: (replica.look(), replica.version == version.version)[1])


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
    replica = replica_of(models)
    models.point_at(good)
    replica.look()
    models.point_at(bad)
    replica.look()
    assert replica.version == good.version
    assert replica.error
    assert replica.error.version == bad.version


def test_a_version_that_failed_is_tried_again_later(models: Registry) -> None:
    """Repaired in the store, it goes live by itself; in between it is not loaded at every look."""
    good, bad = models.register(1), models.register(2)
    whole = models.models.get(f"{MODEL}/{bad.version}/model.onnx")
    replica = replica_of(models)
    models.point_at(good)
    replica.look()
    alter(models, bad)
    models.point_at(bad)
    replica.look()
    alter(models, bad, whole)
    replica.look()
    assert replica.version == good.version
    wait_until(lambda: (replica.look(), replica.version == bad.version)[1])
    assert replica.error is None


def test_another_version_is_not_kept_waiting_by_a_bad_one(models: Registry) -> None:
    """After a failure, an alias that points elsewhere is followed at the next look."""
    good, bad = models.register(1), models.register(2)
    replica = replica_of(models, poll_s=60)
    alter(models, bad)
    models.point_at(bad)
    replica.look()
    models.point_at(good)
    replica.look()
    assert replica.version == good.version
    assert replica.error is None


def test_a_pinned_version_stays(models: Registry) -> None:
    """A server that is pinned to a version does not follow the alias."""
    pinned, other = models.register(1), models.register(2)
    models.point_at(other)
    replica = replica_of(models, version=pinned.version)
    replica.look()
    assert replica.version == pinned.version


def test_a_store_that_cannot_be_reached_is_told() -> None:
    """Without a store there is no model, no crash, and a reason."""
    key = SecretStr("unused")
    settings = Settings(
        s3_endpoint="http://127.0.0.1:9", s3_access_key_id=key, s3_secret_access_key=key, store_patience_s=0
    )
    replica = ReplicaByHand(open_store("s3://nowhere/models", settings))
    replica.look()
    assert replica.version is None
    assert replica.error
    assert "does not answer" in replica.error.reason


def test_it_looks_by_itself_until_it_is_stopped(models: Registry) -> None:
    """Started, it follows without being told; stopped, it does so no more."""
    first, second = models.register(1), models.register(2)
    replica = replica_of(models)
    for each in (*replica.participants, replica.watch):
        each.start()
    models.point_at(first)
    wait_until(lambda: set(replica.versions()) == {first.version})
    for each in (*replica.participants, replica.watch):
        each.stop()
    models.point_at(second)
    with pytest.raises(AssertionError):
        wait_until(lambda: second.version in replica.versions(), timeout_s=0.5)
