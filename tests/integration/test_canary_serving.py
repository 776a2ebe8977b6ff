"""A canary in a server of two real processes: who gets the challenger, and what becomes of everybody else."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import tiny_models
from live_server import wait_until
from serving_process import MODEL, PNG, Serving, Start, register
from serving_traffic import Traffic, traffic

from pipeline import aliases, images
from pipeline.artifacts import ModelVersion
from pipeline.settings import Settings
from pipeline.zones import Zones
from serving.canary import Mode, position

DARK = images.encode_png(np.zeros((12, 10, 3), np.uint8))
STARTED = datetime(2026, 11, 22, tzinfo=UTC)
CLIENTS = 8
DEVIATIONS = 5
"""Standard deviations by which a share may be missed: once in two million tests."""


def challenge(
    zones: Zones, challenger: ModelVersion | None, share: float = 1.0, step: int = 1, mode: Mode = "split"
) -> None:
    """Give a version a share beside the champion; none: to none."""
    canary = None
    if challenger:
        asked = {"challenger": challenger.version, "share": share, "step": step, "mode": mode, "started_at": STARTED}
        canary = aliases.Canary.model_validate(asked)
    aliases.set_canary(zones.models, MODEL, aliases.CHAMPION, canary, reason="test")


def odd(zones: Zones, graph: Callable[..., bytes], seed: int = 1) -> ModelVersion:
    """A version that answers as version 1 does, but for what is odd in its graph."""
    onnx_file = graph(tiny_models.DATASET, seed)
    return tiny_models.register(zones.checkpoints, zones.models, MODEL, 9, onnx_file=onnx_file)


def report(server: Serving) -> dict[str, Any]:
    """What the server counted of its canary."""
    found: dict[str, Any] = server.get(f"/v2/models/{MODEL}/canary").json()
    return found


def at_step(server: Serving, step: int) -> None:
    """Return when the server, in both of its processes, is at a step (0: has no challenger)."""

    def is_there() -> bool:
        held = {each["challenger"] is not None for each in server.status()["processes"]}
        return report(server)["step"] == step and held == {step > 0}

    wait_until(is_there, 30)


def asked(server: Serving, callers: list[str | None], png: bytes = PNG) -> list[dict[str, Any]]:
    """The answers that callers get, one after the other; each client has a connection of its own to some process."""

    def ask(mine: list[str | None]) -> list[dict[str, Any]]:
        with httpx.Client(base_url=server.client.base_url, trust_env=False, timeout=30) as client:
            found = []
            for caller in mine:
                answer = client.post("/predict", content=png, headers={"X-Caller-Key": caller} if caller else {})
                assert answer.status_code == 200, answer.text
                found.append(answer.json())
            return found

    with ThreadPoolExecutor(CLIENTS) as threads:
        parts = list(threads.map(ask, [callers[start::CLIENTS] for start in range(CLIENTS)]))
    return [parts[number % CLIENTS][number // CLIENTS] for number in range(len(callers))]


def test_shares_callers_and_steps(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Each step's share is met, a caller stays with its version in both processes, and a ramp reloads nothing."""
    first, second = register(zones, 1), register(zones, 2)
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, first.version, reason="test")
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(first, 2)
    seed = time.time_ns()
    source = random.Random(seed)
    callers: list[str | None] = [f"{source.getrandbits(64):x}" for _ in range(200)]
    twice = callers + callers[::-1]  # by another client the second time, and so perhaps by another process
    before: set[str | None] = set()
    for step, share in enumerate((0.1, 0.5, 1.0), 1):
        challenge(zones, second, share, step)
        at_step(server, step)
        said = asked(server, twice)
        expected = [second if position(second.version, str(caller)) < share else first for caller in twice]
        assert [each["model_version"] for each in said] == [each.version for each in expected]
        now = {caller for caller, each in zip(callers, said, strict=False) if each["role"] == "challenger"}
        assert before <= now
        assert abs(len(now) - 200 * share) <= DEVIATIONS * (200 * share * (1 - share)) ** 0.5, f"seed {seed}"
        before = now
    anonymous = asked(server, [None] * 100)
    assert {each["role"] for each in anonymous} == {"challenger"}
    challenge(zones, second, 0.5, 4)
    at_step(server, 4)
    found = sum(each["role"] == "challenger" for each in asked(server, [None] * 200))
    assert abs(found - 100) <= DEVIATIONS * 50**0.5
    counted = report(server)
    assert counted["challenger"]["requests"] + counted["champion"]["requests"] == 3 * 400 + 100 + 200
    assert (counted["challenger"]["errors"], counted["champion"]["errors"]) == (0, 0)
    assert counted["compared"] > 0
    challenge(zones, None)
    at_step(server, 0)
    assert {each["model_version"] for each in asked(server, callers[:20])} == {first.version}


def test_a_challenger_that_crashes_fails_nobody(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Each failure is counted, and answered by the champion; requests on which it does not crash are its own."""
    first, bad = register(zones, 1), odd(zones, tiny_models.crashing_onnx)
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, first.version, reason="test")
    challenge(zones, bad)
    server = start(zone_settings, PROCESSES="2")
    at_step(server, 1)
    callers: list[str | None] = [f"user-{number}" for number in range(40)]
    assert {each["role"] for each in asked(server, callers, DARK)} == {"champion"}
    assert {each["role"] for each in asked(server, callers)} == {"challenger"}
    counted = report(server)
    assert (counted["challenger"]["requests"], counted["challenger"]["errors"]) == (80, 40)
    assert (counted["champion"]["requests"], counted["champion"]["errors"]) == (40, 0)


@pytest.mark.parametrize("graph", [tiny_models.wrong_onnx, tiny_models.slow_onnx, tiny_models.crashing_onnx])
def test_a_shadow_changes_no_answer(
    zones: Zones, zone_settings: Settings, start: Start, graph: Callable[..., bytes]
) -> None:
    """Whatever is wrong with it, all are answered by the champion alone, and what is wrong is counted."""
    first, bad = register(zones, 1), odd(zones, graph)
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, first.version, reason="test")
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(first, 2)
    png = DARK if graph is tiny_models.crashing_onnx else PNG
    (expected,) = asked(server, ["anybody"], png)
    challenge(zones, bad, 1.0, mode="shadow")
    at_step(server, 1)

    def has_been_asked() -> bool:
        for each in asked(server, ["anybody"] * 40, png):
            assert {**each, "request_id": ""} == {**expected, "request_id": ""}
        return bool(report(server)["challenger"]["requests"] >= 10)

    wait_until(has_been_asked)
    counted = report(server)
    challenger = counted["challenger"]
    assert counted["champion"]["errors"] == 0
    if graph is tiny_models.crashing_onnx:
        assert challenger["errors"] == challenger["requests"]
    elif graph is tiny_models.wrong_onnx:
        assert counted["disagreed"] == counted["compared"] > 0
    else:
        sides = counted["challenger"], counted["champion"]
        slow, quick = (each["seconds"]["sum"] / each["requests"] for each in sides)
        assert slow > quick


def _has_over(seen: Traffic, answers: int) -> bool:
    return len(seen.answers) > answers


def test_the_champion_is_swapped_while_a_canary_runs(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Under load, with challengers that come and go, nothing fails and no answer is another version's."""
    versions = [register(zones, seed) for seed in range(1, 6)]
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, versions[0].version, reason="test")
    server = start(zone_settings, PROCESSES="2")
    server.wait_for(versions[0], 2)
    with traffic(server, zones, versions, CLIENTS) as seen:
        for number in (1, 2, 3):
            challenge(zones, versions[number], 0.5, number)
            at_step(server, number)
            enough = len(seen.answers) + 20 * CLIENTS
            wait_until(partial(_has_over, seen, enough))
            # Twice the challenger becomes the champion; once another version does.
            champion = versions[4] if number == 2 else versions[number]
            aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, champion.version, reason="test")
            server.wait_for(champion, 2)
    assert not seen.wrong
    assert seen.broken == 0
    assert seen.numbers == set(range(5))
