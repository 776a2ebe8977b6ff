"""The registry on obstore's in-memory store; the races are in tests/integration/test_registry.py."""

import logging
from collections.abc import Callable

import pytest
from obstore.store import MemoryStore
from synthetic import memory_store
from tiny_models import evaluated, exported, refuse_inconsistent, register, training_run

from pipeline import aliases, registry
from pipeline.aliases import CHAMPION, NEWEST
from pipeline.artifacts import ModelVersion
from pipeline.errors import Corrupted, InvalidInput, NotFound
from pipeline.store import Store

A = "20261120T010203Z-00000000"
"""A version's id."""


def contents(store: Store) -> dict[str, bytes]:
    """Everything that a store holds."""
    return {stored.key: store.get(stored.key) for stored in store.listing()}


class KilledError(Exception):
    """In place of SIGKILL."""


class DyingStore(Store):
    """A store whose process dies at its ``lives``-th write, before or after that write went through."""

    def __init__(self, backend: MemoryStore, lives: int, *, after: bool) -> None:
        super().__init__(backend, "memory://zone")
        self.lives = lives
        self.after = after

    def write_once(self, key: str, data: bytes) -> bytes:
        """One write, perhaps the last."""
        self.lives -= 1
        if self.lives < 0 and not self.after:
            raise KilledError
        held = super().write_once(key, data)
        if self.lives < 0:
            raise KilledError
        return held


class TestRegister:
    """What a registration leaves in the store, whole or killed."""

    def test_the_manifest_tells_where_the_version_comes_from(self) -> None:
        """The manifest holds the dataset version, run, configuration, libraries, figures, code and parents."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run(start="weights/old.safetensors")
        made, report = exported(checkpoints, run), evaluated(checkpoints, run, accuracy=0.75)
        version = registry.register(checkpoints, models, "pets", made, report, code_revision="git:1234")
        manifest = registry.read_manifest(models, "pets", version.version)
        assert (manifest.dataset, manifest.config, manifest.training_run) == (run.dataset, run.config, run.id)
        assert (manifest.classes, manifest.pixels) == (run.dataset.classes, run.dataset.pixels)
        assert manifest.environment == {"torch": "2.14.1"}
        assert manifest.code_revision == "git:1234"
        assert manifest.parents == ("weights/old.safetensors",)
        assert manifest.metrics == {"accuracy": 0.75, "ece": 0.02, "parity_max_difference": 0.0, "parity_images": 3.0}
        refuse_inconsistent(models)

    def test_registering_again_changes_nothing(self) -> None:
        """A second registration returns the same version and leaves every byte as it was."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        first = registry.register(checkpoints, models, "pets", made, report, code_revision="git:1")
        before = contents(models)
        again = evaluated(checkpoints, run, accuracy=0.5, attempt=2)
        assert registry.register(checkpoints, models, "pets", made, again, code_revision="git:2") == first
        assert contents(models) == before

    def test_a_complete_version_needs_its_sources_no_more(self) -> None:
        """Registering again works after the checkpoints zone was cleaned."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        first = registry.register(checkpoints, models, "pets", made, report)
        assert registry.register(memory_store(), models, "pets", made, report) == first

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("lives", range(6))
    def test_killed_at_any_write_and_repeated(self, lives: int, after: bool) -> None:
        """Killed at each of its six writes, a registration leaves nothing visible, and its repetition one version."""
        checkpoints, backend = memory_store(), MemoryStore()
        models = memory_store(backend)
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        with pytest.raises(KilledError):
            registry.register(checkpoints, DyingStore(backend, lives, after=after), "pets", made, report)
        complete = lives == 5 and after
        assert bool(registry.models_in(models)) is complete
        registry.register(checkpoints, models, "pets", made, report)
        assert [manifest.version for manifest in registry.versions(models, "pets")] == [registry.version_id(made)]
        assert len(contents(models)) == 7  # its six files, and the lease of the model
        refuse_inconsistent(models)

    @pytest.mark.parametrize("lives", range(6))
    def test_two_evaluations_of_one_run(self, lives: int) -> None:
        """Where a killed registrar left files of another evaluation, the manifest tells of those that are stored."""
        checkpoints, backend = memory_store(), MemoryStore()
        models = memory_store(backend)
        run = training_run()
        made = exported(checkpoints, run)
        first, second = (evaluated(checkpoints, run, accuracy=0.1 * n, attempt=n) for n in (1, 2))
        with pytest.raises(KilledError):
            registry.register(checkpoints, DyingStore(backend, lives, after=False), "pets", made, first)
        registry.register(checkpoints, models, "pets", made, second)
        refuse_inconsistent(models)

    def test_an_incomplete_version_is_invisible(self) -> None:
        """A version without a manifest is neither listed nor resolved, and no alias can point at it."""
        checkpoints, backend = memory_store(), MemoryStore()
        models = memory_store(backend)
        complete = register(checkpoints, models, "pets", 1).version
        run = training_run(3)
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        with pytest.raises(KilledError):
            registry.register(checkpoints, DyingStore(backend, 5, after=False), "pets", made, report)
        lost = registry.version_id(made)
        assert models.head(f"pets/{lost}/model.onnx") is not None
        assert [manifest.version for manifest in registry.versions(models, "pets")] == [complete]
        assert aliases.resolve(models, "pets", NEWEST).version == complete
        for reader in (
            lambda: registry.read_manifest(models, "pets", lost),
            lambda: aliases.resolve(models, "pets", lost),
            lambda: aliases.set_alias(models, "pets", CHAMPION, lost, reason="no"),
        ):
            with pytest.raises(NotFound, match=f"no version '{lost}'; it has {complete}; see `safelight models list`"):
                reader()

    def test_the_id_depends_on_the_run_and_its_exported_files(self) -> None:
        """Another run or other weights give another version; the order of the files does not."""
        store = memory_store()
        made = exported(store, training_run())
        turned = made.model_copy(update={"files": dict(reversed(made.files.items()))})
        others = [exported(store, training_run(3)), exported(store, training_run(), b"other")]
        assert registry.version_id(made) == registry.version_id(turned)
        assert registry.version_id(made).startswith("20261122T000100Z-")
        assert len({registry.version_id(each) for each in (made, *others)}) == 3

    def test_another_runs_report_is_refused(self) -> None:
        """An export and a report of two runs are never registered together."""
        checkpoints, models = memory_store(), memory_store()
        made = exported(checkpoints, training_run())
        with pytest.raises(InvalidInput, match="export and evaluate the same run"):
            registry.register(checkpoints, models, "pets", made, evaluated(checkpoints, training_run(3)))
        assert contents(models) == {}

    def test_a_missing_file_is_named(self) -> None:
        """A report without its files is refused before anything is written."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run()
        bare = evaluated(checkpoints, run).model_copy(update={"files": {}})
        with pytest.raises(InvalidInput, match=r"lacks evaluation\.json, predictions\.parquet, report\.html"):
            registry.register(checkpoints, models, "pets", exported(checkpoints, run), bare)
        assert contents(models) == {}

    def test_an_altered_source_is_refused(self) -> None:
        """A checkpoint zone whose file was altered gives no version."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        checkpoints.put(made.files["model.onnx"].key, b"other")
        with pytest.raises(Corrupted):
            registry.register(checkpoints, models, "pets", made, report)
        assert registry.models_in(models) == []

    def test_foreign_bytes_under_the_exported_names_are_refused(self) -> None:
        """A version whose model file is not the exported one is not completed, and the sentence names the file."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        models.put(f"pets/{registry.version_id(made)}/model.onnx", b"foreign")
        with pytest.raises(Corrupted, match=r"model\.onnx does not hold the exported model"):
            registry.register(checkpoints, models, "pets", made, report)
        assert registry.models_in(models) == []

    def test_an_evaluation_without_figures_is_refused(self) -> None:
        """An evaluation whose accuracy is not a number makes no version."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run()
        report = evaluated(checkpoints, run, files={"evaluation.json": b'{"accuracy": NaN, "ece": 0.1}'})
        with pytest.raises(Corrupted, match="does not tell the accuracy"):
            registry.register(checkpoints, models, "pets", exported(checkpoints, run), report)

    @pytest.mark.parametrize("name", ["", "Cats", "../x", "a/b", "-a", "a" * 64, "café"])
    def test_a_bad_name_is_refused(self, name: str) -> None:
        """No reader or writer takes a name that could not be a part of a key."""
        checkpoints, models = memory_store(), memory_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        for use in (
            lambda: registry.register(checkpoints, models, name, made, report),
            lambda: aliases.resolve(models, name, CHAMPION),
            lambda: aliases.resolve(models, "pets", name),
            lambda: registry.versions(models, name),
            lambda: aliases.read_alias(models, "pets", name),
            lambda: aliases.set_alias(models, "pets", name, None, reason="no"),
        ):
            with pytest.raises(InvalidInput, match="use 1 to 63 of a-z"):
                use()


class TestReading:
    """What readers get, and what they are spared."""

    def test_versions_are_listed_newest_first(self) -> None:
        """Versions are ordered by the time at which training finished, and ``newest`` is the first."""
        checkpoints, models = memory_store(), memory_store()
        made = {register(checkpoints, models, "pets", day).version for day in (3, 1, 2)}
        assert [manifest.version for manifest in registry.versions(models, "pets")] == sorted(made, reverse=True)
        assert aliases.resolve(models, "pets", NEWEST) == ModelVersion(model="pets", version=max(made))

    def test_models_are_kept_apart(self) -> None:
        """A model whose name begins like another's does not show the other's versions."""
        checkpoints, models = memory_store(), memory_store()
        register(checkpoints, models, "pets", 1)
        register(checkpoints, models, "pets2", 2)
        models.put("store-check/scratch", b"not a model")
        assert registry.models_in(models) == ["pets", "pets2"]
        assert len(registry.versions(models, "pets")) == 1

    @pytest.mark.parametrize("name", sorted(registry.FILES))
    def test_an_altered_file_is_corrupted(self, name: str) -> None:
        """A file whose bytes changed after registration is never handed out."""
        checkpoints, models = memory_store(), memory_store()
        manifest = registry.read_manifest(models, "pets", register(checkpoints, models, "pets", 1).version)
        models.put(manifest.files[name].key, b"altered")
        with pytest.raises(Corrupted, match=name):
            registry.load_file(models, manifest, name)

    def test_a_file_that_no_version_has(self) -> None:
        """Asking for an unknown file names those that are there."""
        checkpoints, models = memory_store(), memory_store()
        manifest = registry.read_manifest(models, "pets", register(checkpoints, models, "pets", 1).version)
        with pytest.raises(NotFound, match=r"no file 'model\.pt'; it has evaluation\.json, model\.onnx"):
            registry.load_file(models, manifest, "model.pt")

    @pytest.mark.parametrize(
        "change", [lambda data: data[:-9], lambda data: data.replace(b'"format": 1', b'"format": 2')]
    )
    def test_an_altered_manifest_is_corrupted(
        self, change: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A manifest that cannot be read is an error by name; in a listing it is left out and told of in the log."""
        checkpoints, models = memory_store(), memory_store()
        good, bad = register(checkpoints, models, "pets", 1).version, register(checkpoints, models, "pets", 2).version
        key = f"pets/{bad}/manifest.json"
        models.put(key, change(models.get(key)))
        with pytest.raises(Corrupted, match="is no manifest of a model version"):
            registry.read_manifest(models, "pets", bad)
        with caplog.at_level(logging.WARNING):
            assert [manifest.version for manifest in registry.versions(models, "pets")] == [good]
        assert key in caplog.text

    def test_a_moved_manifest_is_corrupted(self) -> None:
        """A manifest that was copied below another version's folder is not taken for that version's."""
        checkpoints, models = memory_store(), memory_store()
        version = register(checkpoints, models, "pets", 1).version
        models.put(f"pets/{A}/manifest.json", models.get(f"pets/{version}/manifest.json"))
        with pytest.raises(Corrupted, match="altered or moved there"):
            registry.read_manifest(models, "pets", A)

    def test_unknown_names_come_with_the_known_ones(self) -> None:
        """What is not found is answered with what is there."""
        checkpoints, models = memory_store(), memory_store()
        with pytest.raises(NotFound, match="no model is registered yet; `safelight run`"):
            aliases.resolve(models, "pets", CHAMPION)
        made = sorted((register(checkpoints, models, "pets", day).version for day in range(1, 8)), reverse=True)
        with pytest.raises(NotFound, match="There is no model 'cats'; there are pets; see"):
            aliases.resolve(models, "cats", CHAMPION)
        with pytest.raises(NotFound, match=f"no alias 'champion'; it has {', '.join(made[:5])} and 2 more; see"):
            aliases.resolve(models, "pets", CHAMPION)
