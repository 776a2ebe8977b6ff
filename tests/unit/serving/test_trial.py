"""Champion and challenger over real HTTP, in one process; several are in ``tests/integration/test_canary.py``."""

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import tiny_models
from live_server import MODEL, Registry, Serve, wait_until

from pipeline import images
from pipeline.artifacts import ModelVersion
from serving.canary import Mode, position

PNG = images.encode_png(tiny_models.picture(5))
DARK = images.encode_png(np.zeros((12, 10, 3), np.uint8))
CALLERS = [f"user-{number}" for number in range(40)]

Odd = Callable[..., bytes]


def pair(models: Registry, odd: Odd = tiny_models.linear_onnx, seed: int = 1) -> tuple[ModelVersion, ModelVersion]:
    """The champion, which is live, and a version that may challenge it."""
    champion = models.register(1)
    models.point_at(champion)
    return champion, models.register(2, onnx_file=odd(tiny_models.DATASET, seed))


def begun(client: httpx.Client, challenger: ModelVersion, step: int = 1) -> httpx.Client:
    """The client, once the challenger is live in this step."""
    wait_until(lambda: (report(client)["challenger"] or {}).get("version") == challenger.version)
    wait_until(lambda: report(client)["step"] == step)
    return client


def report(client: httpx.Client) -> dict[str, Any]:
    """What the server counted."""
    found: dict[str, Any] = client.get(f"/v2/models/{MODEL}/canary").json()
    return found


def asked(client: httpx.Client, caller: str, png: bytes = PNG) -> dict[str, Any]:
    """The answer that a caller gets."""
    answer = client.post("/predict", content=png, headers={"X-Caller-Key": caller})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_each_caller_gets_its_version(models: Registry, serve: Serve) -> None:
    """The one that its place says, at every request, and the answer names version and role."""
    champion, challenger = pair(models, seed=2)
    models.challenge(challenger, 0.4)
    client = begun(serve(), challenger)
    for caller in CALLERS * 2:
        expected = (challenger, "challenger") if position(challenger.version, caller) < 0.4 else (champion, "champion")
        found = asked(client, caller)
        assert (found["model_version"], found["role"]) == (expected[0].version, expected[1])
    found = report(client)
    in_it = sum(position(challenger.version, caller) < 0.4 for caller in CALLERS)
    assert found["challenger"]["requests"] == 2 * in_it
    assert found["champion"]["requests"] == 2 * (len(CALLERS) - in_it)
    assert found["challenger"]["errors"] == 0
    assert sum(found["challenger"]["seconds"]["counts"]) == 2 * in_it


def test_what_the_challenger_fails_at_is_answered_by_the_champion(models: Registry, serve: Serve) -> None:
    """As if there were no challenger, and each failure is counted once."""
    champion, challenger = pair(models, tiny_models.crashing_onnx)
    models.challenge(challenger, 1.0)
    client = begun(serve(), challenger)
    for _ in range(3):
        found = asked(client, "anybody", DARK)
        assert (found["model_version"], found["role"]) == (champion.version, "champion")
        assert asked(client, "anybody")["role"] == "challenger"
    found = report(client)
    assert (found["challenger"]["requests"], found["challenger"]["errors"]) == (6, 3)
    assert (found["champion"]["requests"], found["champion"]["errors"]) == (3, 0)


@pytest.mark.parametrize(("odd", "disagree"), [(tiny_models.linear_onnx, False), (tiny_models.wrong_onnx, True)])
@pytest.mark.parametrize("mode", ["split", "shadow"])
def test_the_two_are_compared(models: Registry, serve: Serve, odd: Odd, mode: Mode, *, disagree: bool) -> None:
    """In either mode a model that numbers its classes otherwise disagrees on each image, and the same one on none."""
    _, challenger = pair(models, odd)
    models.challenge(challenger, 1.0, mode=mode)
    client = begun(serve(), challenger)

    def compared() -> bool:
        asked(client, "anybody")
        return bool(report(client)["compared"] >= 5)

    wait_until(compared)
    found = report(client)
    assert found["disagreed"] == (found["compared"] if disagree else 0)


def test_two_versions_may_number_the_same_classes_otherwise(models: Registry, serve: Serve) -> None:
    """They are compared by the classes' names."""
    pair(models)
    shuffled = tiny_models.DATASET.model_copy(update={"classes": ("square", "circle", "line"), "version": "f" * 16})
    onnx_file = tiny_models.wrong_onnx(tiny_models.DATASET, 1)
    challenger = tiny_models.register(
        models.checkpoints, models.models, MODEL, 3, dataset=shuffled, onnx_file=onnx_file
    )
    models.challenge(challenger, 1.0)
    client = begun(serve(), challenger)

    def compared() -> bool:
        asked(client, "anybody")
        return bool(report(client)["compared"] >= 5)

    wait_until(compared)
    assert report(client)["disagreed"] == 0


def test_a_shadow_answers_nobody(models: Registry, serve: Serve) -> None:
    """Whatever it does with its copies, they are counted as its own, and all answers are the champion's."""
    champion, challenger = pair(models, tiny_models.crashing_onnx)
    plain = serve()
    wait_until(lambda: plain.get("/v2/health/ready").is_success)
    expected = asked(plain, "anybody", DARK)
    models.challenge(challenger, 1.0, mode="shadow")
    client = begun(plain, challenger)

    def failed() -> bool:
        found = asked(client, "anybody", DARK)
        assert {**found, "request_id": ""} == {**expected, "request_id": ""}
        return bool(report(client)["challenger"]["errors"])

    wait_until(failed)
    assert report(client)["champion"]["errors"] == 0
    assert report(client)["champion"]["version"] == champion.version


def test_a_slow_shadow_delays_nobody(models: Registry, serve: Serve) -> None:
    """It is still at its first copies when the champion has answered many; its time shows in what is counted."""
    _, challenger = pair(models, partial(tiny_models.slow_onnx, ms=50))
    models.challenge(challenger, 1.0, mode="shadow")
    client = begun(serve(), challenger)
    for _ in range(100):
        assert asked(client, "anybody")["role"] == "champion"
    found = report(client)
    assert found["champion"]["requests"] == 100
    assert found["challenger"]["requests"] < 100
    wait_until(lambda: report(client)["challenger"]["requests"] >= 1)
    found = report(client)["challenger"]
    assert found["seconds"]["sum"] / found["requests"] > 0.002


def test_a_slow_challenger_is_measured_and_the_rest_is_answered(models: Registry, serve: Serve) -> None:
    """Its callers wait for it, the others do not, and what it takes is seen in its histogram."""
    _, challenger = pair(models, tiny_models.slow_onnx)
    models.challenge(challenger, 0.5)
    client = begun(serve(), challenger)
    for caller in CALLERS:
        asked(client, caller)
    found = report(client)
    slow, quick = (found[role]["seconds"]["sum"] / found[role]["requests"] for role in ("challenger", "champion"))
    assert found["challenger"]["requests"] + found["champion"]["requests"] == len(CALLERS)
    assert slow > quick


def test_what_would_wait_too_long_for_the_challenger_is_answered_by_the_champion(
    models: Registry, serve: Serve
) -> None:
    """At a share of all requests, many of which come at once, nobody is refused."""
    _, challenger = pair(models, partial(tiny_models.slow_onnx, ms=200))
    models.challenge(challenger, 1.0)
    client = begun(serve(), challenger)
    with ThreadPoolExecutor(64) as clients:
        roles = [each["role"] for each in clients.map(partial(asked, client), map(str, range(64)))]
    assert set(roles) == {"champion", "challenger"}
    assert report(client)["challenger"]["errors"] == 0


def test_a_form_of_several_images_goes_to_one_version(models: Registry, serve: Serve) -> None:
    """All of its images are answered by the same one."""
    _, challenger = pair(models, seed=2)
    models.challenge(challenger, 1.0)
    client = begun(serve(), challenger)
    answer = client.post("/predict", files=[("image", ("a.png", PNG))] * 3)
    assert [each["role"] for each in answer.json()["predictions"]] == ["challenger"] * 3


def test_who_asks_for_the_live_version_by_its_name_gets_it(models: Registry, serve: Serve) -> None:
    """And no challenger, whom the same caller gets without the name; the protocol's answers tell the role, too."""
    champion, challenger = pair(models, seed=2)
    models.challenge(challenger, 1.0)
    client = begun(serve(), challenger)
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PNG).decode()]}
    for path, version, role in (
        (f"/versions/{champion.version}", champion.version, "champion"),
        ("", challenger.version, "challenger"),
    ):
        said = client.post(f"/v2/models/{MODEL}{path}/infer", json={"inputs": [image]}).json()
        assert (said["model_version"], said["parameters"]["role"]) == (version, role)


@pytest.mark.parametrize("mode", ["split", "shadow"])
def test_a_challenger_may_see_other_pixels(models: Registry, serve: Serve, mode: Mode) -> None:
    """Images are decoded as each of the two wants them; pixels of the champion's size are the champion's to answer."""
    champion, _ = pair(models)
    spec = tiny_models.DATASET.pixels.model_copy(update={"height": 8, "width": 8, "channels": 1})
    other = tiny_models.DATASET.model_copy(update={"pixels": spec, "version": "fedcba9876543210"})
    challenger = tiny_models.register(models.checkpoints, models.models, MODEL, 3, dataset=other)
    models.challenge(challenger, 1.0, mode=mode)
    client = begun(serve(), challenger)
    pixels = {"name": "pixels", "shape": [1, 12, 10, 3], "datatype": "UINT8"}
    data = tiny_models.picture(5).ravel().tolist()
    answer = client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [pixels | {"data": data}]}).json()
    assert answer["model_version"] == champion.version

    def compared() -> bool:
        answers = challenger if mode == "split" else champion
        assert asked(client, "anybody")["model_version"] == answers.version
        return bool(report(client)["compared"] >= 5)

    wait_until(compared)
    assert report(client)["challenger"]["errors"] == 0


def test_a_large_image_goes_the_same_way(models: Registry, serve: Serve) -> None:
    """It is decoded by another thread before its turn comes."""
    _, challenger = pair(models)
    models.challenge(challenger, 1.0)
    client = begun(serve(), challenger)
    large = images.encode_png(tiny_models.picture(5, 400, 400))
    assert asked(client, "anybody", large)["role"] == "challenger"


def test_what_is_no_image_is_the_clients_mistake(models: Registry, serve: Serve) -> None:
    """No failure of the challenger's."""
    _, challenger = pair(models)
    models.challenge(challenger, 1.0)
    client = begun(serve(), challenger)
    assert client.post("/predict", content=b"text").status_code == 422
    assert report(client)["challenger"]["errors"] == 0


def test_the_canary_of_another_model_is_a_404(serve: Serve) -> None:
    """As its status is."""
    assert serve().get("/v2/models/cats/canary").status_code == 404


def test_a_swap_ends_the_canary_and_keeps_everybody_answered(models: Registry, serve: Serve) -> None:
    """The challenger becomes the champion under requests, and each is answered by one of the two."""
    champion, challenger = pair(models, seed=2)
    models.challenge(challenger, 0.5)
    client = begun(serve(), challenger)
    seen: list[str] = []
    models.point_at(challenger)

    def is_over() -> bool:
        seen.extend(asked(client, caller)["model_version"] for caller in CALLERS)
        return bool(client.get(f"/v2/models/{MODEL}").json()["version"] == challenger.version)

    wait_until(is_over)
    assert set(seen) <= {champion.version, challenger.version}
    assert {asked(client, caller)["role"] for caller in CALLERS} == {"champion"}
    assert client.get(f"/v2/models/{MODEL}").json()["canary"] is None
