import logging
import os
import time
from pathlib import Path

import pytest
import tiny_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import MODEL, Registry

from pipeline.errors import Corrupted
from serving.board import nameless_file
from serving.model_cache import ABANDONED_S, ModelCache
from serving.model_files import ModelFile, Shelf
from serving.settings import ServingSettings

OWN = ServingSettings(model=MODEL)
URL = "s3://bucket/models"


@pytest.fixture
def model(models: Registry) -> ModelFile:
    """Version 1."""
    return ModelFile.fetched(models.models, MODEL, models.register(1).version)


@pytest.mark.parametrize("start", [0, 7])
def test_what_was_written_is_read(model: ModelFile, start: int) -> None:
    """Manifest and bytes come back, from wherever they were put."""
    file = nameless_file("test")
    model.write(file, start)
    assert ModelFile.read(file, start) == model


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_other_bytes_are_refused(model: ModelFile, data: st.DataObject) -> None:
    """One flipped bit anywhere, or a missing end: it is not a model file any more."""
    file = nameless_file("test")
    model.write(file)
    at = data.draw(st.integers(0, os.fstat(file).st_size - 1))
    if data.draw(st.booleans()):
        os.pwrite(file, bytes([os.pread(file, 1, at)[0] ^ 1 << data.draw(st.integers(0, 7))]), at)
    else:
        os.ftruncate(file, at)
    with pytest.raises(Corrupted):
        ModelFile.read(file)
    os.close(file)


def test_a_shelf_is_shared_by_its_descriptors(models: Registry, model: ModelFile) -> None:
    """What is put through one is read through the other; a cleared file holds nothing."""
    one = Shelf.new()
    other = Shelf(one.files)
    second = ModelFile.fetched(models.models, MODEL, models.register(2).version)
    one.put(0, second)
    one.put(1, second)
    one.put(0, model)
    assert (other.read(0), other.read(1)) == (model, second)
    one.clear(0)
    with pytest.raises(Corrupted):
        other.read(0)


def cache(folder: Path | None, own: ServingSettings = OWN, url: str = URL) -> ModelCache:
    """The cache of a server."""
    return ModelCache(folder, url, own)


def test_the_last_model_is_kept(tmp_path: Path, models: Registry, model: ModelFile) -> None:
    """One file, replaced by the next version; another server reads it."""
    second = ModelFile.fetched(models.models, MODEL, models.register(2).version)
    folder = tmp_path / "made" / "for it"
    for each in (model, second):
        cache(folder).keep(each)
        assert cache(folder).read() == each
    assert [path.name for path in folder.iterdir()] == ["shapes@champion.model"]


def test_without_a_folder_nothing_is_kept(model: ModelFile) -> None:
    """Off by default."""
    off = cache(None)
    off.keep(model)
    off.forget()
    assert off.read() is None


def test_a_cache_is_one_models_one_aliass_and_one_stores(tmp_path: Path, model: ModelFile) -> None:
    """What was kept of something else is not found, or not believed."""
    cache(tmp_path).keep(model)
    assert cache(tmp_path, ServingSettings(model=MODEL, alias="challenger")).read() is None
    assert cache(tmp_path, ServingSettings(model="cats")).read() is None
    assert cache(tmp_path, url="s3://other/models").read() is None
    (tmp_path / "shapes@champion.model").rename(tmp_path / "cats@champion.model")
    assert cache(tmp_path, ServingSettings(model="cats")).read() is None


def test_what_is_forgotten_does_not_come_back(tmp_path: Path, model: ModelFile) -> None:
    """Neither twice nor where nothing was."""
    kept = cache(tmp_path)
    kept.keep(model)
    kept.forget()
    kept.forget()
    assert kept.read() is None


def test_a_damaged_file_is_a_warning(tmp_path: Path, model: ModelFile, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as none, and the log names it, once."""
    kept = cache(tmp_path)
    kept.keep(model)
    path = tmp_path / "shapes@champion.model"
    for data in (path.read_bytes()[:-1], b"", b"\xff" * 50):
        path.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "serving"):
            damaged = cache(tmp_path)
            assert damaged.read() is None
            assert damaged.read() is None
        assert [str(path) in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("what", ["a file", "full"])
def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, model: ModelFile, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server goes on without its cache, and says so once."""
    folder = tmp_path / "cache"
    if what == "a file":
        folder.write_text("in the way")
    else:
        folder = Path("/dev/full")
    kept = cache(folder)
    with caplog.at_level(logging.WARNING, "serving"):
        kept.keep(model)
        kept.keep(model)
    assert len(caplog.records) == 1
    assert "cannot keep the last model" in caplog.records[0].message
    kept.read()


def test_what_a_killed_process_left_is_removed(tmp_path: Path, model: ModelFile) -> None:
    """A partial file that nobody finishes goes with the next version; one that another replica is writing stays."""
    old, new = tmp_path / "shapes@champion.model1.partial", tmp_path / "shapes@champion.model2.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * ABANDONED_S
    os.utime(old, (long_ago, long_ago))
    cache(tmp_path).keep(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shapes@champion.model", new.name]


def test_a_model_of_the_store_is_verified(models: Registry) -> None:
    """Bytes that are not the manifest's are not fetched."""
    version = models.register(1)
    models.models.put(f"{MODEL}/{version.version}/model.onnx", tiny_models.linear_onnx(tiny_models.DATASET, 2))
    with pytest.raises(Corrupted):
        ModelFile.fetched(models.models, MODEL, version.version)
