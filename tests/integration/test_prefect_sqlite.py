"""Pressing Run in Prefect's UI while others write to the same SQLite database, with a real server."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from prefect_stack import Stack, prefect_stack

pytestmark = pytest.mark.timeout(300)

PRESSES = 40


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A Prefect server that knows the flows; nobody runs them."""
    with prefect_stack(tmp_path, os.environ) as running:
        yield running


def test_run_is_pressed_while_others_write(stack: Stack) -> None:
    """Each run is there at the first request, which the UI does not repeat; so is everything that others write."""
    deployment, run = stack.ask("GET", "deployments/name/pipeline/pipeline")["id"], stack.start("pipeline")
    numbers, done = count(), threading.Event()

    def variable() -> int:
        return stack.send("POST", "variables/", {"name": f"v{next(numbers)}", "value": 1}).status_code

    def state() -> int:
        body = {"state": {"type": "PENDING"}, "force": True}
        return stack.send("POST", f"flow_runs/{run}/set_state", body).status_code

    def until_done(write: Callable[[], int]) -> set[int]:
        answers = set()
        while not done.is_set():
            answers.add(write())
        return answers

    with ThreadPoolExecutor() as pool, ExitStack() as cleanup:
        cleanup.callback(done.set)
        others = [pool.submit(until_done, write) for write in (variable, variable, state, state)]
        url = f"deployments/{deployment}/create_flow_run"
        pressed = [stack.send("POST", url, {"parameters": {}}).status_code for _ in range(PRESSES)]
    assert pressed == [201] * PRESSES
    assert set().union(*(each.result() for each in others)) == {201}
