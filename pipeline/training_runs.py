"""A training run: what it is, where its result is, and who may work on it.

- **Identity.** A run's id is the digest of all that decides its weights, so that the same wish finds the same run.
- **Result.** ``<run>/result.json`` is written once; whoever comes second gets what the first one wrote.
- **Lease.** ``<run>/lease.json`` names the process that may write (``leases``). Its fence is part of every checkpoint's
  key, so that a late write of an orphan can never replace what its successor wrote. It goes when the result is there.
"""

from pipeline import leases
from pipeline.artifacts import (
    TRAINING_FORMAT,
    DatasetVersion,
    TrainConfig,
    TrainingRun,
    digest_of,
)
from pipeline.errors import Corrupted, NotFound
from pipeline.leases import TTL_S, Lease
from pipeline.progress import OnProgress, silent
from pipeline.sealing import sealed, unsealed
from pipeline.store import Store


def run_id(dataset: DatasetVersion, config: TrainConfig, starting_weights_sha256: str | None, nonce: str = "") -> str:
    """16 hexadecimal digits of the digest of all that decides the weights.

    Starting weights count by their bytes, not by where they lie; ``nonce`` tells repetitions of one wish apart.
    """
    wish = {
        "dataset": dataset.dataset,
        "version": dataset.version,
        "config": config.model_dump(mode="json", exclude={"starting_weights"}),
        "starting_weights": starting_weights_sha256,
        "format": TRAINING_FORMAT,
        "nonce": nonce,
    }
    return digest_of(wish)[:16]


def find(checkpoints: Store, run: str) -> TrainingRun:
    """The finished training run of that id.

    Raises:
        NotFound: there is none, or it is not finished.
    """
    data = checkpoints.get_if_present(_result_key(run))
    if data is None:
        raise NotFound(f"There is no finished training run {run}; start or resume it with `safelight train`.")
    return _read_result(checkpoints, run, data)


def is_finished(checkpoints: Store, run: str) -> bool:
    """Whether the training run of that id has its result."""
    return checkpoints.head(_result_key(run)) is not None


def latest(checkpoints: Store, dataset: str) -> TrainingRun:
    """The finished training run of a dataset (any version) that finished last.

    Raises:
        NotFound: none is finished.
    """
    results = (found for found in checkpoints.listing() if found.key.endswith("/result.json"))
    runs = [
        _read_result(checkpoints, at.key.partition("/")[0], data)
        for at, data in checkpoints.read_many(results)
        if data is not None
    ]
    ours = [run for run in runs if run.dataset.dataset == dataset]
    if not ours:
        raise NotFound(f"No training run of dataset {dataset} is finished; start one with `safelight train {dataset}`.")
    return max(ours, key=lambda run: (run.finished_at, run.id))


def named(checkpoints: Store, name: str) -> TrainingRun:
    """The finished training run of that id, or the newest one of a dataset of that name.

    Raises:
        NotFound: there is neither.
    """
    try:
        return find(checkpoints, name)
    except NotFound:
        return latest(checkpoints, name)


def finish(checkpoints: Store, run: TrainingRun) -> TrainingRun:
    """Write a run's result, unless it has one; the result that counts from now on."""
    key = _result_key(run.id)
    return _read_result(checkpoints, run.id, checkpoints.write_once(key, sealed(run, key)))


def _result_key(run: str) -> str:
    return f"{run}/result.json"


def _read_result(checkpoints: Store, name: str, data: bytes) -> TrainingRun:
    try:
        return unsealed(TrainingRun, data, _result_key(name))
    except Corrupted as error:
        raise Corrupted(f"{checkpoints.url}/{_result_key(name)} is no result of a training run: {error}.") from error


def acquire(
    checkpoints: Store, run: str, *, ttl_s: float = TTL_S, wait_s: float | None = None, on_progress: OnProgress = silent
) -> Lease:
    """Take the lease of a training run, as ``leases.acquire`` does.

    Raises:
        LeaseHeld: ``wait_s`` is over.
    """
    return leases.acquire(
        checkpoints, lease_key(run), f"training run {run}", ttl_s=ttl_s, wait_s=wait_s, on_progress=on_progress
    )


def lease_key(run: str) -> str:
    """Where the lease of a training run is, in the checkpoints zone."""
    return f"{run}/lease.json"
