import json
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.registry import ModelManifest
from serving.open_inference_request import WantedOutput
from serving.open_inference_response import Encoded, write_response
from serving.open_inference_tensors import bytes_from_binary

MANIFEST = ModelManifest.model_construct(
    model="shapes",
    version="20261122T000100Z-12345678",
    classes=("circle", "line", "Quadrat ü"),
    dataset=tiny_models.DATASET,
)
PROBABILITIES = np.array([[0.1, 0.7, 0.2], [0.25, 0.25, 0.5]], np.float32)


def parts(answer: Encoded) -> tuple[dict[str, Any], bytes]:
    """An answer's JSON, and what follows it."""
    length = len(answer.body) if answer.json_length is None else answer.json_length
    return json.loads(answer.body[:length]), answer.body[length:]


def test_an_answer_says_what_computed_it() -> None:
    """Model, version, dataset version and the request's id."""
    answer, rest = parts(write_response("42", MANIFEST, PROBABILITIES, [WantedOutput("label")]))
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("42", "shapes", MANIFEST.version)
    assert answer["parameters"] == {
        "dataset": "shapes",
        "dataset_version": tiny_models.DATASET.version,
        "role": "champion",
    }
    assert answer["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["line", "Quadrat ü"]},
    ]
    assert rest == b""


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(0, 1, width=32)))
def test_probabilities_are_the_models_to_the_last_bit(probabilities: np.ndarray) -> None:
    """In JSON as well as in binary form."""
    for binary in (False, True):
        wanted = [WantedOutput("probabilities", binary=binary), WantedOutput("probability", binary=binary)]
        answer, rest = parts(write_response("", MANIFEST, probabilities, wanted))
        table, best = answer["outputs"]
        assert (table["shape"], best["shape"]) == (list(probabilities.shape), [len(probabilities)])
        numbers = np.frombuffer(rest, "<f4") if binary else np.array(table["data"] + best["data"], np.float32)
        np.testing.assert_array_equal(numbers[: probabilities.size].reshape(probabilities.shape), probabilities)
        np.testing.assert_array_equal(numbers[probabilities.size :], probabilities.max(axis=1))


def test_binary_data_follow_in_the_order_of_the_outputs() -> None:
    """Each with its size; what is in JSON has none."""
    wanted = [
        WantedOutput("label", binary=True),
        WantedOutput("probability"),
        WantedOutput("probabilities", binary=True),
    ]
    answer, rest = parts(write_response("", MANIFEST, PROBABILITIES, wanted))
    label, probability, probabilities = answer["outputs"]
    size = label["parameters"]["binary_data_size"]
    assert bytes_from_binary(rest[:size], 2, "label") == [b"line", "Quadrat ü".encode()]
    assert probability["data"] == pytest.approx([0.7, 0.5])
    assert probabilities["parameters"]["binary_data_size"] == len(rest) - size == PROBABILITIES.nbytes


def test_the_best_classes_are_written_as_triton_does() -> None:
    """Value, index and label of as many as are asked for; of equal ones, the first."""
    for count, expected in ((1, 1), (2, 2), (9, 3)):
        wanted = [WantedOutput("probabilities", classification=count)]
        answer, _ = parts(write_response("", MANIFEST, PROBABILITIES, wanted))
        output = answer["outputs"][0]
        assert (output["datatype"], output["shape"]) == ("BYTES", [2, expected])
        assert output["data"][0] == "0.700000:1:line"
        assert len(output["data"]) == 2 * expected
    assert output["data"][3:] == ["0.500000:2:Quadrat ü", "0.250000:0:circle", "0.250000:1:line"]
