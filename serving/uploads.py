"""The encoded images in a request body: the body itself, or the file parts of multipart/form-data.

- A body of any other type is taken for an image, whatever its Content-Type says: ``curl --data-binary`` sends
  ``application/x-www-form-urlencoded``, many clients send nothing, and the decoder goes by the bytes anyway.
- The body is bounded and in memory before it is parsed, so nothing is ever spooled to a disk. python-multipart accepts
  a body that ends in the middle of a part; here the closing boundary has to be there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from pipeline.errors import InvalidInput

MULTIPART = "multipart/form-data"
MAX_PARTS = 64
"""Parts of one multipart body."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One encoded image as it was sent; ``name`` is the client's file name, or empty."""

    name: str
    data: bytes


def is_multipart(content_type: str) -> bool:
    """Whether a body of this Content-Type is multipart/form-data."""
    return content_type.partition(";")[0].strip().lower() == MULTIPART


def uploads(content_type: str, body: bytes) -> Sequence[Upload]:
    """The images in ``body``, at least one.

    Raises:
        InvalidInput: the body is empty, is broken multipart, or has no file among its parts, or too many parts.
    """
    if not body:
        raise InvalidInput("The request has no body: send the bytes of an image.")
    if not is_multipart(content_type):
        return [Upload("", body)]
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidInput("The Content-Type is multipart/form-data without a boundary.")
    found = _parsed(boundary, body)
    if not found:
        raise InvalidInput("None of the parts is a file: send each image as a part with a file name.")
    return found


def _parsed(boundary: bytes, body: bytes) -> Sequence[Upload]:
    parts = _FileParts()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_end": parts.close,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise InvalidInput(f"The multipart body is broken: {error}.") from error
    if not parts.closed:
        raise InvalidInput("The multipart body is broken: it ends without its closing boundary.")
    return parts.files


class _FileParts:
    """What the parser reports, kept for parts that have a file name; form fields are passed over."""

    def __init__(self) -> None:
        self.files: list[Upload] = []
        self.closed = False
        self._parts = 0
        self._header_name = self._header_value = b""
        self._file_name: bytes | None = None
        self._chunks: list[bytes] = []

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidInput(f"The multipart body has more than {MAX_PARTS} parts: send fewer images at once.")
        self._file_name = None
        self._chunks = []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._file_name = parse_options_header(self._header_value)[1].get(b"filename")
        self._header_name = self._header_value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._file_name is not None:
            self._chunks.append(data[start:end])

    def end(self) -> None:
        if self._file_name is not None:
            self.files.append(Upload(self._file_name.decode(errors="replace"), b"".join(self._chunks)))

    def close(self) -> None:
        self.closed = True
