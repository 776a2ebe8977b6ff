import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from serving.uploads import MAX_PARTS, Upload, uploads

FORM = "multipart/form-data; boundary=xyz"


def part(data: bytes, disposition: str = 'form-data; name="a"; filename="b.png"') -> bytes:
    """One part, up to the next boundary."""
    return f"--xyz\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"


@pytest.mark.parametrize("content_type", ["", "image/png", "text/plain", "application/x-www-form-urlencoded", "x/"])
def test_a_body_of_any_type_is_one_image(content_type: str) -> None:
    """Whatever the Content-Type says, a body that is no form is taken as it is."""
    assert uploads(content_type, b"bytes") == [Upload("", b"bytes")]


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters='"\\\r\n'), min_size=1), st.binary()))
)
def test_what_a_client_packs_is_unpacked(files: list[tuple[str, bytes]]) -> None:
    """The file parts come out as they went in: their bytes, their order."""
    request = httpx.Request("POST", "http://x", files=[("image", file) for file in files] or [("f", (None, b"1"))])
    content_type, body = request.headers["content-type"], request.read()
    if not files:
        with pytest.raises(InvalidInput, match="None of the parts is a file"):
            uploads(content_type, body)
    elif len(files) > MAX_PARTS:
        with pytest.raises(InvalidInput, match="more than"):
            uploads(content_type, body)
    else:
        assert [upload.data for upload in uploads(content_type, body)] == [data for _, data in files]


def test_the_clients_file_name_is_kept() -> None:
    """A problem can say which file it was, accents included."""
    body = part(b"1", 'form-data; name="a"; filename="été.png"') + b"--xyz--\r\n"
    assert uploads(FORM, body) == [Upload("été.png", b"1")]


def test_form_fields_are_passed_over() -> None:
    """What a browser's form sends besides the file does not disturb."""
    body = part(b"press", 'form-data; name="button"') + part(b"1") + part(b"", 'form-data; name="c"') + b"--xyz--\r\n"
    assert uploads(FORM, body) == [Upload("b.png", b"1")]


def test_bytes_like_a_boundary_belong_to_the_image() -> None:
    """Only the whole delimiter ends a part."""
    data = b"\r\n--xy\r\n--\r\nxyz--"
    assert uploads(FORM, part(data) + b"--xyz--\r\n") == [Upload("b.png", data)]


@pytest.mark.parametrize(
    ("content_type", "body", "sentence"),
    [
        ("image/png", b"", "has no body"),
        (FORM, b"", "has no body"),
        ("multipart/form-data", part(b"1"), "without a boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, part(b"1"), "Boundary length"),
        (FORM, b"--xyz--\r\n", "None of the parts is a file"),
        (FORM, b"\x89PNG\r\n\x1a\n", "is broken"),
        (FORM, part(b"1"), "ends without its closing boundary"),
        (FORM, part(b"1")[:20], "ends without its closing boundary"),
        (FORM, b"--xyz\r\nBad Header: x\r\n\r\n1\r\n--xyz--\r\n", "invalid character"),
        (FORM, b"--xyz\r\nA: " + b"x" * 9000 + b"\r\n\r\n1\r\n--xyz--\r\n", "header size"),
        (FORM, part(b"1") * (MAX_PARTS + 1) + b"--xyz--\r\n", f"more than {MAX_PARTS} parts"),
    ],
)
def test_a_broken_body_is_a_persons_mistake(content_type: str, body: bytes, sentence: str) -> None:
    """Each kind of broken body is refused with a sentence that says what is wrong with it."""
    with pytest.raises(InvalidInput) as caught:
        uploads(content_type, body)
    assert sentence in str(caught.value)
