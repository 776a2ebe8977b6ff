"""Chunks packed by processes and by a real Dask cluster: the same dataset version, whoever dies meanwhile."""

import gc
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import kube_certificates
import preparing
import psutil
import pytest
import synthetic
from dask_workers import DaskCluster, certified, dask_cluster, recorded
from environs import credentials, environ, on_one_core
from prefect_stack import Stack, prefect_stack, until

from pipeline import dask_cluster as dask
from pipeline import fan_out, packing
from pipeline.errors import InvalidSettings, WorkersUnavailable
from pipeline.prepare import PrepareResult, prepare
from pipeline.progress import OnProgress, Progress, silent
from pipeline.settings import Settings
from pipeline.zones import Zones

# Dask drops its connections to a scheduler that was killed without closing them.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

IMAGES = 240
CHUNK = 20
PREPARE = (sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())", "prepare", "cats")
FLOW = f"""
import asyncio
from pipeline import flows, packing

if __name__ == "__main__":
    packing.CHUNK_IMAGES = {CHUNK}
    print(asyncio.run(flows.prepare_flow("cats")).version)
"""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch, zone_settings: Settings) -> Iterator[None]:
    """Many chunks of few images, and an environment in which a process of this one finds the store."""
    monkeypatch.setattr(packing, "CHUNK_IMAGES", CHUNK)
    for name, value in environ(zone_settings).items():
        if name.startswith("SAFELIGHT_"):
            monkeypatch.setenv(name, value)
    yield
    gc.collect()  # so that they are found here, and not by another test


@pytest.fixture
def cats(zones: Zones) -> Zones:
    """Zones that hold images of three classes, and a broken one."""
    synthetic.put_classes(zones, "cats", IMAGES // 3)
    zones.images.put("cats/class-000/broken.png", b"no image")
    return zones


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A Dask scheduler; each test brings its workers."""
    with dask_cluster(tmp_path_factory.mktemp("dask")) as running:
        yield running


@pytest.fixture(scope="module")
def prefect(store_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Prefect server with a password."""
    with prefect_stack(tmp_path_factory.mktemp("prefect"), on_one_core(store_settings), registered=False) as stack:
        yield stack


def prepared(settings: Settings, zones: Zones, runner: str, on_progress: OnProgress = silent) -> PrepareResult:
    """What ``safelight prepare`` does with this setting."""
    chosen = settings.model_copy(update={"task_runner": runner, "store_patience_s": 5.0, "decode_threads": 2})
    return prepare(
        zones, "cats", preparing.CONFIG, map_chunks=fan_out.map_chunks(chosen, zones), on_progress=on_progress
    )


def same_as_on_one_machine(zones: Zones, result: PrepareResult) -> None:
    """Version, content and what was left out are those that one process makes."""
    alone, version = preparing.from_scratch(zones)
    assert result.version == version
    assert preparing.loaded(zones, result.version) == preparing.loaded(alone, version)
    assert (result.images, result.quarantined) == (IMAGES, 1)


def at_the_first_chunk(act: Callable[[], object]) -> OnProgress:
    """Acts once, as soon as one chunk is done and others are under way."""
    acted = []

    def listen(progress: Progress) -> None:
        if progress.stage == "reading images" and not acted:
            acted.append(progress)
            act()

    return listen


def spawned(parent: psutil.Process) -> list[psutil.Process]:
    """The processes that pack for another one."""
    return [each for each in parent.children() if "multiprocessing.spawn" in " ".join(each.cmdline())]


def test_a_dask_worker_killed_in_the_middle_changes_nothing(
    zone_settings: Settings, cats: Zones, cluster: DaskCluster
) -> None:
    """With one of two workers killed while it packs, version and content are those of one machine."""
    first, _ = (cluster.start_worker(environ(zone_settings)) for _ in range(2))
    result = prepared(zone_settings, cats, cluster.address, at_the_first_chunk(lambda: cluster.kill(first)))
    same_as_on_one_machine(cats, result)
    assert result.decoded >= IMAGES


def test_processes_change_nothing_nor_does_the_death_of_one(
    zone_settings: Settings, cats: Zones, caplog: pytest.LogCaptureFixture
) -> None:
    """With one of two processes killed while it packs, version and content are those of one process."""

    def kill_one() -> None:
        spawned(psutil.Process())[0].kill()

    result = prepared(zone_settings, cats, "processes", at_the_first_chunk(kill_one))
    same_as_on_one_machine(cats, result)
    assert "is given away once more" in caplog.text
    assert not spawned(psutil.Process())


def test_no_process_outlives_its_parent(zone_settings: Settings, cats: Zones) -> None:
    """After SIGKILL of a preparation its processes are gone within seconds."""
    del cats
    told = environ(zone_settings, SAFELIGHT_TASK_RUNNER="processes", SAFELIGHT_DECODE_THREADS="2")
    with subprocess.Popen(PREPARE, env=told) as preparing_process:
        parent = psutil.Process(preparing_process.pid)
        children = until(lambda: spawned(parent), 60, "process that packs")
        parent.kill()
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_a_cluster_without_workers_is_waited_for_and_then_given_up(
    zone_settings: Settings,
    cats: Zones,
    cluster: DaskCluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said that there is no worker, and after a bounded time that is the error."""
    for worker in cluster.workers:
        cluster.kill(worker)
    monkeypatch.setattr(dask, "WORKERS_S", 2)
    with pytest.raises(WorkersUnavailable, match="has had no worker for 2 s: start some"):
        prepared(zone_settings, cats, cluster.address)
    assert "has no worker: waiting for one" in caplog.text


def test_a_worker_of_another_store_is_refused(zone_settings: Settings, cats: Zones, cluster: DaskCluster) -> None:
    """A worker that does not find the images says so, instead of that they had been deleted."""
    cluster.start_worker(environ(zone_settings, SAFELIGHT_STORE_URL=f"{zone_settings.store_url}-other"))
    with pytest.raises(InvalidSettings, match="reads or writes another object store than"):
        prepared(zone_settings, cats, cluster.address)
    cluster.kill(cluster.workers[-1])


def test_a_scheduler_that_starts_again_is_gone_back_to(
    zone_settings: Settings, cats: Zones, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was under way is given away once more, and the version is the same."""
    caplog.set_level(logging.WARNING)
    with dask_cluster(tmp_path) as own:
        own.start_worker(environ(zone_settings))

        def start_again() -> None:
            own.restart()
            own.start_worker(environ(zone_settings))

        result = prepared(zone_settings, cats, own.address, at_the_first_chunk(start_again))
    same_as_on_one_machine(cats, result)
    assert "is given away once more" in caplog.text


def test_by_tls_only_who_has_a_certificate_gives_work(zone_settings: Settings, cats: Zones, tmp_path: Path) -> None:
    """With Dask's own variables all is encrypted; without them, or with another certificate, it is a sentence."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        kube_certificates.made(folder)
    tls = certified(ours / "ca.crt", ours / "server.key")
    with dask_cluster(tmp_path, tls) as own:
        own.start_worker(environ(zone_settings))
        told = environ(zone_settings, SAFELIGHT_TASK_RUNNER=own.address, SAFELIGHT_STORE_PATIENCE_S="1")
        strange = tls | {
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": str(theirs / "ca.crt"),
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": str(theirs / "server.key"),
        }
        for more, said in (({}, "needs certificates: set DASK_"), (strange, "No Dask scheduler answered at tls://")):
            refused = subprocess.run(PREPARE, env=told | more, capture_output=True, text=True, check=False)
            assert refused.returncode in {1, 2}
            assert said in refused.stderr.splitlines()[-1]
        done = subprocess.run(PREPARE, env=told | tls, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, version = preparing.from_scratch(cats)
    assert f"cats {version.version}: {IMAGES} images" in done.stdout


def test_a_flow_on_dask_survives_a_worker_and_tells_nobody_a_secret(
    zone_settings: Settings, cats: Zones, cluster: DaskCluster, prefect: Stack
) -> None:
    """In Prefect too, with a worker killed, the version is the same; no password or key went through the scheduler."""
    told = prefect.environ | environ(zone_settings)
    first, _ = (cluster.start_worker(told) for _ in range(2))
    with recorded(cluster.address) as (address, sent):
        flow = subprocess.Popen(
            [sys.executable, "-c", FLOW],
            env=told | {"SAFELIGHT_TASK_RUNNER": address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: any(cats.datasets.listing("cats/work")) or flow.poll(), 120, "chunk that is done")
        cluster.kill(first)
        said, log = flow.communicate(timeout=120)
    assert flow.returncode == 0, log
    alone, version = preparing.from_scratch(cats)
    assert said.split()[-1] == version.version
    assert preparing.loaded(cats, version) == preparing.loaded(alone, version)
    assert b"class-000/" in sent, "chunks go this way"
    for secret in (prefect.auth[1], *credentials(zone_settings)):
        assert secret.encode() not in sent
    runs = prefect.ask("POST", "task_runs/filter", {"task_runs": {"name": {"like_": "pack images"}}})
    assert {run["state"]["type"] for run in runs} == {"COMPLETED"}
    assert len(runs) == IMAGES // CHUNK + 1


def test_a_flow_with_processes_makes_the_same_version(zone_settings: Settings, cats: Zones, prefect: Stack) -> None:
    """By Prefect's process pool, the version is that of one process."""
    told = prefect.environ | environ(zone_settings, SAFELIGHT_TASK_RUNNER="processes", SAFELIGHT_DECODE_THREADS="2")
    done = subprocess.run([sys.executable, "-c", FLOW], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone, version = preparing.from_scratch(cats)
    assert done.stdout.split()[-1] == version.version
    assert preparing.loaded(cats, version) == preparing.loaded(alone, version)
