"""A dataset in the store, read and checked: what is packed, what its versions name, and the raw images behind them.

What stays in memory is, of one dataset at a time, 32 bytes for each packed image, one version's index as in
preparation, and key, etag and digest of each raw object that is stored.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from pipeline import dataset_index, dataset_versions, index_segments, selection
from pipeline.artifacts import DatasetVersion
from pipeline.dataset_index import digests_of, pc, values
from pipeline.errors import SafelightError, StoreUnavailable
from pipeline.findings import Ledger, verify_pointer
from pipeline.shards import DIGEST_BYTES, shard_key
from pipeline.store import Store, promised

NAMED_BY_DIGEST = re.compile(r"[^/]+/(?P<kind>shards|index|quarantine)/(?P<digest>[0-9a-f]{16,64})\.[a-z]+")
LISTING: dict[str, Any] = {"key": pa.string(), "etag": pa.binary(), "size": pa.int64()}
FACTS = ["key", "etag", "size", "digest"]


def verify_dataset(images: Store, store: Store, dataset: str, ledger: Ledger) -> None:
    """Check the versions of a dataset, the pointer to the newest, and the raw images that were prepared.

    Args:
        images: the images zone.
        store: the datasets zone.
        dataset: its name.
        ledger: told of everything that is looked at, and of what is wrong.

    Raises:
        StoreUnavailable: the store stayed away.
    """
    # Versions first: what they name is stored before them.
    versions = [name for name in store.folders(dataset) if dataset_versions.VERSION_ID.fullmatch(name)]
    packed = _packed_digests(store, dataset, ledger)
    listing = _listing(images, dataset)
    prepared = _facts(dataset_index.NOTHING)
    for version in versions:
        rows = _checked_version(store, dataset, version, packed, ledger)
        rows = dataset_index.unchanged(rows, listing)
        prepared = _facts(pa.concat_tables([prepared, rows.select(FACTS)]))
    _verify_latest(store, dataset, ledger)
    _verify_raw_images(images, prepared, ledger)


def _packed_digests(store: Store, dataset: str, ledger: Ledger) -> dict[bytes, NDArray[np.uint8]]:
    """Check what is named by its own digest; the image digests (n, 32) in each shard, by the shard's name."""
    packed: dict[bytes, NDArray[np.uint8]] = {}
    named = (found for found in store.listing(dataset) if NAMED_BY_DIGEST.fullmatch(found.key))
    for found, data in store.read_many(named):
        match = NAMED_BY_DIGEST.fullmatch(found.key)
        if match is None or data is None:
            continue
        ledger.count({"shards": "shards", "index": "index segments"}.get(match["kind"], "quarantine lists"))
        if not hashlib.sha256(data).hexdigest().startswith(match["digest"]):
            ledger.fault(store, found.key, "was altered: its name is the digest of other bytes")
        elif match["kind"] == "shards":
            packed[bytes.fromhex(match["digest"])] = _digests_in(store, found.key, data, ledger)
    return packed


def _digests_in(store: Store, key: str, shard: bytes, ledger: Ledger) -> NDArray[np.uint8]:
    try:
        tensors = safetensors.numpy.load(shard)
    except SafetensorError:
        tensors = {}
    if tensors.keys() != {"pixels", "digests"} or len(tensors["pixels"]) != len(tensors["digests"]):
        ledger.fault(store, key, "is no shard")
        return np.empty((0, DIGEST_BYTES), np.uint8)
    return np.array(tensors["digests"])


def _checked_version(
    store: Store, dataset: str, name: str, packed: dict[bytes, NDArray[np.uint8]], ledger: Ledger
) -> pa.Table:
    """Check a dataset version; the rows of its index, none where that cannot be read."""
    key = dataset_versions.manifest_key(dataset, name)
    ledger.count("dataset versions")
    try:
        manifest = dataset_versions.read_manifest(store, dataset, name)
        rows = index_segments.read(store, dataset, manifest.segments)
    except StoreUnavailable:
        raise
    except SafelightError as error:
        ledger.fault(store, key, error)
        return dataset_index.NOTHING
    if said := _version_fault(manifest.version, rows, packed):
        ledger.fault(store, key, said)
    return rows


def _version_fault(version: DatasetVersion, rows: pa.Table, packed: dict[bytes, NDArray[np.uint8]]) -> str | None:
    """What is wrong with a version whose index has these rows."""
    used = rows.filter(pc.is_valid(rows["split"])).sort_by([("digest", "ascending")])
    digests, first = np.unique(digests_of(used["digest"]), axis=0, return_index=True)
    images = used.take(first)
    label = pc.index_in(images["label"], value_set=pa.array(version.classes, pa.string())).to_numpy(False)
    split = pc.index_in(images["split"], value_set=pa.array(selection.SPLITS, pa.string())).to_numpy(False)
    content = selection.Images(digests, np.nan_to_num(label, nan=-1).astype(np.int64), np.zeros(len(images), np.int64))
    codes = split.astype(np.int64) + selection.TRAIN
    if selection.version_of(version.classes, version.pixels, content, codes) != version.version:
        return "does not hold the images, labels and splits that its name is the digest of"
    lost = [shard for shard, row, digest in _places(images) if not _is_packed(packed, shard, row, digest)]
    return f"names {len(lost):,} images that are not packed in {shard_key(version.dataset, lost[0])}" if lost else None


def _places(images: pa.Table) -> Iterator[tuple[bytes, int, bytes]]:
    columns = [values(images[name]) for name in ("shard", "row", "digest")]
    return zip(*columns, strict=True)


def _is_packed(packed: dict[bytes, NDArray[np.uint8]], shard: bytes, row: int, digest: bytes) -> bool:
    digests = packed.get(shard)
    return digests is not None and row < len(digests) and digests[row].tobytes() == digest


def _verify_latest(store: Store, dataset: str, ledger: Ledger) -> None:
    key = dataset_versions.latest_key(dataset)

    def fault() -> str | None:
        latest = dataset_versions.read_latest(store, dataset)
        if latest is None:
            return "cannot be read" if store.head(key) else None
        dataset_versions.read_manifest(store, dataset, latest.version)
        index_segments.read(store, dataset, (latest.extra,) if latest.extra else ())
        return None

    verify_pointer(store, key, fault, ledger)


def _listing(images: Store, dataset: str) -> pa.Table:
    """Key, etag (as an index has it) and size of each raw object."""
    rows = [(found.key, dataset_index.short_etag(found.etag), found.size) for found in images.listing(dataset)]
    keys, etags, sizes = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table({"key": keys, "etag": etags, "size": sizes}, schema=pa.schema(LISTING))


def _facts(rows: pa.Table) -> pa.Table:
    """What index rows say of the bytes of raw objects, once each: versions share nearly all of it."""
    return rows.filter(pc.is_valid(rows["digest"])).select(FACTS).group_by(FACTS).aggregate([])


def _verify_raw_images(images: Store, facts: pa.Table, ledger: Ledger) -> None:
    """Each raw object that is still the one that was prepared has the bytes that were prepared."""
    columns: Any = [values(facts[name]) for name in ("key", "size")]
    objects = (promised(key, size) for key, size in zip(*columns, strict=True))
    reading = images.read_many(objects)
    for etag, digest, (found, data) in zip(values(facts["etag"]), values(facts["digest"]), reading, strict=True):
        ledger.count("raw images")
        if data is None or hashlib.sha256(data).digest() == digest:
            continue
        now = images.head(found.key)
        if now is not None and dataset_index.short_etag(now.etag) == etag:
            ledger.fault(images, found.key, "holds other bytes than when it was prepared, under the same etag")
