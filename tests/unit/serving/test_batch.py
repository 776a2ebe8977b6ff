import hashlib

import numpy as np
import pytest
import tiny_models
from live_server import Registry
from onnx import TensorProto, helper
from serving_parts import call, counts, encoded, job, live_of

from pipeline import images
from pipeline.errors import InvalidImage, InvalidInput
from pipeline.onnx_model import INPUT, OUTPUT
from serving.batch import Job, Outcome, compute
from serving.errors import ClientGone, DeadlineExceeded, ModelFailed
from serving.live_model import Answers, LiveModel
from serving.uploads import Upload


@pytest.fixture
def live(models: Registry) -> LiveModel:
    """Version 1, loaded."""
    return live_of(models, 1)


def computed(live: LiveModel, *jobs: Job) -> list[Outcome]:
    """What they get together."""
    return compute(jobs, live, live.model, 3, counts())


def answers(outcome: Outcome) -> Answers:
    """What has to be some."""
    assert isinstance(outcome, Answers), outcome
    return outcome


def test_an_answer_is_the_models_own_distribution(live: LiveModel) -> None:
    """Best class first, every probability as the model gave it, and the digest of the bytes that were sent."""
    sent = encoded(5)
    answer = answers(computed(live, job(sent)[0])[0])
    expected = live.model.probabilities(tiny_models.picture(5)[None])
    np.testing.assert_array_equal(answer.probabilities, expected)
    assert answer.best == [np.argsort(-expected[0]).tolist()]
    assert answer.digests == [hashlib.sha256(sent.data).digest()]


def test_company_changes_no_answer(live: LiveModel) -> None:
    """A call gets the same alone, beside others, and with more images than one batch holds, in the order sent."""
    many = [encoded(seed) for seed in range(live.batch + 3)]
    together = computed(live, job(encoded(100))[0], job(*many)[0], job(encoded(101))[0])
    alone = [answers(computed(live, job(each)[0])[0]).probabilities for each in [encoded(100), *many, encoded(101)]]
    found = np.concatenate([answers(each).probabilities for each in together])
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-6)
    assert [len(answers(each).best) for each in together] == [1, len(many), 1]


def test_pixels_are_classified_as_the_image_they_came_from(live: LiveModel) -> None:
    """Whether an image is sent encoded or as pixels of the model's size."""
    pixels = images.decode(encoded(5).data, live.manifest.pixels)
    plain, sent = computed(live, job(pixels)[0], job(encoded(5))[0])
    np.testing.assert_array_equal(answers(plain).probabilities, answers(sent).probabilities)


def test_pixels_of_another_size_are_the_callers_mistake(live: LiveModel) -> None:
    """The sentence tells both shapes, and the others of the batch are answered."""
    bad, good = computed(live, job(np.zeros((3, 3, 3), np.uint8))[0], job(encoded(5))[0])
    assert isinstance(bad, InvalidInput)
    assert "(12, 10, 3), not (3, 3, 3)" in str(bad)
    answers(good)


def test_a_bad_image_is_named(live: LiveModel) -> None:
    """Of several images the sentence says which one cannot be used; of one it says just why."""
    whole = encoded(1).data
    broken = whole[:45] + bytes([whole[45] ^ 0xFF]) + whole[46:]
    several, alone, good = computed(
        live, job(encoded(1), Upload("x.png", broken))[0], job(Upload("", broken))[0], job(encoded(2))[0]
    )
    assert isinstance(several, InvalidImage)
    assert str(several).startswith("Image 2 of 2 ('x.png') cannot be used: ")
    assert str(alone).startswith("The image cannot be used: ")
    answers(good)


def test_what_is_no_image_is_found_before_it_waits() -> None:
    """Headers are looked at first."""
    with pytest.raises(InvalidImage, match="The image cannot be used"):
        job(Upload("", b"text"))


def test_nobody_computes_for_who_has_left_or_is_late(live: LiveModel) -> None:
    """They are told why, and are not decoded."""
    gone, late = job(encoded(1), of=call(gone=True))[0], job(encoded(1), of=call(deadline_s=-1))[0]
    outcomes = computed(live, gone, late, job(encoded(2))[0])
    assert [type(each) for each in outcomes] == [ClientGone, DeadlineExceeded, Answers]
    assert not gone.pixels
    assert not late.pixels


def fragile_onnx() -> bytes:
    """ONNX of a model that fails on every image whose first sample is 7: it looks up class 7 of 3."""
    spec, classes = tiny_models.DATASET.pixels, len(tiny_models.DATASET.classes)
    nodes = [
        helper.make_node("Cast", [INPUT], ["numbers"], to=TensorProto.INT64),
        helper.make_node("Slice", ["numbers", "zeros", "ones", "axes"], ["corner"]),
        helper.make_node("Reshape", ["corner", "flat"], ["first"]),
        helper.make_node("Equal", ["first", "seven"], ["is_seven"]),
        helper.make_node("Cast", ["is_seven"], ["bad"], to=TensorProto.INT64),
        helper.make_node("Mul", ["bad", "seven"], ["row"]),
        helper.make_node("Gather", ["table", "row"], [OUTPUT], axis=0),
    ]
    constants = {
        "zeros": np.zeros(3, np.int64),
        "ones": np.ones(3, np.int64),
        "axes": np.array([1, 2, 3]),
        "flat": np.array([-1]),
        "seven": np.array([7]),
        "table": np.full((1, classes), 1 / classes, np.float32),
    }
    return tiny_models.onnx_of(nodes, constants, spec, classes)


def test_only_those_fail_on_which_the_model_fails(models: Registry) -> None:
    """A model that raises on one image of a batch answers the others."""
    live = live_of(models, 2, onnx_file=fragile_onnx())
    good, bad = np.zeros((12, 10, 3), np.uint8), np.full((12, 10, 3), 7, np.uint8)
    outcomes = computed(live, job(good)[0], job(bad)[0], job(good)[0])
    assert [type(each) for each in outcomes] == [Answers, ModelFailed, Answers]
