"""The registry on obstore's in-memory store; the races are in tests/integration/test_registry.py."""

import hashlib
import logging
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline import registry
from pipeline.artifacts import (
    DatasetVersion,
    EvaluationReport,
    ExportedModel,
    ModelVersion,
    PixelSpec,
    StoredFile,
    TrainConfig,
    TrainingRun,
)
from pipeline.errors import Conflict, Corrupted, InvalidInput, NotFound
from pipeline.registry import CHAMPION, NEWEST, AliasChange, AliasState
from pipeline.store import Store

NOW = datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)
A, B, C, D = (f"2026112{day}T010203Z-0000000{day}" for day in range(4))


def fresh_store() -> Store:
    """An empty store in memory."""
    return Store(MemoryStore(), "memory://zone", patience_s=0)


def put(store: Store, key: str, data: bytes) -> StoredFile:
    """``data`` stored, and its description."""
    store.put(key, data)
    return StoredFile(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def training_run(run: str = "a" * 16, *, finished_at: datetime = NOW, start: str | None = None) -> TrainingRun:
    """A finished run; nothing of it is stored."""
    return TrainingRun(
        id=run,
        dataset=DatasetVersion(
            dataset="pets",
            version="b" * 16,
            classes=("cat", "dog"),
            pixels=PixelSpec(height=8, width=8, channels=1),
            counts={"train": 8, "validation": 2, "test": 4},
        ),
        config=TrainConfig(starting_weights=start),
        checkpoint=f"{run}/best.json",
        history=(),
        exact=True,
        environment={"torch": "2.14.1"},
        finished_at=finished_at,
    )


def exported(checkpoints: Store, run: TrainingRun, weights: bytes = b"weights") -> ExportedModel:
    """An export whose files are stored."""
    files = {name: put(checkpoints, f"{run.id}/export/{name}", weights + name.encode()) for name in MODEL_FILES}
    return ExportedModel(training_run=run, files=files, parity={"max_difference": 1e-6, "images": 4.0})


def evaluated(checkpoints: Store, run: TrainingRun, *, accuracy: float = 0.75, attempt: str = "1") -> EvaluationReport:
    """An evaluation whose files are stored; another attempt has other files."""
    report = EvaluationReport(training_run=run, images=4, accuracy=accuracy, ece=0.1, classes=(), confusion=())
    contents = {
        "report.html": f"<p>attempt {attempt}".encode(),
        "evaluation.json": report.to_json(),
        "predictions.parquet": f"predictions {attempt}".encode(),
    }
    files = {name: put(checkpoints, f"{run.id}/{attempt}/{name}", data) for name, data in contents.items()}
    return report.model_copy(update={"files": files})


MODEL_FILES = ("model.onnx", "model.safetensors")


def register(checkpoints: Store, models: Store, run: str = "a" * 16, *, day: int = 22, name: str = "pets") -> str:
    """A registered version's id; another day gives another version."""
    found = training_run(run, finished_at=NOW.replace(day=day))
    made = exported(checkpoints, found, weights=str(day).encode())
    return registry.register(checkpoints, models, name, made, evaluated(checkpoints, found)).version


def contents(store: Store) -> dict[str, bytes]:
    """Everything that a store holds."""
    return {stored.key: store.get(stored.key) for stored in store.listing()}


def refuse_inconsistent(models: Store) -> None:
    """Each visible version's files are those that its manifest names, and so is its accuracy."""
    for model in registry.models_in(models):
        for manifest in registry.versions(models, model):
            assert set(manifest.files) == registry.FILES
            for name in manifest.files:
                registry.load_file(models, manifest, name)
            report = EvaluationReport.from_json(registry.load_file(models, manifest, "evaluation.json"))
            assert manifest.metrics["accuracy"] == report.accuracy


class KilledError(Exception):
    """In place of SIGKILL."""


class DyingStore(Store):
    """A store whose process dies at its ``lives``-th write, before or after that write went through."""

    def __init__(self, backend: MemoryStore, lives: int, *, after: bool) -> None:
        super().__init__(backend, "memory://zone", patience_s=0)
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
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run(start="weights/old.safetensors")
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        version = registry.register(checkpoints, models, "pets", made, report, code_revision="git:1234")
        manifest = registry.read_manifest(models, "pets", version.version)
        assert (manifest.dataset, manifest.config, manifest.training_run) == (run.dataset, run.config, run.id)
        assert (manifest.classes, manifest.pixels) == (run.dataset.classes, run.dataset.pixels)
        assert manifest.environment == {"torch": "2.14.1"}
        assert manifest.code_revision == "git:1234"
        assert manifest.parents == ("weights/old.safetensors",)
        assert manifest.metrics == {"accuracy": 0.75, "ece": 0.1, "parity_max_difference": 1e-6, "parity_images": 4.0}
        refuse_inconsistent(models)

    def test_registering_again_changes_nothing(self) -> None:
        """A second registration returns the same version and leaves every byte as it was."""
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        first = registry.register(checkpoints, models, "pets", made, report, code_revision="git:1")
        before = contents(models)
        again = evaluated(checkpoints, run, accuracy=0.5, attempt="2")
        assert registry.register(checkpoints, models, "pets", made, again, code_revision="git:2") == first
        assert contents(models) == before

    def test_a_complete_version_needs_its_sources_no_more(self) -> None:
        """Registering again works after the checkpoints zone was cleaned."""
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        first = registry.register(checkpoints, models, "pets", made, report)
        assert registry.register(fresh_store(), models, "pets", made, report) == first

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("lives", range(6))
    def test_killed_at_any_write_and_repeated(self, lives: int, after: bool) -> None:
        """Killed at each of its six writes, a registration leaves nothing visible, and its repetition one version."""
        checkpoints, backend = fresh_store(), MemoryStore()
        models = Store(backend, "memory://zone", patience_s=0)
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        with pytest.raises(KilledError):
            registry.register(checkpoints, DyingStore(backend, lives, after=after), "pets", made, report)
        complete = lives == 5 and after
        assert bool(registry.models_in(models)) is complete
        registry.register(checkpoints, models, "pets", made, report)
        assert [manifest.version for manifest in registry.versions(models, "pets")] == [registry.version_id(made)]
        assert len(contents(models)) == 6
        refuse_inconsistent(models)

    @pytest.mark.parametrize("lives", range(6))
    def test_two_evaluations_of_one_run(self, lives: int) -> None:
        """Where a killed registrar left files of another evaluation, the manifest tells of those that are stored."""
        checkpoints, backend = fresh_store(), MemoryStore()
        models = Store(backend, "memory://zone", patience_s=0)
        run = training_run()
        made = exported(checkpoints, run)
        first, second = (evaluated(checkpoints, run, accuracy=0.1 * n, attempt=str(n)) for n in (1, 2))
        with pytest.raises(KilledError):
            registry.register(checkpoints, DyingStore(backend, lives, after=False), "pets", made, first)
        registry.register(checkpoints, models, "pets", made, second)
        refuse_inconsistent(models)

    def test_an_incomplete_version_is_invisible(self) -> None:
        """A version without a manifest is neither listed nor resolved, and no alias can point at it."""
        checkpoints, backend = fresh_store(), MemoryStore()
        models = Store(backend, "memory://zone", patience_s=0)
        complete = register(checkpoints, models, day=1)
        run = training_run("c" * 16)
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        with pytest.raises(KilledError):
            registry.register(checkpoints, DyingStore(backend, 5, after=False), "pets", made, report)
        lost = registry.version_id(made)
        assert models.head(f"pets/{lost}/model.onnx") is not None
        assert [manifest.version for manifest in registry.versions(models, "pets")] == [complete]
        assert registry.resolve(models, "pets", NEWEST).version == complete
        for reader in (
            lambda: registry.read_manifest(models, "pets", lost),
            lambda: registry.resolve(models, "pets", lost),
            lambda: registry.set_alias(models, "pets", CHAMPION, lost, reason="no"),
        ):
            with pytest.raises(NotFound, match=f"no version '{lost}'; it has {complete}; see `safelight models list`"):
                reader()

    def test_the_id_depends_on_the_run_and_its_exported_files(self) -> None:
        """Another run or other weights give another version; the order of the files does not."""
        store = fresh_store()
        made = exported(store, training_run())
        turned = made.model_copy(update={"files": dict(reversed(made.files.items()))})
        others = [exported(store, training_run("c" * 16)), exported(store, training_run(), b"other")]
        assert registry.version_id(made) == registry.version_id(turned)
        assert registry.version_id(made).startswith("20261122T010203Z-")
        assert len({registry.version_id(each) for each in (made, *others)}) == 3

    def test_another_runs_report_is_refused(self) -> None:
        """An export and a report of two runs are never registered together."""
        checkpoints, models = fresh_store(), fresh_store()
        made = exported(checkpoints, training_run())
        with pytest.raises(InvalidInput, match="export and evaluate the same run"):
            registry.register(checkpoints, models, "pets", made, evaluated(checkpoints, training_run("c" * 16)))
        assert contents(models) == {}

    def test_a_missing_file_is_named(self) -> None:
        """A report without its files is refused before anything is written."""
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run()
        bare = evaluated(checkpoints, run).model_copy(update={"files": {}})
        with pytest.raises(InvalidInput, match=r"lacks evaluation\.json, predictions\.parquet, report\.html"):
            registry.register(checkpoints, models, "pets", exported(checkpoints, run), bare)
        assert contents(models) == {}

    def test_an_altered_source_is_refused(self) -> None:
        """A checkpoint zone whose file was altered gives no version."""
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        checkpoints.put(made.files["model.onnx"].key, b"other")
        with pytest.raises(Corrupted):
            registry.register(checkpoints, models, "pets", made, report)
        assert registry.models_in(models) == []

    def test_foreign_bytes_under_the_exported_names_are_refused(self) -> None:
        """A version whose model file is not the exported one is not completed, and the sentence names the file."""
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        models.put(f"pets/{registry.version_id(made)}/model.onnx", b"foreign")
        with pytest.raises(Corrupted, match=r"model\.onnx does not hold the exported model"):
            registry.register(checkpoints, models, "pets", made, report)
        assert registry.models_in(models) == []

    def test_an_evaluation_without_figures_is_refused(self) -> None:
        """An evaluation whose accuracy is not a number makes no version."""
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run()
        report = evaluated(checkpoints, run)
        wrong = put(checkpoints, f"{run.id}/x/evaluation.json", b'{"accuracy": NaN, "ece": 0.1}')
        report = report.model_copy(update={"files": {**report.files, "evaluation.json": wrong}})
        with pytest.raises(Corrupted, match="does not tell the accuracy"):
            registry.register(checkpoints, models, "pets", exported(checkpoints, run), report)

    @pytest.mark.parametrize("name", ["", "Cats", "../x", "a/b", "-a", "a" * 64, "café"])
    def test_a_bad_name_is_refused(self, name: str) -> None:
        """No reader or writer takes a name that could not be a part of a key."""
        checkpoints, models = fresh_store(), fresh_store()
        run = training_run()
        made, report = exported(checkpoints, run), evaluated(checkpoints, run)
        for use in (
            lambda: registry.register(checkpoints, models, name, made, report),
            lambda: registry.resolve(models, name, CHAMPION),
            lambda: registry.resolve(models, "pets", name),
            lambda: registry.versions(models, name),
            lambda: registry.read_alias(models, "pets", name),
            lambda: registry.set_alias(models, "pets", name, None, reason="no"),
        ):
            with pytest.raises(InvalidInput, match="use 1 to 63 of a-z"):
                use()


class TestReading:
    """What readers get, and what they are spared."""

    def test_versions_are_listed_newest_first(self) -> None:
        """Versions are ordered by the time at which training finished, and ``newest`` is the first."""
        checkpoints, models = fresh_store(), fresh_store()
        made = {register(checkpoints, models, day=day) for day in (3, 1, 2)}
        assert [manifest.version for manifest in registry.versions(models, "pets")] == sorted(made, reverse=True)
        assert registry.resolve(models, "pets", NEWEST) == ModelVersion(model="pets", version=max(made))

    def test_models_are_kept_apart(self) -> None:
        """A model whose name begins like another's does not show the other's versions."""
        checkpoints, models = fresh_store(), fresh_store()
        register(checkpoints, models, day=1, name="pets")
        register(checkpoints, models, day=2, name="pets2")
        models.put("store-check/scratch", b"not a model")
        assert registry.models_in(models) == ["pets", "pets2"]
        assert len(registry.versions(models, "pets")) == 1

    @pytest.mark.parametrize("name", sorted(registry.FILES))
    def test_an_altered_file_is_corrupted(self, name: str) -> None:
        """A file whose bytes changed after registration is never handed out."""
        checkpoints, models = fresh_store(), fresh_store()
        manifest = registry.read_manifest(models, "pets", register(checkpoints, models))
        models.put(manifest.files[name].key, b"altered")
        with pytest.raises(Corrupted, match=name):
            registry.load_file(models, manifest, name)

    def test_a_file_that_no_version_has(self) -> None:
        """Asking for an unknown file names those that are there."""
        checkpoints, models = fresh_store(), fresh_store()
        manifest = registry.read_manifest(models, "pets", register(checkpoints, models))
        with pytest.raises(NotFound, match=r"no file 'model\.pt'; it has evaluation\.json, model\.onnx"):
            registry.load_file(models, manifest, "model.pt")

    @pytest.mark.parametrize(
        "change", [lambda data: data[:-9], lambda data: data.replace(b'"format": 1', b'"format": 2')]
    )
    def test_an_altered_manifest_is_corrupted(
        self, change: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A manifest that cannot be read is an error by name; in a listing it is left out and told of in the log."""
        checkpoints, models = fresh_store(), fresh_store()
        good, bad = register(checkpoints, models, day=1), register(checkpoints, models, day=2)
        key = f"pets/{bad}/manifest.json"
        models.put(key, change(models.get(key)))
        with pytest.raises(Corrupted, match="is no model manifest"):
            registry.read_manifest(models, "pets", bad)
        with caplog.at_level(logging.WARNING):
            assert [manifest.version for manifest in registry.versions(models, "pets")] == [good]
        assert key in caplog.text

    def test_a_moved_manifest_is_corrupted(self) -> None:
        """A manifest that was copied below another version's folder is not taken for that version's."""
        checkpoints, models = fresh_store(), fresh_store()
        version = register(checkpoints, models)
        models.put(f"pets/{A}/manifest.json", models.get(f"pets/{version}/manifest.json"))
        with pytest.raises(Corrupted, match="was moved there"):
            registry.read_manifest(models, "pets", A)

    def test_unknown_names_come_with_the_known_ones(self) -> None:
        """What is not found is answered with what is there."""
        checkpoints, models = fresh_store(), fresh_store()
        with pytest.raises(NotFound, match="no model is registered yet; `safelight run`"):
            registry.resolve(models, "pets", CHAMPION)
        made = sorted((register(checkpoints, models, day=day) for day in range(1, 8)), reverse=True)
        with pytest.raises(NotFound, match="There is no model 'cats'; there are pets; see"):
            registry.resolve(models, "cats", CHAMPION)
        with pytest.raises(NotFound, match=f"no alias 'champion'; it has {', '.join(made[:5])} and 2 more; see"):
            registry.resolve(models, "pets", CHAMPION)


class TestAlias:
    """How an alias changes, and for whom it does not."""

    def test_it_is_created_and_changed(self) -> None:
        """Each change counts the generation up, draws a nonce and is remembered with its reason."""
        models, one, two = two_versions()
        registry.set_alias(models, "pets", CHAMPION, one, reason="first")
        state = registry.set_alias(models, "pets", CHAMPION, two, reason="second")
        assert (state.version, state.generation, state.reason) == (two, 2, "second")
        assert [(change.version, change.reason) for change in state.history] == [(one, "first"), (two, "second")]
        assert len({change.nonce for change in state.history}) == 2
        assert (found := registry.read_alias(models, "pets", CHAMPION)) is not None
        assert found[0] == state
        assert registry.resolve(models, "pets", CHAMPION).version == two

    def test_the_same_version_again_writes_nothing(self) -> None:
        """Setting an alias to what it says already is no change."""
        models, one, _ = two_versions()
        first = registry.set_alias(models, "pets", CHAMPION, one, reason="first")
        assert registry.set_alias(models, "pets", CHAMPION, one, reason="again") == first

    def test_a_stale_writer_loses(self) -> None:
        """Who judged an older state is refused, also when the alias points again where it did (A, B, A)."""
        models, one, two = two_versions()
        registry.set_alias(models, "pets", CHAMPION, one, reason="A")
        stale = etag(models)
        registry.set_alias(models, "pets", CHAMPION, two, reason="B")
        registry.set_alias(models, "pets", CHAMPION, one, reason="A")
        before = registry.read_alias(models, "pets", CHAMPION)
        for expected in (stale, None):
            with pytest.raises(Conflict, match="was changed by another writer meanwhile"):
                registry.set_alias(models, "pets", CHAMPION, two, reason="stale", expected=expected)
        assert registry.read_alias(models, "pets", CHAMPION) == before

    def test_a_stale_writer_loses_even_where_nothing_would_change(self) -> None:
        """An outdated etag is refused also when the alias says already what is asked for."""
        models, one, two = two_versions()
        registry.set_alias(models, "pets", CHAMPION, one, reason="A")
        stale = etag(models)
        registry.set_alias(models, "pets", CHAMPION, two, reason="B")
        with pytest.raises(Conflict):
            registry.set_alias(models, "pets", CHAMPION, two, reason="stale", expected=stale)

    def test_a_change_that_was_replaced_before_its_answer_came_is_ours(self) -> None:
        """A swap that went through counts as won, although a rival's change is what the store holds by then."""
        backend = MemoryStore()
        models, one, two = two_versions(backend)

        class LateAnswer(Store):
            def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
                super().compare_and_swap(key, data, etag=etag)
                registry.set_alias(models, "pets", CHAMPION, two, reason="rival")
                raise Conflict(key)

        late = LateAnswer(backend, "memory://zone", patience_s=0)
        assert registry.set_alias(late, "pets", CHAMPION, one, reason="ours", expected=None).version == one
        state, _ = registry.read_alias(models, "pets", CHAMPION) or pytest.fail("no alias")
        assert [change.reason for change in state.history] == ["ours", "rival"]

    def test_the_history_is_bounded(self) -> None:
        """An alias remembers its last hundred changes and goes on counting."""
        models, one, two = two_versions()
        for number in range(103):
            state = registry.set_alias(models, "pets", CHAMPION, (one, two)[number % 2], reason=str(number))
        assert (state.generation, len(state.history)) == (103, 100)
        assert (state.history[0].reason, state.history[-1].reason) == ("3", "102")

    def test_aliases_are_listed(self) -> None:
        """All aliases of a model come with the versions that they point at."""
        models, one, two = two_versions()
        assert registry.aliases(models, "pets") == {}
        registry.set_alias(models, "pets", CHAMPION, one, reason="first")
        registry.set_alias(models, "pets", "challenger", two, reason="next")
        registry.set_alias(models, "pets", "old", None, reason="none")
        assert registry.aliases(models, "pets") == {CHAMPION: one, "challenger": two, "old": None}

    def test_newest_is_no_alias(self) -> None:
        """The word that stands for the newest version cannot be made an alias."""
        models, one, _ = two_versions()
        with pytest.raises(InvalidInput, match="give the alias another name"):
            registry.set_alias(models, "pets", NEWEST, one, reason="no")

    def test_an_alias_that_is_none_is_corrupted(self) -> None:
        """Bytes that are no alias are an error, not an absent alias."""
        models, _, _ = two_versions()
        models.put(f"pets/aliases/{CHAMPION}.json", b"{}")
        with pytest.raises(Corrupted, match="is not an alias"):
            registry.resolve(models, "pets", CHAMPION)

    def test_a_deleted_version_is_not_resolved(self) -> None:
        """An alias that points at a version without a manifest resolves to an error that names it."""
        models, one, _ = two_versions()
        registry.set_alias(models, "pets", CHAMPION, one, reason="first")
        models.delete([f"pets/{one}/manifest.json"])
        with pytest.raises(NotFound, match=f"no version '{one}'"):
            registry.resolve(models, "pets", CHAMPION)


class TestRollback:
    """Where an alias goes back to."""

    def test_it_goes_to_the_version_before(self) -> None:
        """A rollback points the alias at what was live before and says what it took back."""
        models, one, two = two_versions()
        for version in (one, two):
            registry.set_alias(models, "pets", CHAMPION, version, reason="promoted")
        state = registry.rollback(models, "pets", CHAMPION, "worse in the field")
        assert (state.version, state.history[-1].rolled_back, state.reason) == (one, two, "worse in the field")

    def test_there_is_nothing_before_the_first(self) -> None:
        """Without an earlier version the alias stays as it is and the sentence says so."""
        models, one, _ = two_versions()
        with pytest.raises(NotFound, match="no alias 'champion'"):
            registry.rollback(models, "pets", CHAMPION, "?")
        registry.set_alias(models, "pets", CHAMPION, one, reason="promoted")
        with pytest.raises(NotFound, match=f"points at {one}, and no complete version was live before it"):
            registry.rollback(models, "pets", CHAMPION, "?")
        assert registry.resolve(models, "pets", CHAMPION).version == one

    def test_a_failed_first_version_leaves_nothing(self) -> None:
        """Withdrawing the first version points the alias at nothing; then nothing is resolved, and the reason shows."""
        models, one, two = two_versions()
        registry.set_alias(models, "pets", CHAMPION, one, reason="promoted")
        state = registry.withdraw(models, "pets", CHAMPION, one, "It did not get ready.")
        assert state is not None
        assert state.version is None
        with pytest.raises(NotFound, match="points at no version: It did not get ready"):
            registry.resolve(models, "pets", CHAMPION)
        with pytest.raises(NotFound, match="points at nothing"):
            registry.rollback(models, "pets", CHAMPION, "?")
        assert registry.set_alias(models, "pets", CHAMPION, two, reason="promoted").generation == 3

    def test_withdrawing_spares_a_newer_champion(self) -> None:
        """A version that is not live any more cannot be withdrawn: whoever came after it stays."""
        models, one, two = two_versions()
        assert registry.withdraw(models, "pets", CHAMPION, one, "failed") is None
        for version in (one, two):
            registry.set_alias(models, "pets", CHAMPION, version, reason="promoted")
        before = registry.read_alias(models, "pets", CHAMPION)
        assert before is not None
        assert registry.withdraw(models, "pets", CHAMPION, one, "failed") == before[0]
        assert registry.read_alias(models, "pets", CHAMPION) == before

    @pytest.mark.parametrize(
        ("changes", "known", "target"),
        [
            ("A", "A", None),
            ("A B", "AB", A),
            ("A B A", "AB", B),
            ("A B C", "ABC", B),
            ("A B C", "AC", A),
            ("A B C", "C", None),
            ("A B B>A", "AB", None),
            ("A B C C>B", "ABC", A),
            ("A B C C>B B>A", "ABC", None),
            ("A B B>A B", "AB", A),
            ("A B B>A B C", "ABC", B),
            ("A B B>A C", "ABC", A),
            ("A A>0", "A", None),
            ("A A>0 B", "AB", None),
            ("A A>0 A B", "AB", A),
            ("A 0", "A", A),
        ],
    )
    def test_where_it_goes(self, changes: str, known: str, target: str | None) -> None:
        """A rollback goes to the last other version that is there and was not rolled back itself (B>A: B to A)."""
        assert registry.version_before(alias_state(changes), {LETTERS[letter] for letter in known}) == target

    @given(st.lists(st.sampled_from("ABCD"), min_size=1, max_size=8))
    def test_it_never_toggles(self, promoted: list[str]) -> None:
        """Rolled back again and again, an alias goes through the versions once, latest first, and ends at the first."""
        changes, live = promoted[:], promoted[-1]
        seen = [live]
        while target := registry.version_before(alias_state(" ".join(changes)), set(LETTERS.values())):
            letter = next(key for key, version in LETTERS.items() if version == target)
            changes.append(f"{live}>{letter}")
            live = letter
            seen.append(live)
        assert seen == list(dict.fromkeys(reversed(promoted)))


class TestCodeRevision:
    """How the code that registered a version is told."""

    def test_a_checkout_is_told_by_its_commit(self, tmp_path: Path) -> None:
        """A tracked file gives the commit, with ``-dirty`` once a tracked file was changed."""
        source = tmp_path / "code.py"
        source.write_text("one")
        git(tmp_path, "init")
        git(tmp_path, "add", "code.py")
        git(tmp_path, "commit", "-m", "one")
        commit = git(tmp_path, "rev-parse", "HEAD")
        assert registry.found_code_revision(source) == f"git:{commit}"
        source.write_text("two")
        assert registry.found_code_revision(source) == f"git:{commit}-dirty"

    def test_a_package_inside_somebody_elses_checkout_is_told_by_its_version(self, tmp_path: Path) -> None:
        """An installed copy below another project's checkout does not borrow that project's commit."""
        (tmp_path / "theirs.py").write_text("one")
        git(tmp_path, "init")
        git(tmp_path, "add", "theirs.py")
        git(tmp_path, "commit", "-m", "one")
        (tmp_path / "installed.py").write_text("ours")
        assert registry.found_code_revision(tmp_path / "installed.py").startswith("safelight ")


LETTERS = {"A": A, "B": B, "C": C, "D": D}


def alias_state(changes: str) -> AliasState:
    """The state after changes like ``"A B B>A 0"``: set to A, to B, rolled back from B to A, set to nothing."""
    history = []
    for number, change in enumerate(changes.split(), start=1):
        left, _, target = change.rpartition(">")
        history.append(
            AliasChange(
                generation=number,
                nonce=str(number),
                version=LETTERS.get(target),
                changed_at=NOW,
                reason="",
                rolled_back=LETTERS.get(left),
            )
        )
    last = history[-1].model_dump(exclude={"rolled_back"})
    return AliasState(alias=CHAMPION, history=tuple(history), **last)


def two_versions(backend: MemoryStore | None = None) -> tuple[Store, str, str]:
    """A models zone with two versions of ``pets``."""
    checkpoints, models = fresh_store(), Store(backend or MemoryStore(), "memory://zone", patience_s=0)
    return models, register(checkpoints, models, day=1), register(checkpoints, models, day=2)


def etag(models: Store) -> str:
    """The champion's etag."""
    found = registry.read_alias(models, "pets", CHAMPION)
    assert found is not None
    return found[1]


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
