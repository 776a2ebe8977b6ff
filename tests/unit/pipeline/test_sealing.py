import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import Record
from pipeline.errors import Corrupted
from pipeline.sealing import sealed, unsealed


class Note(Record):
    """Something to store."""

    text: str
    number: int = 0


KEY = "notes/one.json"


@pytest.mark.parametrize("compact", [False, True])
@given(st.text(), st.integers())
def test_what_was_sealed_is_read(compact: bool, text: str, number: int) -> None:
    """A record comes back as it was, and equal ones have equal bytes."""
    note = Note(text=text, number=number)
    data = sealed(note, KEY, compact=compact)
    assert unsealed(Note, data, KEY) == note
    assert data == sealed(note.model_copy(), KEY, compact=compact)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_flipped_byte_is_noticed(position: int, change: int) -> None:
    """Whatever becomes of one byte, the record is refused or says the same."""
    note = Note(text="grüße", number=12)
    data = bytearray(sealed(note, KEY))
    data[position % len(data)] ^= change
    try:
        assert unsealed(Note, bytes(data), KEY) == note
    except Corrupted as error:
        assert "it was altered" in str(error)  # noqa: PT017 - either is right


def test_a_moved_record_is_noticed() -> None:
    """A record that lies under another key than it was made for is refused."""
    with pytest.raises(Corrupted, match="moved there"):
        unsealed(Note, sealed(Note(text="a"), "notes/two.json"), KEY)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b'{"text": "a"}', b"\xff", Note(text="a").to_json()])
def test_what_was_never_sealed_is_refused(data: bytes) -> None:
    """Bytes without a seal are no record, be they as good as they may."""
    with pytest.raises(Corrupted):
        unsealed(Note, data, KEY)
