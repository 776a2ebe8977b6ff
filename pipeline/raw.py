"""Raw images in the store: how their keys are made from names, and where their labels come from.

- A key is ``<dataset>/<path>``, the path as its owner wrote it, in Unicode NFC. What stores cannot carry (control
  characters, backslashes, bytes that are not UTF-8, parts called ``.`` or ``..``) is written as ``%XX``, and so is a
  ``%`` that would read like one; two paths never get one key unless they differ in Unicode form alone.
- A label is the first folder's name, in NFC. Names that differ only in case are different classes.
- ``<dataset>/labels.csv``, where it exists, decides alone (``labels_table`` reads it): images that it does not name are
  counted and left out.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts import Name, Split
from pipeline.errors import InvalidInput, NotFound
from pipeline.images import claims_to_be_image
from pipeline.labels_table import LABELS, read_labels, settle_labels
from pipeline.store import Store, StoredObject, promised

UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\\\udc80-\udcff\ufffe\uffff]|%(?=[0-9A-Fa-f]{2})")
SYSTEM_NAMES = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})

KEY_BYTES = 1024
"""What S3 allows for a whole key."""
PART_BYTES = 255
"""What stores that keep keys as paths allow for each part of one."""

HIDDEN = "hidden or system file"
NOT_AN_IMAGE = "not an image by its name"
NOT_NAMED = "not named in labels.csv"
NO_CLASS = "in no class folder"
TOO_LONG = "name too long for a key of the store"


@dataclass(frozen=True, slots=True)
class RawImage:
    """One candidate: its key in the images zone, what the listing says of it, its label and given split."""

    key: str
    size: int
    etag: str
    label: str
    split: Split | None


@dataclass(slots=True)
class RawListing:
    """What a dataset's folder in the images zone holds.

    Attributes:
        images: the candidates, in the store's order.
        skipped: files that are no candidates, counted by reason.
        problems: key and reason of each image or row that a person should put right.
    """

    images: list[RawImage] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)


def check_dataset_name(name: str) -> str:
    """``name``, if it can be a dataset's.

    Raises:
        InvalidInput: it cannot.
    """
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidInput(
            f"{name!r} cannot name a dataset: use 1 to 63 of a-z, 0-9, - and _, with a letter or digit at both ends."
        ) from error


def raw_key(dataset: str, path: str) -> str:
    """The key of an image whose path below the dataset's folder is ``path`` (parts joined by ``/``)."""
    parts = unicodedata.normalize("NFC", path).split("/")
    return "/".join([dataset, *(_storable(part) for part in parts)])


def fits_store(key: str) -> bool:
    """Whether every store takes a key of this length."""
    return len(key.encode()) <= KEY_BYTES and all(len(part.encode()) <= PART_BYTES for part in key.split("/"))


def why_skipped(path: str) -> str | None:
    """Why a file of this path is no candidate, or None; hidden folders hide what they hold."""
    parts = path.split("/")
    if any(is_hidden(part) for part in parts):
        return HIDDEN
    return None if claims_to_be_image(parts[-1]) else NOT_AN_IMAGE


def is_hidden(name: str) -> bool:
    """Whether an operating system made this file or folder for itself, by its name."""
    return name.startswith(".") or name in SYSTEM_NAMES


def list_raw(images: Store, dataset: str, take: Callable[[RawImage], None] | None = None) -> RawListing:
    """All that is stored for ``dataset``, with labels and given splits.

    Args:
        images: the images zone.
        dataset: its name.
        take: gets each candidate as it is listed; by default they are collected in the result.

    Raises:
        NotFound: nothing is stored for it.
        InvalidInput: its labels.csv cannot be read.
    """
    table = images.get_if_present(f"{dataset}/{LABELS}")
    stored = images.listing(dataset)
    listing = RawListing()
    found = _by_folder(dataset, stored, listing) if table is None else _by_table(dataset, stored, table, listing)
    count = 0
    for image in found:
        (take or listing.images.append)(image)
        count += 1
    if table is None and not (count or listing.skipped or listing.problems):
        raise NotFound(f"No images are stored for the dataset {dataset!r}: import some, or check its name.")
    return listing


def read_raw(images: Store, keys: Iterable[str], sizes: Iterable[int]) -> Iterator[bytes | None]:
    """The bytes of raw images, in order, several requests at a time; None where one is gone.

    Args:
        images: the images zone.
        keys: whose bytes.
        sizes: what the listing said of each, in bytes.
    """
    for _, data in images.read_many(promised(key, size) for key, size in zip(keys, sizes, strict=True)):
        yield data


def _storable(part: str) -> str:
    if part in {".", ".."}:
        return part.replace(".", "%2E")
    return UNSTORABLE.sub(_escaped, part)


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode(errors="surrogateescape"))


def _by_folder(dataset: str, stored: Iterable[StoredObject], listing: RawListing) -> Iterator[RawImage]:
    """The candidates; ``listing`` gets the rest."""
    names: dict[str, str] = {}
    for item in stored:
        path = item.key.removeprefix(f"{dataset}/")
        reason = why_skipped(path)
        folder, below, _ = path.partition("/")
        if reason:
            listing.skipped[reason] += 1
        elif not below:
            listing.problems.append((item.key, f"{NO_CLASS}: move it into {dataset}/<class>/"))
        else:
            # One string object per class, however many images it has.
            label = names.setdefault(folder, unicodedata.normalize("NFC", folder))
            yield RawImage(item.key, item.size, item.etag, label, None)


def _by_table(dataset: str, stored: Iterable[StoredObject], table: bytes, listing: RawListing) -> Iterator[RawImage]:
    """The candidates; ``listing`` gets the rest. A row of the table takes about 170 bytes meanwhile."""
    labels, refused = settle_labels(read_labels(table, f"{dataset}/{LABELS}"))
    listing.problems += [(f"{dataset}/{key}", reason) for key, reason in refused.items()]
    found = set()
    for item in stored:
        path = unicodedata.normalize("NFC", item.key.removeprefix(f"{dataset}/"))
        if path not in labels and path not in refused:
            # A table's cells are read without the spaces around them.
            path = path.strip()
        if path in labels:
            found.add(path)
            yield RawImage(item.key, item.size, item.etag, *labels[path])
        elif path != LABELS and path not in refused:
            listing.skipped[why_skipped(path) or NOT_NAMED] += 1
    missing = f"{LABELS} names it, but it is not stored"
    listing.problems.extend((f"{dataset}/{key}", missing) for key in labels if key not in found)
