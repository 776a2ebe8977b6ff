"""Tensor data of the Open Inference Protocol, read and written: JSON arrays, and the binary extension's bytes.

- **Nothing is allocated that the client did not send**: shapes are checked before they come here, elements are counted
  against them, and no array is made of values whose types were not looked at.
- **An image in JSON is base64**, which JSON's text can carry and raw bytes cannot. MLServer's clients send that;
  Triton's and KServe's put the string that they are given into JSON, so their users encode it themselves; KServe's
  first protocol wraps it in ``{"b64": …}``, and browsers make ``data:`` URLs. All of these are read, in both alphabets
  of RFC 4648, wrapped in lines or not, padded or not.
- A binary BYTES element is its length in four bytes, little-endian, then itself.
"""

import binascii
from collections.abc import Iterable, Sequence
from itertools import chain
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidInput

LENGTH_BYTES: Final = 4
URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
WHITESPACE: Final = b" \t\r\n"


def bytes_from_json(data: object, count: int, name: str) -> list[bytes]:
    """The ``count`` elements of a BYTES tensor in JSON, decoded from base64.

    Raises:
        InvalidInput: they are not so many, or one of them is not base64.
    """
    return [_from_base64(element, number, name) for number, element in enumerate(_elements(data, [count], name))]


def bytes_from_binary(raw: bytes | memoryview, count: int, name: str) -> list[bytes]:
    """The ``count`` elements of a BYTES tensor in binary form.

    Raises:
        InvalidInput: their lengths do not add up to ``raw``'s.
    """
    found: list[bytes] = []
    start = 0
    while start < len(raw) and len(found) < count:
        size = int.from_bytes(raw[start : start + LENGTH_BYTES], "little")
        start += LENGTH_BYTES
        found.append(bytes(raw[start : start + size]))
        start += size
    if start != len(raw) or len(found) != count:
        raise InvalidInput(
            f"The binary data of input {name!r} are not {count} elements, each its length in four bytes, "
            "little-endian, and then itself."
        )
    return found


def pixels_from_json(data: object, shape: Sequence[int], name: str) -> NDArray[np.uint8]:
    """A UINT8 tensor of that shape.

    Raises:
        InvalidInput: there are more or fewer elements, or other ones than whole numbers from 0 to 255.
    """
    values = _elements(data, shape, name)
    try:
        if set(map(type, values)) <= {int}:  # JSON's true is none, though Python's is
            return np.frombuffer(bytes(values), np.uint8).reshape(shape)
    except ValueError:
        pass  # said below
    raise InvalidInput(f"The data of input {name!r} are not all whole numbers from 0 to 255.")


def pixels_from_binary(raw: bytes | memoryview, shape: Sequence[int], name: str) -> NDArray[np.uint8]:
    """A UINT8 tensor of that shape; it shares its memory with ``raw``.

    Raises:
        InvalidInput: these are more or fewer bytes.
    """
    if len(raw) != prod(shape):
        raise InvalidInput(
            f"Input {name!r} of shape {list(shape)} has {prod(shape)} bytes, and its binary data {len(raw)}."
        )
    return np.frombuffer(raw, np.uint8).reshape(shape)


def bytes_to_binary(elements: Iterable[bytes]) -> bytes:
    """A BYTES tensor in binary form."""
    return b"".join(len(element).to_bytes(LENGTH_BYTES, "little") + element for element in elements)


def _elements(data: object, shape: Sequence[int], name: str) -> list[Any]:
    """The elements of a JSON tensor in row-major order, whether it is flat or nested."""
    if type(data) is list and len(data) == prod(shape) and not any(type(each) is list for each in data):
        return data
    level: list[Any] = [data]
    for size in shape:
        if not all(type(each) is list and len(each) == size for each in level):
            raise InvalidInput(
                f"The data of input {name!r} are not {prod(shape)} elements, flat or nested as its shape "
                f"{list(shape)} says."
            )
        level = list(chain.from_iterable(level))
    return level


def _from_base64(element: object, number: int, name: str) -> bytes:
    text = element["b64"] if isinstance(element, dict) and element.keys() == {"b64"} else element
    try:
        if isinstance(text, str):
            text = text.partition(",")[2] if text.startswith("data:") else text
            packed = text.encode("ascii").translate(URL_SAFE, WHITESPACE)
            return binascii.a2b_base64(packed + b"=" * (-len(packed) % 4), strict_mode=True)
    except ValueError:
        pass  # said below
    raise InvalidInput(
        f"Element {number} of input {name!r} is not base64: in JSON an image is sent as a base64 string, as it is only "
        "by the binary extension."
    )
