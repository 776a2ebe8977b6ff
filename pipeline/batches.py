"""Batch predictions in the store: where they lie, their files, and the manifest that completes them.

- **A part belongs to its plan** (``batch_plans``), whose identity is in its metadata: what another plan left under the
  same name is never taken for it.
- Parts are written once, the manifest last; its presence means that the batch is complete.
- Plan, listing and lease lie apart from the answers (``_work``) and go when these are complete, so that a batch's own
  folder holds Parquet and one manifest. Who is unfinished is known by looking at ``_work`` alone.
- They are somebody's results and are kept, unlike the prediction log in the same zone. No model's name begins with an
  underscore, so that neither a reader of the log nor the rule that removes it meets them.
"""

import io
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import leases
from pipeline.artifacts import Digest, Name, Record, StoredFile
from pipeline.errors import Corrupted
from pipeline.leases import Lease
from pipeline.progress import OnProgress
from pipeline.sealing import RecordType, sealed, unsealed
from pipeline.store import Store
from pipeline.store_users import BATCHES

FORMAT: Final = 1
"""Raised whenever the same listing and model version would be answered otherwise, or in other columns."""

LEASE_TTL_S: Final = 15.0
WORK: Final = "_work"
REPEATED: Final = ["label", "reason", "model", "model_version", "dataset_version"]
"""Columns in which a dictionary takes less than what it replaces."""
METADATA: Final = b"safelight"

MANIFEST_KEY: Final = re.compile(rf"{BATCHES}/[^/]+/[^/_][^/]*/manifest\.json")


class Segment(StoredFile):
    """A stored table of listed objects: those of one part."""

    rows: int


class BatchPart(StoredFile):
    """A stored table of answers: rows, how many of them are answers, and the others by reason."""

    rows: int
    answered: int
    left_out: dict[str, int]


class BatchManifest(Record):
    """All that is known of a complete batch.

    Attributes:
        name: a person's choice, or the beginning of ``identity``.
        dataset_version: that the model version was trained on.
        classes: labels, as the probabilities of a row are ordered.
        objects: that were listed; each of them is a row.
        answered: rows with an answer; ``left_out`` has the others by reason.
        parts: in the order of keys.
    """

    format: Literal[1] = FORMAT
    name: Name
    identity: Digest
    model: Name
    version: str
    dataset_version: str
    classes: tuple[str, ...]
    source: str
    prefix: str
    listed_at: datetime
    created_at: datetime
    objects: int
    answered: int
    left_out: dict[str, int]
    parts: tuple[BatchPart, ...]


class Part(Record):
    """What one worker does: a small record, so that parts can be mapped over threads, processes or machines.

    Attributes:
        key: of the table that it makes, in the predictions zone.
        plan: identity of its plan.
    """

    key: str
    plan: Digest
    source: str
    prefix: str
    model: Name
    version: str
    listing: Segment


class Place(NamedTuple):
    """Where a batch lies: its model and its name."""

    model: str
    name: str

    @property
    def folder(self) -> str:
        """Of what is made."""
        return f"{BATCHES}/{self.model}/{self.name}"

    @property
    def work(self) -> str:
        """Of what is needed only meanwhile."""
        return f"{BATCHES}/{self.model}/{WORK}/{self.name}"

    @property
    def manifest(self) -> str:
        """Key of the manifest."""
        return f"{self.folder}/manifest.json"

    @property
    def plan(self) -> str:
        """Key of the plan."""
        return f"{self.work}/plan.json"

    @property
    def lease(self) -> str:
        """Key of the lease."""
        return f"{self.work}/lease.json"


def hold(
    predictions: Store, place: Place, on_progress: OnProgress = leases.say, *, wait_s: float | None = None
) -> Lease:
    """The right to make a batch, or to remove one that was given up.

    Raises:
        LeaseHeld: another process had it for ``wait_s`` (seconds; None: it is waited for).
    """
    what = f"the batch {place.name} of model {place.model}"
    return leases.acquire(predictions, place.lease, what, ttl_s=LEASE_TTL_S, wait_s=wait_s, on_progress=on_progress)


def is_lease(key: str) -> bool:
    """Whether a key of a batch is its lease."""
    return key.endswith("/lease.json")


def removal_rank(key: str) -> int:
    """What goes first when a batch is given up: the parts, then the plan, since a plan must find all that it names."""
    in_work = key.split("/")[2] == WORK
    return 0 if not in_work else 1 if key.endswith("/plan.json") else 2


def encode_part(part: Part, rows: pa.Table, classes: Sequence[str], left_out: dict[str, int]) -> bytes:
    """The Parquet file of a part's rows, which says where it belongs, and how its probabilities are ordered."""
    said = {**_belonging(part), "classes": list(classes), "left_out": left_out}
    file = io.BytesIO()
    write: Any = pq.write_table  # its stubs know no list of columns
    write(
        rows.replace_schema_metadata({METADATA: json.dumps(said, ensure_ascii=False)}),
        file,
        compression="zstd",
        use_dictionary=REPEATED,
    )
    return file.getvalue()


def described(predictions: Store, part: Part, data: bytes) -> BatchPart:
    """What is stored in the place of a part.

    Raises:
        Corrupted: it is not that part.
    """
    try:
        metadata: Any = pq.read_metadata(pa.BufferReader(data))
        said = json.loads(metadata.metadata[METADATA])
        mine, left_out = said.items() >= _belonging(part).items(), said["left_out"]
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        mine, left_out = False, {}
    if not mine:
        raise Corrupted(f"{predictions.url}/{part.key} is no part of this batch: remove it, and predict again.")
    rows = metadata.num_rows
    file = StoredFile.of(part.key, data).model_dump()
    return BatchPart(**file, rows=rows, answered=rows - sum(left_out.values()), left_out=left_out)


def write_manifest(predictions: Store, place: Place, manifest: BatchManifest) -> BatchManifest:
    """Make a batch complete; the manifest that is stored from now on."""
    data = predictions.write_once(place.manifest, sealed(manifest, place.manifest))
    return record(BatchManifest, predictions, place.manifest, data)


def read_manifest(predictions: Store, place: Place) -> BatchManifest | None:
    """The manifest of a complete batch; None where there is none.

    Raises:
        Corrupted: it was altered.
    """
    data = predictions.get_if_present(place.manifest)
    return None if data is None else record(BatchManifest, predictions, place.manifest, data)


def clear_work(predictions: Store, place: Place) -> None:
    """Remove what a complete batch needs no more, the plan first: without it nobody looks at the rest."""
    predictions.delete([place.plan])
    predictions.delete([each.key for each in predictions.listing(f"{place.work}/listing")])


def _belonging(part: Part) -> dict[str, str]:
    """What the metadata of a part says of its plan, and of which of its objects it has."""
    return {"plan": part.plan, "listing": part.listing.sha256}


def record(kind: type[RecordType], predictions: Store, key: str, data: bytes) -> RecordType:
    """The record that was stored under a key.

    Raises:
        Corrupted: it was altered.
    """
    try:
        return unsealed(kind, data, key)
    except Corrupted as error:
        raise Corrupted(f"{predictions.url}/{key} is not what was written there: {error}.") from error
