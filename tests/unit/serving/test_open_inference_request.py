import base64
import binascii
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.artifacts import PixelSpec
from pipeline.errors import InvalidInput
from serving.open_inference_request import InferenceRequest, WantedOutput, read_request
from serving.open_inference_tensors import bytes_from_binary, bytes_to_binary, pixels_from_binary, pixels_from_json
from serving.uploads import Upload

SPEC = PixelSpec(height=8, width=9, channels=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), np.uint8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def image_input(*images: bytes, **other: Any) -> dict[str, Any]:
    """An input of encoded images in JSON, some members replaced."""
    texts = [base64.b64encode(each).decode() for each in images]
    return {"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": texts} | other


def pixel_input(**other: Any) -> dict[str, Any]:
    """An input of two images' pixels in JSON, some members replaced."""
    return {"name": "pixels", "shape": [2, 8, 9, 3], "datatype": "UINT8", "data": PIXELS.tolist()} | other


def read(tensor: object, binary: bytes = b"", **other: Any) -> InferenceRequest:
    """A request with one input, and the binary data that follow."""
    text = json.dumps({"inputs": [tensor]} | other).encode()
    return read_request(text + binary, str(len(text)) if binary else None, SPEC)


def images_of(request: InferenceRequest) -> list[bytes]:
    """The encoded images."""
    return [each.data for each in request.images if isinstance(each, Upload)]


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
def test_images_arrive_as_they_were_sent(images: list[bytes]) -> None:
    """Whatever the bytes, in JSON and in binary form the same images arrive, in order."""
    packed = bytes_to_binary(images)
    assert bytes_from_binary(packed, len(images), "image") == images
    as_binary = image_input(*images, data=None, parameters={"binary_data_size": len(packed)})
    assert images_of(read(image_input(*images))) == images_of(read(as_binary, packed)) == images


@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 4)))
def test_pixels_arrive_as_they_were_sent(pixels: np.ndarray) -> None:
    """Flat, nested and in binary form the same pixels arrive."""
    for found in (
        pixels_from_json(pixels.tolist(), pixels.shape, "pixels"),
        pixels_from_json(pixels.ravel().tolist(), pixels.shape, "pixels"),
        pixels_from_binary(pixels.tobytes(), pixels.shape, "pixels"),
    ):
        np.testing.assert_array_equal(found, pixels)


def test_each_image_of_pixels_is_one() -> None:
    """A tensor of n images becomes n arrays of the model's size."""
    as_binary = pixel_input(data=None, parameters={"binary_data_size": PIXELS.size})
    for request in (read(pixel_input()), read(as_binary, PIXELS.tobytes())):
        np.testing.assert_array_equal(np.stack(list(request.images)), PIXELS)


@pytest.mark.parametrize(
    "text",
    [
        base64.urlsafe_b64encode(b"\xfb\xff image").decode(),
        base64.b64encode(b"\xfb\xff image").decode().rstrip("="),
        "\r\n".join(binascii.b2a_base64(b"\xfb\xff image").decode()),
        "data:image/png;base64," + base64.b64encode(b"\xfb\xff image").decode(),
        {"b64": base64.b64encode(b"\xfb\xff image").decode()},
    ],
)
def test_base64_is_read_as_clients_write_it(text: object) -> None:
    """In both alphabets, unpadded, wrapped, as a data URL and as KServe's first protocol has it."""
    assert images_of(read(image_input(b"", data=[text]))) == [b"\xfb\xff image"]


def test_a_body_that_is_an_image_is_one() -> None:
    """With a JSON length of 0 the whole body is one image, and all outputs come back in binary form."""
    request = read_request(b"\x89PNG", "0", SPEC)
    assert images_of(request) == [b"\x89PNG"]
    assert [(each.name, each.binary) for each in request.outputs] == [
        ("probabilities", True),
        ("label", True),
        ("probability", True),
    ]


def test_members_that_are_null_count_as_absent() -> None:
    """Clients that write all that they know, as null where they know nothing, are understood."""
    tensor = image_input(b"x", parameters=None)
    request = read(tensor, id=None, parameters=None, outputs=None)
    assert request == read(image_input(b"x"))
    assert request.id == ""
    assert len(request.outputs) == 3


def test_what_other_servers_understand_is_passed_over() -> None:
    """Members and parameters that mean nothing here do no harm."""
    read(image_input(b"x", parameters={"content_type": "base64"}), model_name="m", parameters={"priority": 2})


@pytest.mark.parametrize(
    ("asked", "outputs"),
    [
        ({"outputs": [{"name": "label"}]}, [WantedOutput("label")]),
        (
            {"outputs": [{"name": "label"}, {"name": "probability", "parameters": {"binary_data": True}}]},
            [WantedOutput("label"), WantedOutput("probability", binary=True)],
        ),
        (
            {
                "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "probability"}],
                "parameters": {"binary_data_output": True},
            },
            [WantedOutput("label"), WantedOutput("probability", binary=True)],
        ),
        (
            {"outputs": [{"name": "probabilities", "parameters": {"classification": 2}}]},
            [WantedOutput("probabilities", classification=2)],
        ),
    ],
)
def test_outputs_are_those_that_are_asked_for(asked: dict[str, Any], outputs: list[WantedOutput]) -> None:
    """Only they, in that order; binary where they say so themselves, or else where the request does."""
    assert read(image_input(b"x"), **asked).outputs == outputs


@pytest.mark.parametrize(("microseconds", "seconds"), [(1, 1e-6), (2_500_000, 2.5), (0, None)])
def test_the_time_limit_is_in_microseconds(microseconds: int, seconds: float | None) -> None:
    """As Triton has it, where 0 stands for none."""
    assert read(image_input(b"x"), parameters={"timeout": microseconds}).timeout_s == seconds


BAD: dict[str, tuple[object, dict[str, Any]]] = {
    "no input": (None, {"inputs": []}),
    "two inputs": (None, {"inputs": [image_input(b"x"), pixel_input()]}),
    "unknown input": (image_input(b"x", name="input0"), {}),
    "unknown output": (image_input(b"x"), {"outputs": [{"name": "output0"}]}),
    "an output twice": (image_input(b"x"), {"outputs": [{"name": "label"}, {"name": "label"}]}),
    "wrong datatype": (image_input(b"x", datatype="UINT8"), {}),
    "unknown datatype": (image_input(b"x", datatype="FP128"), {}),
    "no image": (image_input(shape=[0]), {}),
    "too many images": (image_input(*[b"x"] * 65), {}),
    "a huge shape": (image_input(b"x", shape=[10**30]), {}),
    "a negative shape": (image_input(b"x", shape=[-1]), {}),
    "a shape with a fraction": (image_input(b"x", shape=[1.5]), {}),
    "a shape of two dimensions": (image_input(b"x", shape=[1, 1]), {}),
    "no shape": (image_input(b"x", shape=[]), {}),
    "fewer data than the shape says": (image_input(b"x", shape=[2]), {}),
    "more data than the shape says": (image_input(b"x", b"y", shape=[1]), {}),
    "no data": (image_input(b"x", data=None), {}),
    "data and binary data": (image_input(b"x", parameters={"binary_data_size": 0}), {}),
    "binary data that are not there": (image_input(data=None, shape=[1], parameters={"binary_data_size": 5}), {}),
    "a size that is none": (image_input(data=None, shape=[1], parameters={"binary_data_size": "5"}), {}),
    "a negative size": (image_input(data=None, shape=[1], parameters={"binary_data_size": -5}), {}),
    "a number for an image": (image_input(b"x", data=[5]), {}),
    "text for an image": (image_input(b"x", data=["no base64!"]), {}),
    "other letters for an image": (image_input(b"x", data=["äöü"]), {}),
    "broken base64": (image_input(b"x", data=["A"]), {}),
    "a string for data": (image_input(b"x", data="AAAA"), {}),
    "another size of pixels": (pixel_input(shape=[2, 9, 8, 3]), {}),
    "pixels of fewer rows than the shape says": (pixel_input(data=PIXELS[:, :7].tolist()), {}),
    "ragged pixels": (pixel_input(data=[[1], *PIXELS.tolist()]), {}),
    "pixels above 255": (pixel_input(data=[256] * PIXELS.size), {}),
    "pixels below 0": (pixel_input(data=[-1] * PIXELS.size), {}),
    "pixels with a fraction": (pixel_input(data=[0.5] * PIXELS.size), {}),
    "truth for pixels": (pixel_input(data=[True] * PIXELS.size), {}),
    "text for pixels": (pixel_input(data=["1"] * PIXELS.size), {}),
    "nothing for pixels": (pixel_input(data=[None] * PIXELS.size), {}),
    "not a number": (pixel_input(data=[float("nan")] * PIXELS.size), {}),
    "a time limit that is none": (image_input(b"x"), {"parameters": {"timeout": "soon"}}),
    "a switch that is none": (image_input(b"x"), {"parameters": {"binary_data_output": 1}}),
    "classes of a label": (image_input(b"x"), {"outputs": [{"name": "label", "parameters": {"classification": 1}}]}),
    "an id that is none": (image_input(b"x"), {"id": 42}),
    "a long id": (image_input(b"x"), {"id": "x" * 1001}),
    "half a character": (image_input(b"x"), {"id": "\ud800"}),
    "a list": ([], {}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_request_is_refused_in_a_sentence(name: str) -> None:
    """Whatever does not fit is the client's mistake, and said in one sentence that any client can be sent."""
    tensor, other = BAD[name]
    with pytest.raises(InvalidInput) as refused:
        read(tensor, **other)
    sentence = str(refused.value)
    assert sentence.encode().endswith(b".")
    assert "\n" not in sentence
    assert len(sentence) < 400


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'"', b"null", b"\x89PNG", b"[" * 100_000, b'{"inputs":' * 100_000, b"[" + b"9" * 5000 + b"]"],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    """Not JSON, no object, nested without end, numbers without end."""
    with pytest.raises(InvalidInput):
        read_request(body, None, SPEC)


@pytest.mark.parametrize("length", ["", "-1", "x", "5.0", "1e3", "٣", "99", "9" * 5000])
def test_a_length_of_the_json_that_is_none_is_refused(length: str) -> None:
    """The header has to name a part of the body."""
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        read_request(b"{}" * 10, length, SPEC)


@pytest.mark.parametrize(
    ("packed", "size"),
    [
        (b"\x01\0\0\0x", 4),
        (b"\x01\0\0\0xy", 6),
        (b"\x02\0\0\0x", 5),
        (b"\xff\xff\xff\xffx", 5),
        (b"\x01\0\0", 3),
        (b"\x01\0\0\0x\x01\0\0\0x", 10),
    ],
)
def test_binary_data_whose_sizes_do_not_add_up_are_refused(packed: bytes, size: int) -> None:
    """The JSON's size and the elements' lengths have to fill what follows the JSON, exactly."""
    with pytest.raises(InvalidInput):
        read(image_input(data=None, shape=[1], parameters={"binary_data_size": size}), packed)


def test_binary_data_that_nobody_announced_are_refused() -> None:
    """Bytes after the JSON belong to an input."""
    with pytest.raises(InvalidInput, match="announces 0 bytes"):
        read(image_input(b"x"), b"more")


def test_json_of_endless_values_is_refused_before_it_is_parsed() -> None:
    """Two bytes of JSON cost some hundred in memory, so their number is limited."""
    with pytest.raises(InvalidInput, match="binary data"):
        read_request(b"[" + b"[]," * 1_000_000 + b"[]]", None, SPEC)


@given(JSON, JSON, JSON)
def test_any_json_is_read_or_refused(tensor: object, data: object, other: object) -> None:
    """No JSON does anything else, wherever it stands; what is refused can be said in UTF-8."""
    for body in (
        tensor,
        {"inputs": tensor},
        {"inputs": [image_input(b"x", data=data)], "parameters": other, "outputs": [other]},
        {"inputs": [pixel_input(data=data, parameters=other)], "id": other},
    ):
        try:
            read_request(json.dumps(body).encode(), None, SPEC)
        except InvalidInput as error:
            str(error).encode()


@given(st.binary(max_size=60), st.integers(0, 70))
def test_any_bytes_are_read_or_refused(binary: bytes, size: int) -> None:
    """No binary data do anything else."""
    try:
        read(image_input(data=None, shape=[2], parameters={"binary_data_size": size}), binary)
    except InvalidInput as error:
        str(error).encode()
