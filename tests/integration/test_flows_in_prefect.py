"""Flows as the stack runs them: a real Prefect server with a password, a real worker, a real store."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import tiny_models
from batch_predictions import FOLDER, MODEL, champion, put
from environs import on_one_core
from prefect_stack import PUBLIC_URL, Stack, kill, prefect_stack, until, worker

from pipeline import flows, inference_server
from pipeline.prefect_deployments import QUEUES
from pipeline.settings import Settings
from pipeline.store_users import BATCHES
from pipeline.zones import open_zones

pytestmark = pytest.mark.timeout(900)

LONG = 2000
"""Epochs of a training that is still running whenever something happens to it."""
SHORT = 40
NEVER = {"minimum_accuracy": 1.0}
"""A gate that lets nothing pass: most of these tests want no server."""


@pytest.fixture(scope="module")
def settings(store_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a home and of zones that the tests of this file share."""
    home = tmp_path_factory.mktemp("stack")
    ours = store_settings.model_copy(update={"home": home, "store_url": f"s3://safelight-tests/stack-{home.name}"})
    yield ours
    inference_server.down(ours)


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[Stack]:
    """A Prefect server that knows the flows."""
    with prefect_stack(settings.home, on_one_core(settings)) as running:
        yield running


@pytest.fixture(scope="module")
def small(stack: Stack) -> None:
    """A part of Fashion-MNIST, imported as a person does it."""
    with worker(stack):
        run = stack.start("import", per_class=60)
        assert stack.ended(run)["type"] == "COMPLETED", stack.log(run)


@pytest.fixture
def working(stack: Stack, small: None) -> Iterator[Stack]:  # noqa: ARG001 - the images must be there
    """The stack with one worker."""
    with worker(stack):
        yield stack


def pipeline(stack: Stack, seed: int, epochs: int = 1, gate: dict[str, Any] = NEVER) -> str:
    """Start a run whose training is told from others by its seed."""
    return stack.start("pipeline", training={"epochs": epochs, "seed": seed}, gate=gate)


def test_registering_twice_doubles_nothing(stack: Stack) -> None:
    """Pool, queues and deployments are there once, and a changed limit is put right."""
    queue = stack.ask("GET", "work_pools/safelight/queues/training")
    stack.ask("PATCH", "work_pools/safelight/queues/training", {"concurrency_limit": 9})
    assert stack.module("pipeline.prefect_init").wait(120) == 0
    deployments = stack.ask("POST", "deployments/filter", {})
    assert sorted(each["name"] for each in deployments) == sorted(flow.name for flow in flows.FLOWS)
    queues = {each["name"]: each for each in stack.ask("POST", "work_pools/safelight/queues/filter", {})}
    assert {queue.name: queue.limit for queue in QUEUES}.items() <= {
        name: each["concurrency_limit"] for name, each in queues.items()
    }.items()
    assert queues["training"]["id"] == queue["id"]
    assert queues["live"]["priority"] < queues["training"]["priority"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PREFECT_API_AUTH_STRING": "admin:wrong"}, "PREFECT_API_AUTH_STRING"),
        ({"PREFECT_API_URL": ""}, "PREFECT_API_URL is not set"),
        ({"SAFELIGHT_WORK_POOL": "kubernetes"}, "is of type process, which cannot be changed"),
    ],
)
def test_a_mistake_in_the_surroundings_is_one_sentence(stack: Stack, environ: dict[str, str], said: str) -> None:
    """Wrong credentials, a missing address and a pool of another kind are named, without a traceback."""
    log = stack.home / "pipeline.prefect_init.log"
    before = len(log.read_text())
    assert stack.module("pipeline.prefect_init", **environ).wait(60) in {1, 2}
    lines = log.read_text()[before:].splitlines()
    assert said in lines[-1]
    assert "Traceback" not in "".join(lines)


def test_the_route_leaves_what_people_look_at(working: Stack) -> None:
    """Table, summary, confusion matrix, and a link to the report at the public address and no other."""
    run = pipeline(working, seed=1)
    assert working.ended(run)["type"] == "COMPLETED", working.log(run)
    found = working.artifacts(run)
    assert found.keys() == {"classes", "evaluation", "confusion", "report"}
    assert f"{PUBLIC_URL}/v2/models/fashion-mnist/versions/" in found["report"]
    assert "127.0.0.1" not in str(found)


@pytest.mark.parametrize(
    ("flow", "parameters", "said"),
    [
        ("pipeline", {"dataset": "no-such"}, "'no-such'"),
        ("deploy", {"model": "no-such"}, "no-such"),
        ("import", {"folder": "/no/such/folder"}, "/no/such/folder"),
        ("import", {"folder": "anywhere", "per_class": 5}, "per_class"),
    ],
)
def test_a_mistake_fails_with_one_sentence(working: Stack, flow: str, parameters: dict[str, Any], said: str) -> None:
    """The state says what was wrong, and a failed run is left alone."""
    run = working.start(flow, **parameters)
    state = working.ended(run)
    assert state["type"] == "FAILED"
    assert said in state["message"]
    assert "AwaitingRetry" not in working.history(run)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"training": {"epochs": 0}}, "epochs"),
        ({"by_canary": True, "canary": {"minimum_requests": 0}}, "minimum_requests"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
    ],
)
def test_a_bad_value_is_refused_before_any_work(stack: Stack, parameters: dict[str, Any], named: str) -> None:
    """A value out of range, or for nothing, is refused when the run is created, with the field's name."""
    deployment = stack.ask("GET", "deployments/name/pipeline/pipeline")
    refused = stack.send("POST", f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    assert 400 <= refused.status_code < 500
    assert named in refused.text


def test_cancelled_from_the_ui_it_stops_and_goes_on_later(working: Stack) -> None:
    """Training stops within 10 s with a checkpoint, and Run goes on from it, saying from which step."""
    run = pipeline(working, seed=2, epochs=LONG)
    working.says(run, "training:")
    processes = working.processes(run)
    assert processes
    begun = time.monotonic()
    working.ask("POST", f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert not psutil.wait_procs(processes, timeout=20)[1]
    stopped_s = time.monotonic() - begun
    assert working.ended(run, 60)["type"] == "CANCELLED"
    again = pipeline(working, seed=2, epochs=LONG)
    working.says(again, "goes on after step")
    working.ask("POST", f"flow_runs/{again}/set_state", {"state": {"type": "CANCELLING"}})
    assert working.ended(again, 60)["type"] == "CANCELLED"
    assert stopped_s < 15, "10 s, and a slow machine's due"


def test_run_twice_the_second_waits_and_says_so(working: Stack) -> None:
    """Two runs on one dataset train once: the second says who works on it, finds the finished training and goes on."""
    first, second = (pipeline(working, seed=3, epochs=SHORT * 2) for _ in range(2))
    for run in (first, second):
        assert working.ended(run, 400)["type"] == "COMPLETED", working.log(run)
    logs = [working.log(run) for run in (first, second)]
    assert sum("waiting for process" in log and "which works on training run" in log for log in logs) == 1
    assert len({working.artifacts(run)["report"] for run in (first, second)}) == 1


def test_a_killed_process_comes_back(working: Stack) -> None:
    """Beside a living worker, a run whose process gets SIGKILL is started again and completes."""
    run = pipeline(working, seed=4, epochs=SHORT)
    working.says(run, "training:")
    for process in working.processes(run):
        process.kill()
    assert working.ended(run, 240)["type"] == "COMPLETED", working.log(run)
    assert working.history(run).count("AwaitingRetry") == 1
    assert "start 2 of at most 4" in working.log(run)


def test_a_process_that_dies_each_time_is_given_up_with_a_sentence(working: Stack) -> None:
    """It is started four times, however early it dies, and then the run has failed."""
    run = pipeline(working, seed=5, epochs=LONG)
    killed: set[int] = set()

    def kill_all() -> bool:
        for process in working.processes(run):
            killed.add(process.pid)
            process.kill()
        return working.state(run)["type"] == "FAILED"

    until(kill_all, 240, "failed run")
    assert "died 4 times" in working.state(run)["message"]
    assert working.history(run).count("AwaitingRetry") == 3


def test_a_batch_prediction_that_died_goes_on_by_its_plan(working: Stack, settings: Settings) -> None:
    """Its process killed, another one answers the same listing by the same version, whatever came or moved since."""
    zones = open_zones(settings)
    slow = champion(zones, onnx_file=tiny_models.slow_onnx(tiny_models.DATASET, 1, ms=500))
    put(zones, range(600))
    run = working.start("predict", model=MODEL, prefix=FOLDER)
    folder = f"{BATCHES}/{MODEL}"
    until(lambda: any(each.key.endswith("plan.json") for each in zones.predictions.listing(folder)), 90, "plan")
    for process in working.processes(run):
        process.kill()
    champion(zones, seed=2)
    put(zones, [600])
    assert working.ended(run)["type"] == "COMPLETED", working.log(run)
    assert "start 2 of at most 4" in working.log(run)
    working.says(run, f"{MODEL} {slow.version} answered 600 of 600 objects")  # the log comes after the state


def test_a_killed_worker_is_survived(stack: Stack, small: None) -> None:  # noqa: ARG001 - the images must be there
    """Worker and flow process get SIGKILL; another worker brings the run back within three minutes, without a click."""
    with worker(stack) as first:
        run = pipeline(stack, seed=6, epochs=SHORT)
        stack.says(run, "training:")
        begun = time.monotonic()
        kill(first)
    with worker(stack):
        assert stack.ended(run, 180)["type"] == "COMPLETED", stack.log(run)
    assert "No sign of life" in stack.log(run)
    assert time.monotonic() - begun < 180


def test_a_worker_that_slept_joins_who_took_its_run_over(
    stack: Stack,
    small: None,  # noqa: ARG001 - the images must be there
) -> None:
    """Worker and process asleep, another worker brings the run back; awake again, they do no harm, and it completes."""
    with worker(stack, "sleeper") as sleeper:
        run = pipeline(stack, seed=13, epochs=LONG // 4)
        stack.says(run, "training:")
        asleep = [psutil.Process(sleeper.pid), *psutil.Process(sleeper.pid).children(recursive=True)]
        for process in asleep:
            process.suspend()
        with worker(stack, "other"):
            stack.says(run, "goes on after step", 180)
            for process in asleep:
                process.resume()
            assert stack.ended(run, 300)["type"] == "COMPLETED", stack.log(run)
        assert "Failed" not in stack.history(run)


def test_a_stopped_worker_leaves_its_runs_to_the_next(stack: Stack, small: None) -> None:  # noqa: ARG001 - as above
    """SIGTERM stops the runs with checkpoints, which the next worker goes on from at once; nothing is counted."""
    with worker(stack) as first:
        run = pipeline(stack, seed=7, epochs=SHORT * 3)
        stack.says(run, "training:")
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
    assert not stack.processes(run)
    with worker(stack):
        stack.says(run, "goes on after step", 120)
        assert stack.ended(run, 240)["type"] == "COMPLETED", stack.log(run)
    assert "start 2" not in stack.log(run)


def test_going_live_does_not_wait_for_training(working: Stack) -> None:
    """While trainings fill their queue, deploy runs; and rollback is effective within 5 s after it is running."""
    for seed in (8, 9):
        run = pipeline(working, seed=seed, gate={"minimum_accuracy": 0.0, "margin": -1.0})
        assert working.ended(run)["type"] == "COMPLETED", working.log(run)
    busy = [pipeline(working, seed=seed, epochs=LONG) for seed in (10, 11, 12)]
    until(lambda: sum(working.state(run)["type"] == "RUNNING" for run in busy) == 2, 120, "two trainings")
    for flow in ("rollback", "deploy"):
        run = working.start(flow)
        assert working.ended(run)["type"] == "COMPLETED", working.log(run)
    assert sorted(working.state(run)["type"] for run in busy) == ["RUNNING", "RUNNING", "SCHEDULED"]
    for run in busy:
        working.ask("POST", f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    for run in busy:
        assert working.ended(run)["type"] == "CANCELLED"
