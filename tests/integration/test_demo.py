"""The demo as a person runs it: one home, real processes, a part of Fashion-MNIST, and then everything around it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pipeline import processes

LIMIT = "6000"
START_S = 400

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Demo:
    """A finished demo that left everything running."""

    home: Path
    output: str

    def found(self, label: str) -> str:
        """What the demo printed behind a label."""
        match = re.search(rf"^{re.escape(label)}\s+(.+)$", self.output, re.MULTILINE)
        assert match, f"no line {label!r} in:\n{self.output}"
        return match[1]

    def prefect(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """An answer of the Prefect API."""
        return httpx.request(method, f"{self.found('Prefect UI')}/api/{path}", json=body, timeout=30)


def environ(home: Path) -> dict[str, str]:
    """The environment of a person with this home and nothing else set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SAFELIGHT_", "PREFECT_"))}
    return kept | {"SAFELIGHT_HOME": str(home)}


def safelight(home: Path, *arguments: str, timeout: float = START_S) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env=environ(home),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo on a part of Fashion-MNIST, left running."""
    home = tmp_path_factory.mktemp("demo")
    done = safelight(home, "demo", "--limit", LIMIT, "--detach")
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield Demo(home, done.stdout)
    finally:
        safelight(home, "demo", "--stop")


def test_it_says_what_was_made(demo: Demo) -> None:
    """The accuracy, both versions, the time of each stage and all addresses are printed, and they are true."""
    accuracy = float(demo.found("accuracy").split()[0])
    model, version = demo.found("model version").split()
    manifest = json.loads(safelight(demo.home, "models", "show", model, version).stdout)
    assert accuracy == pytest.approx(manifest["metrics"]["accuracy"], abs=1e-4)
    assert manifest["dataset"]["version"] == demo.found("dataset version").split()[1]
    stages = re.findall(r"(\w+) [\d.]+", demo.found("seconds"))
    assert stages == ["start", "import", "prepare", "train", "evaluate", "register", "promote", "deploy"]


def test_the_report_is_served(demo: Demo) -> None:
    """The report's address answers with the page of this model version."""
    page = httpx.get(demo.found("report"))
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert demo.found("dataset version").split()[1] in page.text


def test_the_curl_line_works(demo: Demo) -> None:
    """The printed curl line, pasted into a shell, is answered by the printed model version."""
    line = next(line for line in demo.output.splitlines() if line.strip().startswith("curl"))
    answer = json.loads(subprocess.run(shlex.split(line), capture_output=True, check=True).stdout)
    assert answer["model_version"] == demo.found("model version").split()[1]
    assert answer["label"] in demo.output


def test_the_deployments_are_ready_in_prefect(demo: Demo) -> None:
    """Every flow is registered with a form whose fields have ranges, and is ready to run."""
    deadline = time.monotonic() + 60
    wanted = {"pipeline", "import", "prepare", "train", "evaluate", "promote", "deploy", "predict", "rollback"}
    while True:
        found = {each["entrypoint"]: each for each in demo.prefect("POST", "deployments/filter", {}).json()}
        ready = [each for each in found.values() if each["status"] == "READY"]
        if {each["name"] for each in ready} == wanted or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert {each["name"] for each in ready} == wanted
    schema = json.dumps([each["parameter_openapi_schema"] for each in ready])
    assert '"maximum": 1000' in schema
    assert "Passes over the images" in schema


def test_a_run_from_the_ui_completes(demo: Demo) -> None:
    """A run that the UI's button would create is picked up and completes."""
    deployment = demo.prefect("GET", "deployments/name/prepare/prepare").json()
    created = demo.prefect("POST", f"deployments/{deployment['id']}/create_flow_run", {"parameters": {}}).json()
    assert _finished(demo, created["id"])["type"] == "COMPLETED"


@pytest.mark.parametrize(
    ("parameters", "named"), [({"config": {"epochs": 0}}, "epochs"), ({"no_such_parameter": 1}, "no_such_parameter")]
)
def test_a_bad_value_is_refused_before_any_work(demo: Demo, parameters: dict[str, Any], named: str) -> None:
    """A value out of range, or for nothing, is refused when the run is created, with the field's name."""
    deployment = demo.prefect("GET", "deployments/name/train/train").json()
    body = {"parameters": parameters}
    refused = demo.prefect("POST", f"deployments/{deployment['id']}/create_flow_run", body)
    assert 400 <= refused.status_code < 500
    assert named in refused.text


def test_a_failed_run_says_what_a_person_would_read(demo: Demo) -> None:
    """The state of a run that failed by a mistake is the very sentence that the command line prints."""
    deployment = demo.prefect("GET", "deployments/name/prepare/prepare").json()
    body = {"parameters": {"dataset": "no-such-dataset"}}
    created = demo.prefect("POST", f"deployments/{deployment['id']}/create_flow_run", body).json()
    state = _finished(demo, created["id"])
    said = safelight(demo.home, "prepare", "no-such-dataset")
    assert state["type"] == "FAILED"
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1] == f"safelight: {state['message']}"


def test_the_artifacts_are_there(demo: Demo) -> None:
    """The evaluation left a table, a summary and a picture in Prefect."""
    found = demo.prefect("POST", "artifacts/filter", {}).json()
    assert {each["type"] for each in found} >= {"table", "markdown", "image"}


def test_a_second_demo_finds_everything(demo: Demo) -> None:
    """Run again, the demo uses the running processes and does no import, preparation or training."""
    before = [(service.name, service.pid) for service in processes.running(demo.home)]
    again = safelight(demo.home, "demo", "--limit", LIMIT, "--detach")
    assert again.returncode == 0, again.stdout + again.stderr
    second = Demo(demo.home, again.stdout)
    for label in ("model version", "dataset version", "training run", "server", "Prefect UI"):
        assert second.found(label) == demo.found(label)
    assert before == [(service.name, service.pid) for service in processes.running(demo.home)]
    assert len(before) == 4
    assert "0 uploaded" in again.stderr or "already" in again.stderr


def test_every_command_has_json(demo: Demo) -> None:
    """What a command found is JSON on standard output, whatever else it says."""
    model = demo.found("model version").split()[0]
    for arguments in (
        ("models", "list"),
        ("store", "status"),
        ("prepare", model),
        ("train", model),
        ("promote", model),
    ):
        done = safelight(demo.home, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "no-such-dataset"),
        ("evaluate", "no-such-run"),
        ("deploy", "no-such-model"),
        ("promote", "no-such-model"),
        ("models", "show", "fashion-mnist", "no-such-version"),
        ("models", "set-alias", "fashion-mnist", "champion", "20260101T000000Z-00000000"),
        ("import", "/no/such/folder"),
        ("train", "fashion-mnist", "--learning-rate", "-1"),
        ("prepare", "fashion-mnist", "--size", "huge"),
        ("promote", "fashion-mnist", "--allow", "everything"),
        ("prepare", "../x"),
        ("demo", "--images", "/no/such/folder"),
    ],
)
def test_a_mistake_is_one_sentence(demo: Demo, arguments: tuple[str, ...]) -> None:
    """A person's mistake ends with status 2 and one sentence, without a traceback."""
    done = safelight(demo.home, *arguments)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("safelight: ")]
    assert len(said) == 1
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    """Without --detach the demo stays until Ctrl-C, and then none of its processes is left."""
    home = tmp_path / "home"
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--limit", LIMIT]
    with subprocess.Popen(
        command, env=environ(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Ctrl-C" in line:
                break
        started = [process for process in psutil.process_iter() if _is_of(process, home)]
        assert len(started) >= 4
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) in (0, 130)
    psutil.wait_procs(started, timeout=10)
    assert not [process for process in psutil.process_iter() if _is_of(process, home)]


def _finished(demo: Demo, run: str) -> dict[str, Any]:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        state: dict[str, Any] = demo.prefect("GET", f"flow_runs/{run}").json()["state"]
        if state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
            return state
        time.sleep(0.5)
    raise AssertionError(f"run {run} did not finish in time: {state}")


def _is_of(process: psutil.Process, home: Path) -> bool:
    """Whether a process belongs to the home: its variables or its working folder say so."""
    try:
        return process.environ().get("SAFELIGHT_HOME") == str(home) or str(home) in process.cwd()
    except psutil.Error:
        return False
