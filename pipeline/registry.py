"""Model versions and aliases: the one place where the pipeline and the inference server meet.

- **A version is complete when its manifest is there.** The files go in first, the manifest last, all of them write
  once; whatever lacks a manifest is invisible to every reader here.
- **A version's id** comes from the training run and the exported files alone, so that registering it again, or twice
  at once, gives the same version. Two evaluations of one run may differ in a byte: for each file the first writer
  wins, and the manifest is made of the bytes that won, so that it always tells what is stored beside it.
- **An alias changes by compare and swap only.** Each state has a random nonce, so that no two states have equal bytes
  and a stale writer loses even where the alias points again at what that writer saw (A → B → A). The nonces in the
  history settle what an etag cannot: a change that went through, and was replaced before we heard of it, is ours.
- **Rolling back never toggles.** A version that was rolled back from is not returned to until somebody sets the alias
  to it again; rolling back twice goes two versions back.
"""

import hashlib
import importlib.metadata
import logging
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from pipeline.artifacts import (
    DatasetVersion,
    EvaluationReport,
    ExportedModel,
    ModelVersion,
    Name,
    PixelSpec,
    Record,
    StoredFile,
    TrainConfig,
    digest_of,
    utc_now,
)
from pipeline.errors import Conflict, Corrupted, InvalidInput, NotFound, ObjectMissing
from pipeline.store import Store, StoredObject

log = logging.getLogger(__name__)

CHAMPION: Final = "champion"
"""The alias that the quality gate moves and that serving follows."""

NEWEST: Final = "newest"
"""In place of an alias: the version whose training finished last. No alias can have this name."""

ANY: Final = "*"
"""In place of an etag: whatever the alias says at the moment."""

FILES: Final = frozenset({"model.onnx", "model.safetensors", "report.html", "evaluation.json", "predictions.parquet"})
"""What a version is made of, beside its manifest."""

HISTORY = 100
"""Changes that an alias remembers."""

ATTEMPTS = 20
"""Times that a change is tried again which does not care what the alias said before."""

SHOWN = 5
"""Names that an error's sentence lists before it refers to the command that lists them all."""

MANIFEST_KEY = re.compile(r"(?P<model>[a-z0-9_-]+)/(?P<version>\d{8}T\d{6}Z-[0-9a-f]{8})/manifest\.json")


class ModelManifest(Record):
    """All that is known of a complete model version.

    Attributes:
        classes: labels by class index, as the model's output is ordered.
        pixels: what one row of the model's input is; serving decodes by it.
        training_run: id of the training run.
        exact: False when that run was resumed where bit-for-bit repetition cannot be promised.
        environment: library versions and machine, as recorded by the training run.
        code_revision: of the code that registered the version.
        metrics: ``accuracy`` and ``ece`` on the test split, and the export's ``parity_…``.
        files: by file name, with keys in the models zone.
        parents: the weights that training started from, if they were given.
    """

    format: Literal[1] = 1
    model: Name
    version: str
    created_at: datetime
    classes: tuple[str, ...]
    pixels: PixelSpec
    dataset: DatasetVersion
    training_run: str
    exact: bool
    config: TrainConfig
    environment: dict[str, str]
    code_revision: str
    metrics: dict[str, FiniteFloat]
    files: dict[str, StoredFile]
    parents: tuple[str, ...]


class AliasChange(Record):
    """One change of an alias.

    Attributes:
        version: what the alias pointed at from then on; None for nothing.
        rolled_back: the version that this change took back as bad, if it was a rollback.
    """

    generation: int
    nonce: str
    version: str | None
    changed_at: datetime
    reason: str
    rolled_back: str | None = None


class AliasState(Record):
    """What an alias says.

    Attributes:
        version: None after the first version was taken back: then there is nothing to serve.
        generation: grows by one with every change.
        nonce: random; no two states are equal.
        history: the last ``HISTORY`` changes, oldest first; the last of them is this state.
    """

    alias: Name
    version: str | None
    generation: int
    nonce: str
    changed_at: datetime
    reason: str
    history: tuple[AliasChange, ...]


class _Figures(BaseModel):
    """What ``register`` reads of ``evaluation.json``, whatever else is in there."""

    accuracy: FiniteFloat
    ece: FiniteFloat


def register(
    checkpoints: Store,
    models: Store,
    model: str,
    exported: ExportedModel,
    report: EvaluationReport,
    *,
    code_revision: str | None = None,
) -> ModelVersion:
    """Make a model version of an exported and evaluated training run; the same one, however often it is called.

    Raises:
        InvalidInput: the name is not one, the export and the report are of two training runs, or a file is missing.
        Corrupted: a file is not what the export or the report says.
    """
    _refuse_bad_name("model", model)
    if exported.training_run.id != report.training_run.id:
        raise InvalidInput(
            f"The export is of training run {exported.training_run.id} and the report of {report.training_run.id}: "
            "export and evaluate the same run."
        )
    sources = report.files | exported.files
    if missing := sorted(FILES - sources.keys()):
        raise InvalidInput(
            f"Training run {exported.training_run.id} cannot be registered: it lacks {_listed(missing)}."
        )
    version = ModelVersion(model=model, version=version_id(exported))
    key = _manifest_key(model, version.version)
    if models.head(key) is None:
        files = {
            name: _copied(checkpoints, models, file, f"{model}/{version.version}/{name}")
            for name, file in sources.items()
        }
        _refuse_altered(models, files, exported)
        manifest = _manifest(version, exported, files, _figures(models, files), code_revision or found_code_revision())
        models.write_once(key, manifest.to_json())
    return version


def version_id(exported: ExportedModel) -> str:
    """``<UTC time>-<8 hexadecimal digits>``: when training finished, and the digest of run and exported files."""
    run = exported.training_run
    identity = {"training_run": run.id, "files": {name: file.sha256 for name, file in exported.files.items()}}
    return f"{run.finished_at:%Y%m%dT%H%M%SZ}-{digest_of(identity)[:8]}"


def models_in(models: Store) -> list[str]:
    """Names of the models that have a complete version, sorted."""
    return sorted({name for name, _, _ in _complete(models, "")})


def versions(models: Store, model: str) -> list[ModelManifest]:
    """The complete versions of a model, newest first; none if there is no such model.

    A manifest that cannot be read is left out, with a warning in the log.
    """
    _refuse_bad_name("model", model)
    found = []
    for stored, data in models.read_many([stored for _, _, stored in _complete(models, model)]):
        try:
            found += [_parsed_manifest(models, stored.key, data)] if data is not None else []
        except Corrupted as error:
            log.warning("%s", error)
    return sorted(found, key=lambda manifest: manifest.version, reverse=True)


def read_manifest(models: Store, model: str, version: str) -> ModelManifest:
    """The manifest of a complete version.

    Raises:
        NotFound: there is no such version, or it is not complete.
        Corrupted: it is not a manifest, or not this version's.
    """
    _refuse_bad_name("model", model)
    key = _manifest_key(model, version)
    data = models.get_if_present(key) if MANIFEST_KEY.fullmatch(key) else None
    if data is None:
        raise NotFound(_no_version(models, model, f"no version {version!r}"))
    return _parsed_manifest(models, key, data)


def load_file(models: Store, manifest: ModelManifest, name: str) -> bytes:
    """The bytes of one file of a version.

    Raises:
        NotFound: the version has no such file.
        ObjectMissing: the file was deleted.
        Corrupted: its bytes are not those that the manifest names.
    """
    file = manifest.files.get(name)
    if file is None:
        raise NotFound(
            f"Version {manifest.version} of model {manifest.model!r} has no file {name!r}; "
            f"it has {_listed(sorted(manifest.files))}."
        )
    return models.get_verified(file.key, file.sha256)


def resolve(models: Store, model: str, name: str) -> ModelVersion:
    """The complete version that ``name`` stands for: a version, an alias, or ``NEWEST``.

    Raises:
        NotFound: there is no such alias or version, or the alias points at nothing.
    """
    _refuse_bad_name("model", model)
    version = name if MANIFEST_KEY.fullmatch(_manifest_key(model, name)) else _pointed_at(models, model, name)
    if models.head(_manifest_key(model, version)) is None:
        raise NotFound(_no_version(models, model, f"no version {version!r}"))
    return ModelVersion(model=model, version=version)


def read_alias(models: Store, model: str, alias: str) -> tuple[AliasState, str] | None:
    """What an alias says, and the etag that ``set_alias`` expects; None if it was never set.

    Raises:
        Corrupted: the stored alias is not one.
    """
    _refuse_bad_name("model", model)
    _refuse_bad_name("alias", alias)
    key = _alias_key(model, alias)
    try:
        data, etag = models.get_with_etag(key)
        return AliasState.from_json(data), etag
    except ObjectMissing:
        return None
    except ValidationError as error:
        raise Corrupted(f"{models.url}/{key} is not an alias: it was altered, or is of another release.") from error


def aliases(models: Store, model: str) -> dict[str, str | None]:
    """The version that each alias of a model points at, by the alias's name, sorted."""
    _refuse_bad_name("model", model)
    keys = sorted(stored.key for stored in models.listing(f"{model}/aliases"))
    names = [key.removesuffix(".json").rpartition("/")[2] for key in keys]
    return {alias: found[0].version for alias in names if (found := read_alias(models, model, alias))}


def set_alias(
    models: Store, model: str, alias: str, version: str | None, *, reason: str, expected: str | None = ANY
) -> AliasState:
    """Point an alias at a complete version (None: at nothing). Pointing it where it points already writes nothing.

    Args:
        models: the models zone.
        model: the model's name.
        alias: the alias's name; it is created if need be.
        version: where to point it.
        reason: why, kept in the alias's history.
        expected: the etag of the state that was judged, None if there was none, or ``ANY``.

    Raises:
        InvalidInput: the alias's name is not one, or is ``NEWEST``.
        NotFound: there is no such complete version.
        Conflict: the alias is not in the expected state any more.
    """
    if alias == NEWEST:
        raise InvalidInput(f"{NEWEST!r} always stands for the newest version: give the alias another name.")
    if version is not None:
        read_manifest(models, model, version)
    for _ in range(ATTEMPTS):
        current, etag = read_alias(models, model, alias) or (None, None)
        if expected not in (ANY, etag):
            break
        if current and current.version == version:
            return current
        state = _following(alias, current, version, reason)
        if _swapped(models, model, state, etag):
            return state
    raise Conflict(_was_changed(model, alias))


def rollback(models: Store, model: str, alias: str, reason: str) -> AliasState:
    """Point an alias at the version that was live before, by ``version_before``.

    A change by another writer at the same time is never rolled back unseen.

    Raises:
        NotFound: the alias was never set, or there is no version to go back to.
        Conflict: another writer changed the alias meanwhile.
    """
    found = read_alias(models, model, alias)
    if found is None:
        raise NotFound(_no_version(models, model, f"no alias {alias!r}"))
    current, etag = found
    target = version_before(current, _known(models, model))
    if target is None:
        raise NotFound(
            f"Alias {alias!r} of model {model!r} points at {current.version or 'nothing'}, and no complete version "
            "was live before it that was not rolled back itself: name one with `safelight models set-alias`."
        )
    state = _following(alias, current, target, reason, rolled_back=current.version)
    if not _swapped(models, model, state, etag):
        raise Conflict(_was_changed(model, alias))
    return state


def withdraw(models: Store, model: str, alias: str, version: str, reason: str) -> AliasState | None:
    """Take an alias off a version that failed: back to the version before it, or to nothing if it was the first.

    Does nothing when the alias does not point at ``version`` any more. Returns what the alias says then.

    Raises:
        Conflict: other writers kept changing the alias.
    """
    for _ in range(ATTEMPTS):
        current, etag = read_alias(models, model, alias) or (None, None)
        if current is None or current.version != version:
            return current
        target = version_before(current, _known(models, model))
        state = _following(alias, current, target, reason, rolled_back=version)
        if _swapped(models, model, state, etag):
            return state
    raise Conflict(_was_changed(model, alias))


def version_before(state: AliasState, known: Collection[str]) -> str | None:
    """Where a rollback goes: the last other version in the history that is still known and was not rolled back.

    A version counts as rolled back until the alias is set to it again by an ordinary change. None if there is none.
    """
    passed: set[str] = set()
    for change in reversed(state.history):
        if change.version not in (None, state.version) and change.version not in passed and change.version in known:
            return change.version
        passed |= {change.rolled_back} if change.rolled_back else set()
    return None


def found_code_revision(source: Path = Path(__file__)) -> str:
    """``git:<commit>[-dirty]`` where the file ``source`` is tracked by a git checkout, else the installed version."""
    git = shutil.which("git")
    if git and _output([git, "ls-files", "--error-unmatch", source.name], source.parent):
        commit = _output([git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"], source.parent)
        if commit:
            return f"git:{commit}"
    try:
        return f"safelight {importlib.metadata.version('safelight')}"
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _output(command: list[str], folder: Path) -> str:
    """What a command prints, or nothing if it fails."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _copied(checkpoints: Store, models: Store, file: StoredFile, key: str) -> StoredFile:
    """``file`` under ``key``, or what was there already; described by the bytes that are there now."""
    data = models.write_once(key, checkpoints.get_verified(file.key, file.sha256))
    return StoredFile(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _refuse_altered(models: Store, files: dict[str, StoredFile], exported: ExportedModel) -> None:
    """The id names the exported bytes: others under these keys were not put there by ``register``."""
    for name, file in exported.files.items():
        if files[name].sha256 != file.sha256:
            raise Corrupted(
                f"{models.url}/{files[name].key} does not hold the exported model: it was altered; "
                "delete that folder and register again."
            )


def _figures(models: Store, files: dict[str, StoredFile]) -> _Figures:
    """Accuracy and calibration error as the stored evaluation tells them."""
    file = files["evaluation.json"]
    try:
        return _Figures.model_validate_json(models.get_verified(file.key, file.sha256))
    except ValidationError as error:
        raise Corrupted(f"{models.url}/{file.key} does not tell the accuracy and ece of an evaluation.") from error


def _manifest(
    version: ModelVersion,
    exported: ExportedModel,
    files: dict[str, StoredFile],
    figures: _Figures,
    code_revision: str,
) -> ModelManifest:
    run = exported.training_run
    return ModelManifest(
        model=version.model,
        version=version.version,
        created_at=utc_now(),
        classes=run.dataset.classes,
        pixels=run.dataset.pixels,
        dataset=run.dataset,
        training_run=run.id,
        exact=run.exact,
        config=run.config,
        environment=run.environment,
        code_revision=code_revision,
        metrics={
            "accuracy": figures.accuracy,
            "ece": figures.ece,
            **{f"parity_{name}": value for name, value in exported.parity.items()},
        },
        files=files,
        parents=(run.config.starting_weights,) if run.config.starting_weights else (),
    )


def _following(
    alias: str, current: AliasState | None, version: str | None, reason: str, *, rolled_back: str | None = None
) -> AliasState:
    """The state after one more change."""
    change = AliasChange(
        generation=current.generation + 1 if current else 1,
        nonce=secrets.token_hex(16),
        version=version,
        changed_at=utc_now(),
        reason=reason,
        rolled_back=rolled_back,
    )
    history = (*(current.history if current else ()), change)[-HISTORY:]
    return AliasState(alias=alias, history=history, **change.model_dump(exclude={"rolled_back"}))


def _swapped(models: Store, model: str, state: AliasState, etag: str | None) -> bool:
    """Whether ``state`` took the place of the state with ``etag``."""
    try:
        models.compare_and_swap(_alias_key(model, state.alias), state.to_json(), etag=etag)
    except Conflict:
        found = read_alias(models, model, state.alias)
        return found is not None and state.history[-1] in found[0].history
    return True


def _was_changed(model: str, alias: str) -> str:
    return (
        f"Alias {alias!r} of model {model!r} was changed by another writer meanwhile: look at it with "
        f"`safelight models list {model}` and decide again."
    )


def _pointed_at(models: Store, model: str, name: str) -> str:
    """The version that an alias, or ``NEWEST``, points at; it need not be complete."""
    if name == NEWEST and (known := _known(models, model)):
        return max(known)
    found = None if name == NEWEST else read_alias(models, model, name)
    if found is None:
        raise NotFound(_no_version(models, model, f"no version and no alias {name!r}"))
    state = found[0]
    if state.version is None:
        raise NotFound(f"Alias {name!r} of model {model!r} points at no version: {state.reason}")
    return state.version


def _complete(models: Store, prefix: str) -> Iterator[tuple[str, str, StoredObject]]:
    """Model, version and manifest object of each complete version below a folder."""
    for stored in models.listing(prefix):
        if found := MANIFEST_KEY.fullmatch(stored.key):
            yield found["model"], found["version"], stored


def _known(models: Store, model: str) -> set[str]:
    return {version for _, version, _ in _complete(models, model)}


def _parsed_manifest(models: Store, key: str, data: bytes) -> ModelManifest:
    try:
        manifest = ModelManifest.from_json(data)
    except ValidationError as error:
        raise Corrupted(
            f"{models.url}/{key} is no model manifest: it was altered, or is of another release."
        ) from error
    if _manifest_key(manifest.model, manifest.version) != key:
        raise Corrupted(
            f"{models.url}/{key} is the manifest of {manifest.model} {manifest.version}: it was moved there."
        )
    return manifest


def _manifest_key(model: str, version: str) -> str:
    return f"{model}/{version}/manifest.json"


def _alias_key(model: str, alias: str) -> str:
    return f"{model}/aliases/{alias}.json"


def _no_version(models: Store, model: str, lacking: str) -> str:
    """The sentence for a name that is not there, with those that are."""
    known = sorted(_known(models, model), reverse=True)
    if known:
        return f"Model {model!r} has {lacking}; it has {_listed(known)}; see `safelight models list`."
    others = models_in(models)
    if others:
        return f"There is no model {model!r}; there are {_listed(others)}; see `safelight models list`."
    return f"There is no model {model!r}: no model is registered yet; `safelight run` trains and registers one."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _refuse_bad_name(kind: str, name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidInput(
            f"{name!r} is not the name of {'an' if kind == 'alias' else 'a'} {kind}: use 1 to 63 of a-z, 0-9, '-' and "
            "'_', a letter or digit at both ends."
        ) from error
