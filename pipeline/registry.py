"""Model versions: the one place where the pipeline and the inference server meet.

- **A version is complete when its manifest is there.** The files go in first, the manifest last, all of them write
  once; whatever lacks a manifest is invisible to every reader here.
- **A version's id** comes from the training run and the exported files alone, so that registering it again, or twice
  at once, gives the same version. Two evaluations of one run may differ in a byte: for each file the first writer
  wins, and the manifest is made of the bytes that won, so that it always tells what is stored beside it.
- A registration may find files of one that was killed, which ``garbage`` may remove: both hold the model's lease.

Which version is live is said by ``aliases``.
"""

import logging
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from pipeline import leases
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
from pipeline.code_revision import found_code_revision
from pipeline.errors import Corrupted, InvalidInput, NotFound, listed
from pipeline.leases import Lease
from pipeline.sealing import sealed, unsealed
from pipeline.store import Store, StoredObject

log = logging.getLogger(__name__)

FILES: Final = frozenset({"model.onnx", "model.safetensors", "report.html", "evaluation.json", "predictions.parquet"})
"""What a version is made of, beside its manifest."""

LEASE_TTL_S = 10.0

SHOWN = 5
"""Names that an error's sentence lists before it refers to the command that lists them all."""

VERSION_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
MANIFEST_KEY = re.compile(rf"(?P<model>[a-z0-9_-]+)/(?P<version>{VERSION_ID.pattern})/manifest\.json")


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
    check_name("model", model)
    if exported.training_run.id != report.training_run.id:
        raise InvalidInput(
            f"The export is of training run {exported.training_run.id} and the report of {report.training_run.id}: "
            "export and evaluate the same run."
        )
    sources = report.files | exported.files
    if missing := sorted(FILES - sources.keys()):
        raise InvalidInput(
            f"Training run {exported.training_run.id} cannot be registered: it lacks {listed(missing, SHOWN)}."
        )
    version = ModelVersion(model=model, version=version_id(exported))
    key = _manifest_key(model, version.version)
    if models.head(key) is None:
        with hold(models, model) as lease:
            files = {
                name: _copied(checkpoints, models, file, f"{model}/{version.version}/{name}")
                for name, file in sources.items()
            }
            _refuse_altered(models, files, exported)
            figures = _figures(models, files)
            manifest = _manifest(version, exported, files, figures, code_revision or found_code_revision())
            lease.check()
            models.write_once(key, sealed(manifest, key))
    return version


def hold(models: Store, model: str) -> Lease:
    """The right to make a version of a model complete, or to remove files of versions that never were."""
    key = f"{model}/lease.json"
    return leases.acquire(models, key, f"model {model}", ttl_s=LEASE_TTL_S, on_progress=leases.say)


def version_id(exported: ExportedModel) -> str:
    """``<UTC time>-<8 hexadecimal digits>``: when training finished, and the digest of run and exported files."""
    run = exported.training_run
    identity = {"training_run": run.id, "files": {name: file.sha256 for name, file in exported.files.items()}}
    return f"{run.finished_at:%Y%m%dT%H%M%SZ}-{digest_of(identity)[:8]}"


def models_in(models: Store) -> list[str]:
    """Names of the models that have a complete version, sorted."""
    return sorted({name for name, _, _ in _complete(models, "")})


def versions(models: Store, model: str, newest: int | None = None) -> list[ModelManifest]:
    """The complete versions of a model, or so many of the newest, newest first; none if there is no such model.

    A manifest that cannot be read is left out, with a warning in the log.
    """
    check_name("model", model)
    found = []
    complete = sorted(_complete(models, model), key=lambda each: each[1], reverse=True)[:newest]
    for stored, data in models.read_many([stored for _, _, stored in complete]):
        try:
            found += [_parsed_manifest(models, stored.key, data)] if data is not None else []
        except Corrupted as error:
            log.warning("%s", error)
    return sorted(found, key=lambda manifest: manifest.version, reverse=True)


def version_ids(models: Store, model: str) -> set[str]:
    """Ids of the complete versions of a model."""
    return {version for _, version, _ in _complete(models, model)}


def find(models: Store, model: str, version: str) -> ModelVersion:
    """The complete version of that id.

    Raises:
        NotFound: there is no such version, or it is not complete.
    """
    if models.head(_manifest_key(model, version)) is None:
        raise not_found(models, model, f"no version {version!r}")
    return ModelVersion(model=model, version=version)


def read_manifest(models: Store, model: str, version: str) -> ModelManifest:
    """The manifest of a complete version.

    Raises:
        NotFound: there is no such version, or it is not complete.
        Corrupted: it is not a manifest, or not this version's.
    """
    check_name("model", model)
    key = _manifest_key(model, version)
    data = models.get_if_present(key) if VERSION_ID.fullmatch(version) else None
    if data is None:
        raise not_found(models, model, f"no version {version!r}")
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
            f"it has {listed(sorted(manifest.files), SHOWN)}."
        )
    return models.get_verified(file.key, file.sha256)


def not_found(models: Store, model: str, lacking: str) -> NotFound:
    """The error for a name that is not there, with those that are."""
    if known := sorted(version_ids(models, model), reverse=True):
        return NotFound(f"Model {model!r} has {lacking}; it has {listed(known, SHOWN)}; see `safelight models list`.")
    if others := models_in(models):
        return NotFound(f"There is no model {model!r}; there are {listed(others, SHOWN)}; see `safelight models list`.")
    return NotFound(
        f"There is no model {model!r}: no model is registered yet; `safelight run` trains and registers one."
    )


def check_name(kind: Literal["model", "alias", "batch"], name: str) -> None:
    """Refuse what could not be a part of a key.

    Raises:
        InvalidInput: it could not.
    """
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidInput(
            f"{name!r} is not the name of {'an' if kind == 'alias' else 'a'} {kind}: use 1 to 63 of a-z, 0-9, '-' and "
            "'_', a letter or digit at both ends."
        ) from error


def _copied(checkpoints: Store, models: Store, file: StoredFile, key: str) -> StoredFile:
    """``file`` under ``key``, or what was there already; described by the bytes that are there now."""
    data = models.write_once(key, checkpoints.get_verified(file.key, file.sha256))
    return StoredFile.of(key, data)


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


def _complete(models: Store, prefix: str) -> Iterator[tuple[str, str, StoredObject]]:
    """Model, version and manifest object of each complete version below a folder."""
    for stored in models.listing(prefix):
        if found := MANIFEST_KEY.fullmatch(stored.key):
            yield found["model"], found["version"], stored


def _parsed_manifest(models: Store, key: str, data: bytes) -> ModelManifest:
    try:
        return unsealed(ModelManifest, data, key)
    except Corrupted as error:
        raise Corrupted(f"{models.url}/{key} is no manifest of a model version: {error}.") from error


def _manifest_key(model: str, version: str) -> str:
    return f"{model}/{version}/manifest.json"
