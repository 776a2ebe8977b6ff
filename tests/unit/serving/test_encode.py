import numpy as np
import pytest
from live_server import Registry
from serving_parts import live_of

from serving.encode import json_of
from serving.live_model import Answers, LiveModel, best_of
from serving.schemas import Prediction, Predictions


@pytest.fixture
def live(models: Registry) -> LiveModel:
    """Version 1, loaded."""
    return live_of(models, 1)


def answers(live: LiveModel, *rows: list[float]) -> Answers:
    """Of so many images, two classes each."""
    found = np.array(rows, np.float32)
    return Answers(live, "champion", found, *best_of(found, 2), [b""] * len(rows))


def test_one_image_is_one_prediction(live: LiveModel) -> None:
    """The bytes are what the schema describes, with the versions that stand behind them and the request's id."""
    said = Prediction.model_validate_json(json_of(answers(live, [0.25, 0.7, 0.05]), "an-id"))
    assert [(each.label, each.probability) for each in said.top] == [("line", 0.7), ("circle", 0.25)]
    assert (said.label, said.probability, said.request_id) == ("line", 0.7, "an-id")
    assert (said.model, said.model_version) == (live.manifest.model, live.manifest.version)
    assert said.dataset_version == live.manifest.dataset.version


def test_several_images_are_a_list_in_order(live: LiveModel) -> None:
    """One prediction each."""
    said = Predictions.model_validate_json(json_of(answers(live, [0.25, 0.7, 0.05], [0.9, 0.1, 0]), "an-id"))
    assert [each.label for each in said.predictions] == ["line", "circle"]


def test_rounding_makes_no_probability_larger_than_one(live: LiveModel) -> None:
    """float32 can be a little more than 1."""
    said = Prediction.model_validate_json(json_of(answers(live, [float(np.float32(1.0000001)), 0.0, 0.0]), "an-id"))
    assert said.probability == 1.0
