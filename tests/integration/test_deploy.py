import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deployable
import httpx
import psutil
import pytest
import tiny_models
from deployable import prepared, register
from live_server import wait_until

from pipeline import aliases, deploy, inference_server, processes
from pipeline.artifacts import DatasetVersion, Deployment
from pipeline.errors import DeployFailed
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.zones import Zones

MODEL = "shapes"


@pytest.fixture
def settings(zone_settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a home of their own; servers started there end with the test."""
    settings = zone_settings.model_copy(update={"home": tmp_path / "home"})
    yield settings
    inference_server.down(settings)


@pytest.fixture
def dataset(zones: Zones) -> DatasetVersion:
    """A prepared dataset."""
    return prepared(zones, MODEL)


def champion(zones: Zones) -> str | None:
    """The version that the alias points at."""
    return deployable.champion(zones, MODEL)


def answering(settings: Settings) -> str | None:
    """The version that the local server answers with."""
    status = httpx.get(f"{local_url(settings)}/v2/models/{MODEL}", trust_env=False).json()
    version: str | None = status["version"]
    return version


def local_server(settings: Settings) -> processes.Service:
    """The server that a deployment started."""
    service = processes.find(settings.home, f"serving-{MODEL}")
    assert service
    return service


def local_url(settings: Settings) -> str:
    """Where it answers."""
    return f"http://127.0.0.1:{local_server(settings).ports['http']}"


@contextmanager
def stranger() -> Iterator[str]:
    """The URL of some other web server."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_first_version_goes_live(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """A server is started, the alias set, and a spread of test images answered as the evaluation said."""
    version = register(zones, dataset, 1)
    seen: list[Progress] = []
    done = deploy.deploy(zones, settings, version, on_progress=seen.append)
    assert done == Deployment(model_version=version, url=local_url(settings), smoke_images=32)
    assert champion(zones) == answering(settings) == version.version
    assert [each.done for each in seen] == list(range(1, 33))
    assert Deployment.from_json(zones.models.get(f"{MODEL}/{version.version}/deployment.json")) == done


def test_a_new_version_goes_live_without_a_restart(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """The running server follows; a deployment repeated finds all done."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    deploy.deploy(zones, settings, first)
    before = local_server(settings)
    for _ in range(2):
        assert deploy.deploy(zones, settings, second).model_version == second
        assert champion(zones) == answering(settings) == second.version
    assert local_server(settings) == before


@pytest.mark.parametrize("promoted", [False, True], ids=["moved by deploy", "moved by promotion"])
def test_a_version_that_answers_otherwise_is_taken_back(
    zones: Zones, settings: Settings, dataset: DatasetVersion, *, promoted: bool
) -> None:
    """Whoever moved the alias: if HTTP and evaluation differ, the old version is live again, and the reason is said."""
    good, bad = register(zones, dataset, 1), register(zones, dataset, 2, evaluated_as=3)
    deploy.deploy(zones, settings, good)
    if promoted:
        aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, bad.version, reason="promoted")
    with pytest.raises(DeployFailed, match="to the server") as caught:
        deploy.deploy(zones, settings, bad)
    assert champion(zones) == answering(settings) == good.version
    sentence = str(caught.value)
    assert bad.version in sentence
    assert f"points at {good.version} again, and so does the server" in sentence
    assert local_server(settings).log in sentence


def test_a_failed_first_version_leaves_nothing_live(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """With nothing to go back to, the alias points at nothing and the server is not ready."""
    with pytest.raises(DeployFailed, match="points at nothing again, and so does the server"):
        deploy.deploy(zones, settings, register(zones, dataset, 1, evaluated_as=2))
    assert champion(zones) is None
    assert httpx.get(f"{local_url(settings)}/v2/health/ready", trust_env=False).status_code == 503


def test_a_version_that_does_not_load_is_taken_back(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """A model altered in the store is not served: the server says why, and so does the error."""
    good, bad = register(zones, dataset, 1), register(zones, dataset, 2)
    deploy.deploy(zones, settings, good)
    zones.models.put(f"{MODEL}/{bad.version}/model.onnx", b"other bytes")
    with pytest.raises(DeployFailed, match=r"did not load the version; it says: .* was altered"):
        deploy.deploy(zones, settings, bad)
    assert champion(zones) == answering(settings) == good.version


def test_a_proven_version_is_not_taken_back_for_a_wrong_url(
    zones: Zones, settings: Settings, dataset: DatasetVersion
) -> None:
    """What went live once stays on the alias when a later deployment only asks the wrong server."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    for version in (first, second):
        deploy.deploy(zones, settings, version)
    with stranger() as url, pytest.raises(DeployFailed, match=r"is not a Safelight inference server.* stays, because"):
        deploy.deploy(zones, settings.model_copy(update={"inference_url": url}), second)
    assert champion(zones) == answering(settings) == second.version


def test_a_proven_version_that_was_put_there_is_taken_back(
    zones: Zones, settings: Settings, dataset: DatasetVersion
) -> None:
    """An older version that is to come back, and cannot, leaves the newer one where it was."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    for version in (first, second):
        deploy.deploy(zones, settings, version)
    zones.models.put(f"{MODEL}/{first.version}/model.onnx", b"other bytes")
    with pytest.raises(DeployFailed, match=f"points at {second.version} again"):
        deploy.deploy(zones, settings, first)
    assert champion(zones) == answering(settings) == second.version


def test_a_decision_of_somebody_else_is_not_undone(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """If the alias is moved elsewhere during a deployment, the deployment fails and leaves it there."""
    first, second, third = (register(zones, dataset, seed) for seed in (1, 2, 3))
    deploy.deploy(zones, settings, first)

    def interfere(progress: Progress) -> None:
        if progress.done == 1:
            aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, third.version, reason="somebody else")
            wait_until(lambda: answering(settings) == third.version)

    with pytest.raises(
        DeployFailed, match=f"somebody else moved the alias.*{third.version} by now, which somebody else decided"
    ):
        deploy.deploy(zones, settings, second, on_progress=interfere)
    assert champion(zones) == answering(settings) == third.version


def test_a_named_server_is_used(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """With a URL set, nothing is started here; a server of another model refuses, and the alias goes back."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    url = deploy.deploy(zones, settings, first).url
    named = settings.model_copy(update={"home": settings.home / "other", "inference_url": f"{url}/"})
    assert deploy.deploy(zones, named, second).url == url
    assert not processes.running(named.home)
    other = tiny_models.register(
        zones.checkpoints,
        zones.models,
        "figures",
        1,
        dataset=dataset,
        evaluation={"predictions.parquet": zones.models.get(f"{MODEL}/{first.version}/predictions.parquet")},
    )
    with pytest.raises(DeployFailed, match="serves model 'shapes', not 'figures'"):
        deploy.deploy(zones, named, other)
    assert aliases.read_alias(zones.models, "figures", aliases.CHAMPION)[0].version is None  # type: ignore[index]


def test_a_server_that_is_away_is_waited_for_and_then_named(
    zones: Zones, settings: Settings, dataset: DatasetVersion
) -> None:
    """Nothing at the URL: after the time allowed, one sentence, and the alias is back."""
    away = settings.model_copy(update={"inference_url": "http://127.0.0.1:9"})
    with pytest.raises(DeployFailed, match=r"the server at http://127.0.0.1:9 does not answer"):
        deploy.deploy(zones, away, register(zones, dataset, 1), timeout_s=1)
    assert champion(zones) is None


def test_two_models_have_a_server_each(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """Deploying another model leaves the first one's server alone and takes another port."""
    version = register(zones, dataset, 1)
    predictions = {"predictions.parquet": zones.models.get(f"{MODEL}/{version.version}/predictions.parquet")}
    other = tiny_models.register(zones.checkpoints, zones.models, "figures", 1, dataset=dataset, evaluation=predictions)
    urls = {deploy.deploy(zones, settings, each).url for each in (version, other)}
    assert len(urls) == 2
    assert answering(settings) == version.version
    assert sorted(inference_server.down(settings)) == ["serving-figures", "serving-shapes"]
    assert inference_server.down(settings) == []


def test_a_server_with_other_settings_is_replaced(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """One that was started otherwise than it would be now is stopped and started again, on the same port."""
    version = register(zones, dataset, 1)
    url = deploy.deploy(zones, settings, version).url
    before = local_server(settings)
    changed = settings.model_copy(update={"threads": 5})
    assert deploy.deploy(zones, changed, version).url == url
    assert local_server(settings).pid != before.pid


def test_no_secret_is_on_the_servers_command_line(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """Every user of the machine can read a command line."""
    deploy.deploy(zones, settings, register(zones, dataset, 1))
    line = " ".join(psutil.Process(local_server(settings).pid).cmdline())
    assert "serving" in line
    for secret in (settings.s3_access_key_id, settings.s3_secret_access_key):
        assert secret
        assert secret.get_secret_value() not in line


def test_a_deployment_killed_in_the_middle_is_completed_by_the_next(
    zones: Zones, settings: Settings, dataset: DatasetVersion
) -> None:
    """SIGKILL while images are being asked; the same deployment again finds the server and finishes."""
    first, second = register(zones, dataset, 1), register(zones, dataset, 2)
    deploy.deploy(zones, settings, first)
    code = (
        "import os, signal, sys\n"
        "from pipeline import deploy\n"
        "from pipeline.artifacts import ModelVersion\n"
        "from pipeline.settings import Settings\n"
        "from pipeline.zones import open_zones\n"
        "settings = Settings.from_environ(os.environ)\n"
        "def die(progress): progress.done == 3 and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"version = ModelVersion(model={MODEL!r}, version=sys.argv[1])\n"
        "deploy.deploy(open_zones(settings), settings, version, on_progress=die)\n"
    )
    environ = inference_server.environ(settings, MODEL, local_server(settings).ports["http"], os.environ)
    killed = subprocess.run([sys.executable, "-c", code, second.version], env=environ, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    before = local_server(settings)
    assert deploy.deploy(zones, settings, second).model_version == second
    assert champion(zones) == answering(settings) == second.version
    assert local_server(settings) == before


def test_a_server_that_cannot_start_is_quoted(zones: Zones, settings: Settings, dataset: DatasetVersion) -> None:
    """What the server said before it ended is in the error, and the alias is back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFELIGHT_SERVING_TOPK", "3")
        with pytest.raises(DeployFailed, match="did you mean SAFELIGHT_SERVING_TOP_K"):
            deploy.deploy(zones, settings, register(zones, dataset, 1))
    assert champion(zones) is None
    wait_until(lambda: processes.find(settings.home, f"serving-{MODEL}") is None)
