"""Stored records carry a seal, a digest of what they say and of the key under which they lie.

A file that a manifest names is verified by the SHA-256 there; a manifest itself has nobody who vouches for it. The seal
tells a record that was altered, and one that was moved or copied to another record's key, from one that was written
there. It guards against accidents, not against people: whoever may write to the store can seal as well.
"""

import json
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from pipeline.artifacts import Record, digest_of
from pipeline.errors import Corrupted

RecordType = TypeVar("RecordType", bound=Record)

SEAL: Final = "seal"


def sealed(record: Record, key: str, *, compact: bool = False) -> bytes:
    """``record`` as UTF-8 JSON to be stored under ``key``; equal for equal records under one key."""
    fields = record.model_dump(mode="json")
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    text = json.dumps({**fields, SEAL: _seal(fields, key)}, ensure_ascii=False, **layout)
    return (text + "\n").encode()


def unsealed(kind: type[RecordType], data: bytes, key: str) -> RecordType:
    """The record that ``sealed`` made for ``key``.

    Raises:
        Corrupted: it was altered, was made for another key, or is of another release; the text is a clause.
    """
    try:
        fields = json.loads(data)
        seal = fields.pop(SEAL, None) if isinstance(fields, dict) else None
        record = kind.model_validate(fields)
    except (ValueError, ValidationError) as error:
        raise Corrupted("it was altered, or is of another release") from error
    if seal != _seal(fields, key):
        raise Corrupted("it was altered or moved there after it was written")
    return record


def _seal(fields: dict[str, Any], key: str) -> str:
    return digest_of({"key": key, "record": fields})
