"""A dataset's ``labels.csv``: which label and split each image has, where a person says so in a table.

- Columns are ``key,label[,split]`` in any order, keys relative to the dataset's folder. It is read as people save it:
  with or without byte order mark, any line ends, comma, semicolon or tab.
- It is read line by line: a quote that is not closed must not swallow the rows after it, so a key or a label ends on
  the line on which it begins.
"""

import csv
import io
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import Split
from pipeline.errors import InvalidInput

LABELS = "labels.csv"
COLUMNS = ("key", "label", "split")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of labels.csv; ``key`` is relative to the dataset, ``split`` empty where none is given."""

    key: str
    label: str
    split: str = ""


def read_labels(data: bytes, name: str = LABELS) -> Iterator[LabelRow]:
    """The rows of a labels.csv, in order, keys tidied (``/`` between parts, NFC), blank lines left out.

    Raises:
        InvalidInput: not UTF-8, not CSV, or a column is missing; ``name`` says which file.
    """
    # Decoded as it is read: a table of a million rows is in memory once, and not again as text.
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig")
    try:
        header = text.readline()
        delimiter = max(",;\t", key=header.count)
        places = _places(header, delimiter, name)
        for line, row in _lines(csv.reader(text, delimiter=delimiter, strict=True), name):
            cells = [row[place].strip() if 0 <= place < len(row) else "" for place in places]
            if any("\n" in cell for cell in cells):
                raise _unclosed(name, line)
            if any(cell.strip() for cell in row):
                yield LabelRow(_tidy(cells[0]), unicodedata.normalize("NFC", cells[1]), cells[2])
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8 text: save it as CSV in UTF-8.") from error


def write_labels(rows: Iterable[LabelRow]) -> bytes:
    """A labels.csv of these rows: UTF-8, line feeds; equal bytes for equal rows."""
    data = io.BytesIO()
    with io.TextIOWrapper(data, "utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row.key, row.label, row.split) for row in rows)
        text.flush()
        return data.getvalue()


def settle_labels(rows: Iterable[LabelRow]) -> tuple[dict[str, tuple[str, Split | None]], dict[str, str]]:
    """Label and split by key, and by key the reason why a row counts for nothing.

    The same row twice counts once; two rows that contradict each other count for nothing.
    """
    labels: dict[str, tuple[str, Split | None]] = {}
    refused: dict[str, str] = {}
    shared: dict[tuple[str, Split | None], tuple[str, Split | None]] = {}
    for row in rows:
        reason = _fault(row)
        # One object per label and split, however many images they have.
        found = None if reason else shared.setdefault(pair := (row.label, SPLIT_NAMES.get(row.split.lower())), pair)
        if found and labels.setdefault(row.key, found) != found:
            first = labels[row.key]
            reason = f"{LABELS} contradicts itself: {_shown(first)} and {_shown(found)}"
        if reason:
            refused.setdefault(row.key, reason)
    return {key: found for key, found in labels.items() if key not in refused}, refused


def _lines(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """Each row of a csv reader that is behind the header, with the line of the file on which it begins."""
    while True:
        line = reader.line_num + 2
        try:
            row = next(reader, None)
        except csv.Error as error:
            if reader.line_num + 1 == line and "field limit" in str(error):
                raise InvalidInput(f"{name}, line {line}: {error}.") from error
            raise _unclosed(name, line) from error
        if row is None:
            return
        yield line, row


def _unclosed(name: str, line: int) -> InvalidInput:
    return InvalidInput(
        f'{name}, line {line}: a quote (") is opened there and not closed: close it on the same line, or double it '
        "where it belongs to a name."
    )


def _places(header: str, delimiter: str, name: str) -> list[int]:
    """Where each of ``COLUMNS`` stands in a row; -1 for a missing split."""
    columns = [cell.strip().lower() for cell in next(csv.reader([header], delimiter=delimiter), [])]
    for column in COLUMNS[:2]:
        if column not in columns:
            raise InvalidInput(
                f"{name} has no column {column!r}: its first line must name the columns key, label and, "
                f"if splits are given, split; it is {header.strip()[:100]!r}."
            )
    return [columns.index(column) if column in columns else -1 for column in COLUMNS]


def _tidy(key: str) -> str:
    path = unicodedata.normalize("NFC", key).replace("\\", "/").lstrip("/")
    return posixpath.normpath(path) if path else ""


def _fault(row: LabelRow) -> str | None:
    if not row.key:
        return f"{LABELS} has a row without a key"
    if not row.label:
        return f"{LABELS} gives it no label"
    if any(unicodedata.category(character) == "Cc" for character in row.label):
        return f"{LABELS} gives it a label with control characters"
    if row.split and row.split.lower() not in SPLIT_NAMES:
        return f"{LABELS} gives it the split {row.split!r}, which is none of train, validation, test"
    return None


def _shown(found: tuple[str, Split | None]) -> str:
    label, split = found
    return f"{label!r} in {split}" if split else repr(label)
