"""The exception tree.

::

    SafelightError                    everything raised on purpose; str() is one sentence for a person
    ├── InvalidInput                  a person's mistake: exit status 2, or a 4xx problem
    │   ├── InvalidSettings           a setting that is missing or out of range
    │   ├── NotFound                  a dataset, model, version or run that the store does not hold
    │   ├── InvalidImage              bytes that are not an image we read; the reason is its message
    │   └── DatasetRejected           images were read, but no dataset can be made of them
    ├── StoreError                    the object store did not do what was asked
    │   ├── StoreUnavailable          no answer, or a 5xx: retried, then raised
    │   ├── AccessDenied              the credentials may not do this
    │   ├── ObjectMissing             no object under this key
    │   ├── Conflict                  a conditional write lost against another writer
    │   └── Corrupted                 the stored bytes are not those that their manifest names
    ├── LeaseHeld                     another process is working on this training run
    ├── LeaseLost                     this process is no longer the one that may write
    ├── RankLost                      another process of a distributed training ended or did not answer
    ├── TrainingStopped               asked to stop, training left with a checkpoint to go on from
    ├── TrainingDiverged              the loss became NaN or infinite
    ├── ExportMismatch                the exported model does not answer like the trained one
    ├── DeployFailed                  the new version did not prove itself; the old one is live again
    ├── CanaryHeld                    too few requests to judge a challenger by: it keeps the share that it has
    ├── WorkersUnavailable            nobody takes the chunks of a preparation, or whoever took them died
    ├── LocalServiceFailed            a process on this machine did not start or stop
    ├── ClusterUnavailable            the Kubernetes API did not answer
    └── PrefectUnavailable            the Prefect server did not answer, or refused the credentials
"""

from collections.abc import Sequence


class SafelightError(Exception):
    """Root of everything raised on purpose; its text is one sentence meant for a person."""


class InvalidInput(SafelightError):
    """A person's mistake."""


class InvalidSettings(InvalidInput):
    """A setting is missing, unknown or out of range."""


class NotFound(InvalidInput):
    """The store holds no dataset, model, version or run of that name."""


class InvalidImage(InvalidInput):
    """Bytes that are not an image we read."""


class DatasetRejected(InvalidInput):
    """Images were read, but no dataset can be made of them."""


class StoreError(SafelightError):
    """The object store did not do what was asked."""


class StoreUnavailable(StoreError):
    """No answer from the store, or a 5xx, after all retries."""


class AccessDenied(StoreError):
    """The credentials may not do this."""


class ObjectMissing(StoreError):
    """No object under this key."""


class Conflict(StoreError):
    """A conditional write lost against another writer."""


class Corrupted(StoreError):
    """Stored bytes are not those that their manifest names."""


class LeaseHeld(SafelightError):
    """Another process is working on this training run."""


class LeaseLost(SafelightError):
    """This process is no longer the one that may write."""


class RankLost(SafelightError):
    """Another process of a distributed training ended, or did not answer in time."""


class TrainingStopped(SafelightError):
    """Training was asked to stop, and left with a checkpoint to go on from."""


class TrainingDiverged(SafelightError):
    """The loss became NaN or infinite."""


class ExportMismatch(SafelightError):
    """The exported model does not answer like the trained one."""


class DeployFailed(SafelightError):
    """The new version did not prove itself; the alias points where it pointed before."""


class CanaryHeld(SafelightError):
    """Too few requests to judge a challenger by: it keeps the share that it has until the ramp is repeated."""


class WorkersUnavailable(SafelightError):
    """A Dask scheduler did not answer or had no workers, or whoever was given a chunk died of it."""


class LocalServiceFailed(SafelightError):
    """A process on this machine did not start or stop."""


class ClusterUnavailable(SafelightError):
    """The Kubernetes API did not answer, after all retries."""


class PrefectUnavailable(SafelightError):
    """The Prefect server did not answer, or refused the credentials."""


def listed(names: Sequence[str], shown: int) -> str:
    """Names in a sentence: the first ``shown`` of them, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
