"""Where raw images come from: a person's folder, or Fashion-MNIST. An import only adds; it deletes nothing.

- Gather: walk the folder and list the store, both into a temporary file, so that memory does not grow with the number
  of images. Decide: which images are there already, by digest. Apply: upload the rest in parallel.
- The layout of a folder is seen at its top: ``labels.csv`` decides alone; else ``train`` and ``test`` (and ``val``,
  ``valid`` or ``validation``) with class folders in them are given splits; else each folder is a class.
- ``labels.csv`` is written last, so that a half import is never half-labelled. Broken images are uploaded like others:
  judging them is preparation's work, which keeps the reason.
- An ``exact`` import makes the dataset what the folder is now, still without deleting: where more is stored than the
  folder holds, it writes a ``labels.csv`` that names the folder's images alone. That is how removing or moving an image
  in one's folder reaches the dataset.
- What a person may miss is listed with its reason where preparation lists what it leaves out (``quarantine``).
- Links are followed; a link back to a folder that it lies in is counted and left.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline import fashion_mnist, quarantine
from pipeline.artifacts import Name, Record, Split
from pipeline.errors import InvalidInput
from pipeline.folder_scan import UNREADABLE, FoundFile, LeftAside, scan, shown
from pipeline.images import MAX_BYTES, encode_png
from pipeline.labels_table import LABELS, SPLIT_NAMES, LabelRow, read_labels, write_labels
from pipeline.progress import OnProgress, Progress, silent
from pipeline.raw import (
    NO_CLASS,
    NOT_NAMED,
    TOO_LONG,
    check_dataset_name,
    fits_store,
    is_hidden,
    raw_key,
    why_skipped,
)
from pipeline.store import Store
from pipeline.upload_plan import REPORT_EVERY, Uploaded, UploadPlan, upload
from pipeline.zones import Zones

TOO_LARGE = f"larger than {MAX_BYTES >> 20} MiB"
NOTEWORTHY = frozenset({TOO_LARGE, TOO_LONG, NO_CLASS})
MOST_NOTES = 20
FASHION_MNIST_KEY = re.compile(r"/(?:train|test)-\d{5}\.png$")
LOOKED_AT = 1000
"""Stored images whose names tell whose they are."""
MISSING = f"named in {LABELS}, but neither here nor stored"
STILL_DECIDES = "{}, which an earlier import stored, still decides the labels: import with --exact to replace it."


class ImportReport(Record):
    """What an import did.

    Attributes:
        dataset: where the images went.
        found: files seen; always ``uploaded + already_there`` and all that were skipped.
        uploaded: images written now.
        already_there: images whose very bytes were stored before.
        skipped: files left aside, counted by reason.
        bytes: of the images written now.
        notes: sentences on what a person may want to look at.
        left_out: key, in the datasets zone, of the list of what a person may miss; None if that is nothing.
    """

    dataset: Name
    found: int
    uploaded: int
    already_there: int
    skipped: dict[str, int]
    bytes: int
    notes: tuple[str, ...] = ()
    left_out: str | None = None


def dataset_name(folder: Path) -> str:
    """A dataset name made of a folder's: lower case, accents dropped, everything else a hyphen."""
    plain = (
        unicodedata.normalize("NFKD", folder.expanduser().absolute().name).encode("ascii", "ignore").decode().lower()
    )
    return re.sub(r"[^a-z0-9_]+", "-", plain)[:63].strip("-_") or "images"


def import_folder(
    zones: Zones, folder: Path, dataset: str, *, exact: bool = False, on_progress: OnProgress = silent
) -> ImportReport:
    """Upload a person's folder of images, with what it says of labels and splits.

    Args:
        zones: written: images, and in datasets the list of what was left out.
        folder: class folders, given splits of class folders, or any folders with a labels.csv.
        dataset: the dataset's name; what is stored under it already stays.
        exact: leave out of the dataset what is stored and no longer in the folder.
        on_progress: told about files found, and images compared or uploaded.

    Raises:
        InvalidInput: the folder or its labels.csv cannot be used; nothing was uploaded.
        StoreError: the store failed; the same import goes on where it stopped.
    """
    check_dataset_name(dataset)
    folder = folder.expanduser()
    with UploadPlan(dataset) as plan:
        source = _Source(folder, _layout(folder), plan, LeftAside(plan.leave_out))
        labels = _gather(source, on_progress)
        _refuse_unless_classes(source, labels)
        done = upload(plan, zones.images, source.read, on_progress)
        notes = [*_class_notes(source.layout, labels), *_finish_labels(source, zones.images, exact=exact)]
        return _report(zones, plan, done, source.aside, notes)


def import_fashion_mnist(
    zones: Zones,
    dataset: str = "fashion-mnist",
    *,
    cache_dir: Path,
    limit: int | None = None,
    on_progress: OnProgress = silent,
) -> ImportReport:
    """Upload Fashion-MNIST as PNG files, with its published splits.

    Args:
        zones: the images zone is written.
        dataset: the dataset's name.
        cache_dir: where a download is kept.
        limit: how many images; a part with the same shares of splits and classes, always the same one.
        on_progress: told about images compared or uploaded.

    Raises:
        InvalidInput: the images are neither here nor to be had.
        StoreError: the store failed; the same import goes on where it stopped.
    """
    check_dataset_name(dataset)
    parts = fashion_mnist.load(cache_dir)

    def read(source: bytes) -> bytes:
        split, index = source.decode().split()
        return encode_png(parts[SPLIT_NAMES[split]][0][int(index), :, :, None])

    with UploadPlan(dataset) as plan:
        for split, index in fashion_mnist.subset({split: labels for split, (_, labels) in parts.items()}, limit):
            label = fashion_mnist.CLASSES[parts[split][1][index]]
            key = raw_key(dataset, f"{label.replace('/', '-')}/{split}-{index:05}.png")
            plan.add(key, f"{split} {index}".encode(), label, split)
        done = upload(plan, zones.images, read, on_progress)
        _put_labels(zones.images, dataset, _planned_rows(plan))
        return _report(zones, plan, done, LeftAside(plan.leave_out), [])


def lacks_fashion_mnist(images: Store, dataset: str = fashion_mnist.NAME) -> bool:
    """Whether nothing is stored for ``dataset``, or nothing but what a killed import of Fashion-MNIST left.

    Such an import writes its labels.csv last, and its images have names that a person would hardly choose.
    """
    if images.head(f"{dataset}/{LABELS}") is not None:
        return False
    return all(FASHION_MNIST_KEY.search(stored.key) for stored in islice(images.listing(dataset), LOOKED_AT))


def summary(report: ImportReport) -> list[str]:
    """What an import did, in lines for a person."""
    megabytes = report.bytes / 1e6
    lines = [
        f"{report.dataset}: {report.uploaded:,} images uploaded ({megabytes:,.1f} MB), "
        f"{report.already_there:,} there already"
    ]
    lines += [f"skipped, {reason}: {count:,}" for reason, count in sorted(report.skipped.items())]
    return [*lines, *report.notes, *([quarantine.hint(report.left_out)] if report.left_out else [])]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a folder says labels: a table's bytes, folders of given splits by name, or class folders alone."""

    table: bytes | None
    splits: Mapping[str, Split]
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """A person's folder while it is imported."""

    folder: Path
    layout: _Layout
    plan: UploadPlan
    aside: LeftAside

    def read(self, source: bytes) -> bytes | None:
        """The bytes of a planned file; None, and counted, where it cannot be read."""
        path = os.fsdecode(source)
        try:
            return (self.folder / path).read_bytes()
        except OSError:
            self.aside.add(UNREADABLE, path)
            return None


def _layout(folder: Path) -> _Layout:
    """What the top of the folder says.

    Raises:
        InvalidInput: it is no folder, cannot be read, or lacks one of the given splits.
    """
    if folder.resolve() == Path(folder.absolute().anchor):
        raise InvalidInput(f"{folder} is the whole file system: give the folder that holds one folder per class.")
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))
        table = (folder / LABELS).read_bytes() if (folder / LABELS).is_file() else None
    except NotADirectoryError as error:
        raise InvalidInput(f"{folder} is a file: give the folder that holds one folder of images per class.") from error
    except OSError as error:
        raise InvalidInput(f"{error.filename or folder} cannot be read: {error.strerror}.") from error
    splits = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if table is not None or len(splits) < max(1, len(names)):
        return _Layout(table, {}, tuple(names))
    for needed in ("train", "test"):
        if needed not in splits.values():
            raise InvalidInput(f"{folder} holds given splits ({', '.join(names)}), but none of them is {needed!r}.")
    return _Layout(None, splits, tuple(names))


def _gather(source: _Source, on_progress: OnProgress) -> list[str]:
    """Fill the plan with what the folder holds; returns the labels, sorted."""
    labels = set()
    table = source.layout.table
    for row in read_labels(table, str(source.folder / LABELS)) if table is not None else ():
        labels.add(row.label)
        source.plan.name(raw_key(source.plan.dataset, row.key))
    for number, file in enumerate(scan(source.folder, source.aside)):
        if number % REPORT_EVERY == 0:
            on_progress(Progress("looking through the folder", number, unit="files"))
        if table is None or file.path != LABELS:
            _plan_file(source, file)
    return sorted((labels or {*source.plan.labels()}) - {""})


def _plan_file(source: _Source, file: FoundFile) -> None:
    key = raw_key(source.plan.dataset, file.path)
    reason = _why_left(source, file, key)
    if reason:
        source.aside.add(reason, file.path if reason in NOTEWORTHY else None)
        return
    parts = key.split("/")
    split = source.layout.splits.get(file.path.partition("/")[0], "")
    label = "" if source.layout.table is not None else parts[2 if split else 1]
    taken = source.plan.add(key, os.fsencode(file.path), label, split)
    if taken is not None:
        pair = f"{shown(os.fsdecode(taken))} and {shown(file.path)} in {source.folder}"
        raise InvalidInput(f"{pair} would be stored under one key, {key}: rename one of them.")


def _why_left(source: _Source, file: FoundFile, key: str) -> str | None:
    """Why a file is not imported, or None."""
    by_table = source.layout.table is not None
    if not (by_table and source.plan.is_named(key)):
        reason = why_skipped(file.path) or (NOT_NAMED if by_table else None)
        if reason:
            return reason
    if not by_table and file.path.count("/") < (2 if source.layout.splits else 1):
        return NO_CLASS
    if file.size > MAX_BYTES:
        return TOO_LARGE
    return None if fits_store(key) else TOO_LONG


def _refuse_unless_classes(source: _Source, labels: list[str]) -> None:
    """Raise InvalidInput unless there are two classes."""
    if len(labels) >= 2:
        return
    folder = source.folder
    advice = f"put the images of each class into a folder of its own in {folder}, or list them in {LABELS}."
    if not labels:
        left = ", ".join(f"{count} {reason}" for reason, count in sorted(source.aside.counts.items()))
        raise InvalidInput(f"{folder} holds no image of any class ({left or 'it is empty'}): {advice}")
    below = folder / labels[0]
    if below.is_dir() and sum(path.is_dir() for path in below.iterdir()) > 1:
        advice = f"did you mean {below}?"
    raise InvalidInput(f"{folder} holds only one class, {labels[0]!r}, where two are needed: {advice}")


def _class_notes(layout: _Layout, labels: list[str]) -> list[str]:
    alike = defaultdict(list)
    for label in labels:
        alike[label.casefold()].append(label)
    notes = [f"Classes that differ only in case: {', '.join(same)}." for same in alike.values() if len(same) > 1]
    if layout.table is None and not layout.splits:
        stored = {raw_key("", name).removeprefix("/") for name in layout.folders}
        notes += [f"The class folder {name!r} holds no image." for name in sorted(stored.difference(labels))]
    return notes[:MOST_NOTES]


def _finish_labels(source: _Source, images: Store, *, exact: bool) -> list[str]:
    """Write labels.csv, if the folder gives one or given splits, or more is stored than it holds; returns notes."""
    plan = source.plan
    key = f"{plan.dataset}/{LABELS}"
    if source.layout.table is not None:
        if plan.names_nothing():
            raise InvalidInput(
                f"{source.folder / LABELS} names no image that is there: its keys must be paths below {source.folder}, "
                f"and one is {next(plan.missing()).removeprefix(f'{plan.dataset}/')!r}."
            )
        _put_labels(images, plan.dataset, _table_rows(plan, source.layout.table))
        for named in plan.missing():
            plan.leave_out(named, MISSING)
        return []
    if source.layout.splits:
        _put_labels(images, plan.dataset, _planned_rows(plan))
        return []
    is_stored = images.head(key) is not None
    if not exact:
        return [STILL_DECIDES.format(key)] if is_stored else []
    gone = sum(why_skipped(stored.removeprefix(f"{plan.dataset}/")) is None for stored in plan.left_over())
    if is_stored or gone:
        _put_labels(images, plan.dataset, _planned_rows(plan))
    return [f"{gone:,} stored images are not in {source.folder}: they stay stored, but are left out."] if gone else []


def _put_labels(images: Store, dataset: str, rows: Iterable[LabelRow]) -> None:
    key = f"{dataset}/{LABELS}"
    data = write_labels(rows)
    if images.get_if_present(key) != data:
        images.put(key, data)


def _table_rows(plan: UploadPlan, table: bytes) -> Iterator[LabelRow]:
    for row in read_labels(table):
        yield LabelRow(raw_key(plan.dataset, row.key).removeprefix(f"{plan.dataset}/"), row.label, row.split)


def _planned_rows(plan: UploadPlan) -> Iterator[LabelRow]:
    for image in plan.images():
        yield LabelRow(image.key.removeprefix(f"{plan.dataset}/"), image.label, image.split)


def _report(zones: Zones, plan: UploadPlan, done: Uploaded, aside: LeftAside, notes: Iterable[str]) -> ImportReport:
    listed = plan.left_out()
    first = [f"{name}: {reason}" for name, reason in islice(listed, MOST_NOTES)]
    more = sum(1 for _ in listed)
    lines = (quarantine.line(name, reason) for name, reason in plan.left_out())
    return ImportReport(
        dataset=plan.dataset,
        found=done.images + done.already_there + aside.counts.total(),
        uploaded=done.images,
        already_there=done.already_there,
        skipped=dict(aside.counts),
        bytes=done.bytes,
        notes=(*notes, *first, *([f"{more:,} more files were left out."] if more else [])),
        left_out=quarantine.write(zones.datasets, plan.dataset, lines),
    )
