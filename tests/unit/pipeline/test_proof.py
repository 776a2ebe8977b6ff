from collections import Counter

import httpx
import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from pipeline import registry
from pipeline.errors import DeployFailed
from pipeline.progress import silent
from pipeline.proof import Question, difference, prove, spread
from pipeline.registry import ModelManifest
from pipeline.settings import Settings
from pipeline.store import open_store


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


def asked(manifest: ModelManifest, answer: httpx.Response) -> str | None:
    """What proving comes to at a server that always answers so."""
    transport = httpx.MockTransport(lambda _: answer)
    with httpx.Client(base_url="http://server", transport=transport) as client:
        return prove(client, [question(0.7, 0.2, 0.1)], manifest, silent)


def test_an_answer_of_another_version_proves_nothing(manifest: ModelManifest) -> None:
    """The very numbers expected, from another version, are no proof, and no proof of a fault either."""
    said = answer(manifest, circle=0.7)
    assert asked(manifest, httpx.Response(200, json=said)) is None
    other = said | {"model_version": "20200101T000000Z-00000000"}
    assert "with version 2020" in str(asked(manifest, httpx.Response(200, json=other)))


def test_a_server_that_comes_or_goes_is_no_fault_of_the_version(manifest: ModelManifest) -> None:
    """429 and 503 are said and can be asked again; a refusal of the image, or another answer, is a failure for good."""
    for status in (429, 503):
        assert f"with status {status}" in str(asked(manifest, httpx.Response(status)))
    with pytest.raises(DeployFailed, match="was refused: no image"):
        asked(manifest, httpx.Response(422, text="no image"))
    with pytest.raises(DeployFailed, match="is 'line' to the server"):
        asked(manifest, httpx.Response(200, json=answer(manifest, line=0.7)))


def test_a_connection_that_breaks_is_no_fault_of_the_version(manifest: ModelManifest) -> None:
    """It is said, and can be asked again."""

    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone", request=request)

    with httpx.Client(base_url="http://server", transport=httpx.MockTransport(broken)) as client:
        assert prove(client, [question(0.7, 0.2, 0.1)], manifest, silent) == "does not answer: gone"


def test_without_an_image_nothing_is_proven(manifest: ModelManifest) -> None:
    """An empty smoke set is a failure."""
    with httpx.Client() as client, pytest.raises(DeployFailed, match="no test image"):
        prove(client, [], manifest, silent)


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
