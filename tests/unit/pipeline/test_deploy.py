from collections import Counter

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import aliases, registry
from pipeline.deploy import Question, deploy, difference, spread
from pipeline.errors import InvalidSettings
from pipeline.registry import ModelManifest
from pipeline.settings import Settings
from pipeline.store import open_store
from pipeline.zones import Zones


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    """Of a version with the classes circle, line and square."""
    checkpoints, models = (open_store("memory:///", Settings()) for _ in range(2))
    version = tiny_models.register(checkpoints, models, "shapes", 1)
    return registry.read_manifest(models, "shapes", version.version)


def question(*probabilities: float) -> Question:
    """What the evaluation said of circle, line and square."""
    return Question("ab" * 32, b"", np.array(probabilities))


def answer(manifest: ModelManifest, **probabilities: float) -> dict[str, object]:
    """The server's answer with these classes on top."""
    top = [{"label": label, "probability": value} for label, value in probabilities.items()]
    return {"model_version": manifest.version, "label": top[0]["label"], "top": top}


def test_an_equal_answer_differs_in_nothing(manifest: ModelManifest) -> None:
    """What the evaluation said, within the tolerance, passes; so does an answer that names fewer classes."""
    asked = question(0.7, 0.2, 0.1)
    assert difference(asked, answer(manifest, circle=0.7, line=0.2, square=0.1), manifest) is None
    assert difference(asked, answer(manifest, circle=0.70009, line=0.19991), manifest) is None


@pytest.mark.parametrize(
    ("said", "finding"),
    [
        ({"line": 0.7, "circle": 0.2}, "is 'line' to the server and 'circle' to the evaluation"),
        ({"circle": 0.7002, "line": 0.2}, "is 'circle' with 0.7002 to the server and 0.700000 before"),
        ({"circle": 0.7, "line": 0.1}, "is 'line' with 0.1 to the server"),
        ({"circle": 0.7, "dot": 0.2}, "is 'dot' with 0.2 to the server"),
    ],
)
def test_another_answer_is_described(manifest: ModelManifest, said: dict[str, float], finding: str) -> None:
    """Another label, another probability and an unknown class are each found, and said."""
    assert finding in str(difference(question(0.7, 0.2, 0.1), answer(manifest, **said), manifest))


def test_close_classes_may_change_places(manifest: ModelManifest) -> None:
    """Where the evaluation itself was undecided, another label is no fault, as long as the probabilities are right."""
    asked = question(0.45, 0.45 - 1e-4, 0.1)
    assert difference(asked, answer(manifest, line=0.44995, circle=0.44995), manifest) is None
    assert difference(asked, answer(manifest, line=0.46, circle=0.44), manifest) is not None


def test_an_answer_of_another_version_proves_nothing(manifest: ModelManifest) -> None:
    """The very numbers expected, from another version, are a difference."""
    other = answer(manifest, circle=0.7) | {"model_version": "20200101T000000Z-00000000"}
    assert "answered by version 2020" in str(difference(question(0.7, 0.2, 0.1), other, manifest))


@settings(deadline=None)
@given(st.lists(st.integers(0, 9)), st.integers(1, 40))
def test_the_smoke_set_is_spread_over_the_classes(labels: list[int], count: int) -> None:
    """As many as asked for, all different, in order; no class has two more than another that still had some."""
    chosen = spread(labels, count)
    assert chosen == sorted(set(chosen))
    available = Counter(labels)
    taken = Counter(labels[position] for position in chosen)
    if len(available) <= count:
        assert len(chosen) == min(count, len(labels))
        for label in available:
            assert taken[label] == available[label] or taken[label] >= max(taken.values()) - 1
    else:
        assert set(taken.values()) == {1}
        assert len(chosen) == count


def test_the_smoke_set_reaches_across_many_classes() -> None:
    """With more classes than images, the classes chosen lie at equal distances."""
    labels = [label for label in range(500) for _ in range(3)]
    assert [labels[position] for position in spread(labels, 5)] == [0, 100, 200, 300, 400]


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://host:port", "host:8080"])
def test_a_bad_url_of_the_server_is_refused_first(url: str) -> None:
    """It is named before anything is read or moved."""
    nothing = open_store("memory:///", Settings())
    zones = Zones(nothing, nothing, nothing, nothing, nothing)
    version = tiny_models.register(nothing, nothing, "shapes", 1)
    with pytest.raises(InvalidSettings, match="SAFELIGHT_INFERENCE_URL"):
        deploy(zones, Settings(inference_url=url), version)
    assert aliases.read_alias(nothing, "shapes", aliases.CHAMPION) is None
