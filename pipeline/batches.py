"""Batch predictions in the store: where they lie, the plan by which they are made, the manifest that completes them.

- **The plan is stored before the first answer**: the listing, cut into parts, and the model version. Whoever goes on
  with a batch goes by it, whatever was uploaded, or became the champion, since.
- **A part belongs to its plan**, whose identity is in its metadata: what another plan left under the same name is never
  taken for it. Parts are written once, the manifest last; its presence means that the batch is complete.
- Plan, listing and lease lie apart from the answers (``_work``) and go when these are complete, so that a batch's own
  folder holds Parquet and one manifest. Who is unfinished is known by looking at ``_work`` alone.
- They are somebody's results and are kept, unlike the prediction log in the same zone. No model's name begins with an
  underscore, so that neither a reader of the log nor the rule that removes it meets them.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import leases
from pipeline.artifacts import Digest, Name, Record, StoredFile, digest_of
from pipeline.dataset_index import values
from pipeline.errors import Corrupted, InvalidInput
from pipeline.images import MAX_BYTES
from pipeline.leases import Lease
from pipeline.progress import OnProgress
from pipeline.rows_on_disk import Rows
from pipeline.sealing import RecordType, sealed, unsealed
from pipeline.store import Store
from pipeline.store_users import BATCHES

FORMAT: Final = 1
"""Raised whenever the same listing and model version would be answered otherwise, or in other columns."""

PART_OBJECTS: Final = 10_000
PART_BYTES: Final = 2 << 30
"""Of the images of a part: what is done again where a process was killed in the middle of one."""
PART_NUMBERS: Final = 4_000_000
"""Probabilities of a part."""
LEASE_TTL_S: Final = 15.0
WORK: Final = "_work"
REPEATED: Final = ["label", "reason", "model", "model_version", "dataset_version"]
"""Columns in which a dictionary takes less than what it replaces."""
METADATA: Final = b"safelight"

MANIFEST_KEY: Final = re.compile(rf"{BATCHES}/[^/]+/[^/_][^/]*/manifest\.json")

LISTED_COLUMNS: Final[dict[str, Any]] = {"key": pa.string(), "size": pa.int64(), "etag": pa.string()}
LISTED: Final = pa.schema(LISTED_COLUMNS)


class Segment(StoredFile):
    """A stored table of listed objects (``LISTED``): those of one part."""

    rows: int


class Plan(Record):
    """What a batch is made of, and by.

    Attributes:
        identity: digest of the source, the prefix, the listing and the model version.
        source: URL of the store that keys are relative to.
        prefix: the folder there.
        asked: the version or alias that was asked for.
        version: the version that this was when it was asked.
        listed_at: when the listing was finished.
        segments: the listing, by part.
    """

    format: Literal[1] = FORMAT
    identity: Digest
    source: str
    prefix: str
    model: Name
    asked: str
    version: str
    listed_at: datetime
    objects: int
    segments: tuple[Segment, ...]


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


def address(prefix: str, images: str) -> tuple[str, str]:
    """The URL of a store, and the folder in it.

    Args:
        prefix: a folder of the images zone, or the URL of one in a bucket of the same store.
        images: the URL of the images zone.

    Raises:
        InvalidInput: it is neither.
    """
    if "://" not in prefix:
        folder = prefix.strip().strip("/")
        if not folder:
            raise InvalidInput(f"The prefix is empty: name a folder of images, or give {images} for all of them.")
        return images, folder
    if f"{prefix}/".startswith(f"{images}/"):
        return images, prefix.removeprefix(images).strip("/")
    bucket, _, folder = prefix.removeprefix("s3://").partition("/")
    if not prefix.startswith("s3://") or not bucket:
        raise InvalidInput(f"{prefix!r} is no prefix: give a folder of {images}, or s3://bucket/folder.")
    return f"s3://{bucket}", folder.strip("/")


def identity(source: str, prefix: str, model: str, version: str, listing: Rows) -> str:
    """The digest of what decides the answers; ``listing`` (``LISTED``) is by key."""
    digest = hashlib.sha256()
    for rows in listing:
        columns = (values(rows[name]) for name in LISTED.names)
        digest.update("".join(f"{key}\0{size}\0{etag}\n" for key, size, etag in zip(*columns, strict=True)).encode())
    what = {"source": source, "prefix": prefix, "model": model, "version": version, "listing": digest.hexdigest()}
    return digest_of({"format": FORMAT, **what})


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


def cut(listing: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """A listing in parts of at most so many rows, and of ``PART_BYTES`` to read."""
    held = LISTED.empty_table()
    for table in listing:
        held = pa.concat_tables([held, table])
        ends = _ends([0 if size > MAX_BYTES else size for size in values(held["size"])], rows)
        for start, end in zip([0, *ends[:-2]], ends[:-1], strict=False):
            yield held.slice(start, end - start)
        if len(ends) > 1:
            held = held.slice(ends[-2]).combine_chunks()
    if len(held):
        yield held


def write_listing(predictions: Store, place: Place, parts: Iterable[pa.Table]) -> tuple[Segment, ...]:
    """Store the parts of a listing."""
    segments = []
    for rows in parts:
        file = io.BytesIO()
        pq.write_table(rows, file, compression="zstd")
        data = file.getvalue()
        stored = StoredFile.of(f"{place.work}/listing/{hashlib.sha256(data).hexdigest()}.parquet", data)
        predictions.write_once(stored.key, data)
        segments.append(Segment(**stored.model_dump(), rows=len(rows)))
    return tuple(segments)


def read_listing(predictions: Store, segment: Segment) -> pa.Table:
    """The listed objects (``LISTED``) of a part.

    Raises:
        ObjectMissing: the listing was removed.
        Corrupted: it was altered.
    """
    with pq.ParquetFile(pa.BufferReader(predictions.get_verified(segment.key, segment.sha256))) as file:
        return file.read(use_threads=False)


def write_plan(predictions: Store, place: Place, plan: Plan) -> Plan:
    """Store a plan; what is stored from now on, where another one was quicker."""
    return _record(Plan, predictions, place.plan, predictions.write_once(place.plan, sealed(plan, place.plan)))


def read_plan(predictions: Store, place: Place) -> Plan | None:
    """The plan of a batch that is unfinished; None where there is none.

    Raises:
        Corrupted: it was altered.
    """
    data = predictions.get_if_present(place.plan)
    return None if data is None else _record(Plan, predictions, place.plan, data)


def unfinished(predictions: Store, model: str) -> Iterator[tuple[Place, Plan]]:
    """The batches of a model that have a plan and no manifest."""
    for name in predictions.folders(f"{BATCHES}/{model}/{WORK}"):
        place = Place(model, name)
        plan = read_plan(predictions, place)
        if plan is not None and predictions.head(place.manifest) is None:
            yield place, plan


def parts_of(place: Place, plan: Plan) -> list[Part]:
    """All parts of a batch."""
    return [
        Part(
            key=f"{place.folder}/part-{number:05d}.parquet",
            plan=plan.identity,
            source=plan.source,
            prefix=plan.prefix,
            model=plan.model,
            version=plan.version,
            listing=segment,
        )
        for number, segment in enumerate(plan.segments)
    ]


def encode_part(part: Part, rows: pa.Table, classes: Sequence[str], left_out: dict[str, int]) -> bytes:
    """The Parquet file of a part's rows, which says where it belongs, and how its probabilities are ordered."""
    said = {"plan": part.plan, "classes": list(classes), "left_out": left_out}
    file = io.BytesIO()
    write: Any = pq.write_table  # its stubs know no list of columns
    write(
        rows.replace_schema_metadata({METADATA: json.dumps(said, ensure_ascii=False)}),
        file,
        compression="zstd",
        use_dictionary=REPEATED,
    )
    return file.getvalue()


def described(predictions: Store, key: str, data: bytes, plan: str) -> BatchPart:
    """What the bytes of a stored part are.

    Raises:
        Corrupted: they are no part of the batch with that plan.
    """
    try:
        metadata: Any = pq.read_metadata(pa.BufferReader(data))
        said = json.loads(metadata.metadata[METADATA])
        mine, left_out = said["plan"] == plan, said["left_out"]
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        mine, left_out = False, {}
    if not mine:
        raise Corrupted(f"{predictions.url}/{key} is no part of this batch: remove it, and predict again.")
    rows = metadata.num_rows
    file = StoredFile.of(key, data).model_dump()
    return BatchPart(**file, rows=rows, answered=rows - sum(left_out.values()), left_out=left_out)


def write_manifest(predictions: Store, place: Place, manifest: BatchManifest) -> BatchManifest:
    """Make a batch complete; the manifest that is stored from now on."""
    data = predictions.write_once(place.manifest, sealed(manifest, place.manifest))
    return _record(BatchManifest, predictions, place.manifest, data)


def read_manifest(predictions: Store, place: Place) -> BatchManifest | None:
    """The manifest of a complete batch; None where there is none.

    Raises:
        Corrupted: it was altered.
    """
    data = predictions.get_if_present(place.manifest)
    return None if data is None else _record(BatchManifest, predictions, place.manifest, data)


def clear_work(predictions: Store, place: Place) -> None:
    """Remove what a complete batch needs no more, the plan first: without it nobody looks at the rest."""
    predictions.delete([place.plan])
    predictions.delete([each.key for each in predictions.listing(f"{place.work}/listing")])


def _ends(sizes: Sequence[int], rows: int) -> list[int]:
    """Where parts end, the last one at the end of ``sizes``."""
    ends, start, held = [], 0, 0
    for place, size in enumerate(sizes):
        if place > start and (place - start == rows or held + size > PART_BYTES):
            ends.append(place)
            start, held = place, 0
        held += size
    return [*ends, len(sizes)]


def _record(kind: type[RecordType], predictions: Store, key: str, data: bytes) -> RecordType:
    try:
        return unsealed(kind, data, key)
    except Corrupted as error:
        raise Corrupted(f"{predictions.url}/{key} is not what was written there: {error}.") from error
