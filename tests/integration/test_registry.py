"""Registering and changing aliases against a real object store: races of threads and processes, and kill -9."""

import hashlib
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import pytest

from pipeline import registry
from pipeline.artifacts import (
    DatasetVersion,
    EvaluationReport,
    ExportedModel,
    PixelSpec,
    StoredFile,
    TrainConfig,
    TrainingRun,
)
from pipeline.errors import Conflict, Corrupted, NotFound
from pipeline.registry import CHAMPION
from pipeline.settings import Settings
from pipeline.store import Store
from pipeline.zones import Zones

log = logging.getLogger(__name__)

RACERS = 8
MODEL = "pets"

REGISTER = """
import os, sys
from pathlib import Path
from pipeline import registry
from pipeline.artifacts import EvaluationReport, ExportedModel
from pipeline.settings import Settings
from pipeline.store import open_store

folder, models, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
settings = Settings.from_environ(os.environ)
checkpoints, store = (open_store(settings.zone_url(zone), settings) for zone in ("checkpoints", "models"))
made = ExportedModel.from_json((folder / "exported.json").read_bytes())
report = EvaluationReport.from_json((folder / "report.json").read_bytes())
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    revision = str(os.getpid())
    print(registry.register(checkpoints, store, f"{models}{number}", made, report, code_revision=revision).version)
"""

SET_ALIAS = """
import os, sys
from pipeline import registry
from pipeline.errors import Conflict
from pipeline.settings import Settings
from pipeline.store import open_store

settings = Settings.from_environ(os.environ)
store = open_store(settings.zone_url("models"), settings)
model, version, expected = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    registry.set_alias(store, model, "champion", version, reason=str(os.getpid()), expected=expected or None)
    print("won")
except Conflict:
    print("lost")
"""


def put(store: Store, key: str, data: bytes) -> StoredFile:
    """``data`` stored, and its description."""
    store.put(key, data)
    return StoredFile(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def finished(zones: Zones, day: int = 22, *, attempt: int = 1) -> tuple[ExportedModel, EvaluationReport]:
    """An exported and evaluated training run, stored; another attempt is another evaluation of the same run."""
    dataset = DatasetVersion(
        dataset="pets",
        version="b" * 16,
        classes=("cat", "dog"),
        pixels=PixelSpec(height=8, width=8, channels=1),
        counts={"train": 8, "validation": 2, "test": 4},
    )
    run = TrainingRun(
        id=f"{day:016x}",
        dataset=dataset,
        config=TrainConfig(),
        checkpoint="best.json",
        history=(),
        exact=True,
        environment={},
        finished_at=datetime(2026, 11, day, tzinfo=UTC),
    )
    weights = {"model.onnx": b"onnx" * 20_000, "model.safetensors": b"safetensors" * 20_000}
    report = EvaluationReport(training_run=run, images=4, accuracy=0.25 * attempt, ece=0.1, classes=(), confusion=())
    judged = {
        "report.html": f"<p>{attempt}".encode(),
        "evaluation.json": report.to_json(),
        "predictions.parquet": f"predictions {attempt}".encode(),
    }
    files = {name: put(zones.checkpoints, f"{run.id}/export/{name}", data) for name, data in weights.items()}
    more = {name: put(zones.checkpoints, f"{run.id}/{attempt}/{name}", data) for name, data in judged.items()}
    exported = ExportedModel(training_run=run, files=files, parity={"max_difference": 1e-6})
    return exported, report.model_copy(update={"files": more})


def registered(zones: Zones, day: int) -> str:
    """A version of ``MODEL``."""
    return registry.register(zones.checkpoints, zones.models, MODEL, *finished(zones, day)).version


def refuse_inconsistent(models: Store) -> int:
    """Check every file of every visible version against its manifest; how many versions there are."""
    found = [manifest for model in registry.models_in(models) for manifest in registry.versions(models, model)]
    for manifest in found:
        assert set(manifest.files) == registry.FILES
        for name in manifest.files:
            registry.load_file(models, manifest, name)
        report = EvaluationReport.from_json(registry.load_file(models, manifest, "evaluation.json"))
        assert manifest.metrics["accuracy"] == report.accuracy
    return len(found)


def environment(settings: Settings) -> dict[str, str]:
    """What a process needs to find the same zones."""
    assert settings.s3_access_key_id is not None
    assert settings.s3_secret_access_key is not None
    others = {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}
    return others | {
        "SAFELIGHT_HOME": str(settings.home),
        "SAFELIGHT_STORE_URL": str(settings.store_url),
        "SAFELIGHT_S3_ENDPOINT": str(settings.s3_endpoint),
        "SAFELIGHT_S3_ACCESS_KEY_ID": settings.s3_access_key_id.get_secret_value(),
        "SAFELIGHT_S3_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
    }


@contextmanager
def started(script: str, settings: Settings, *runs: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """One process per list of arguments, each of which has said ``ready`` and waits for a line; none survives."""
    with ExitStack() as stack:
        processes = []
        for arguments in runs:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", script, *arguments],
                    env=environment(settings),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield processes


def release(process: subprocess.Popen[str]) -> None:
    """Let a waiting process go."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def answers_of(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    """Let the processes go at once; the lines that each one prints."""
    for process in processes:
        release(process)
    answers = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return answers


def written(folder: Path, exported: ExportedModel, report: EvaluationReport) -> str:
    """A folder that holds both records."""
    folder.mkdir()
    (folder / "exported.json").write_bytes(exported.to_json())
    (folder / "report.json").write_bytes(report.to_json())
    return str(folder)


def test_registrars_in_threads_make_one_version(zones: Zones) -> None:
    """Threads that register two evaluations of one run at once agree on one version, whose manifest is true."""
    attempts = [finished(zones, attempt=attempt) for attempt in (1, 2)]
    barrier = Barrier(RACERS)

    def race(number: int) -> str:
        barrier.wait()
        made, report = attempts[number % 2]
        return registry.register(
            zones.checkpoints, zones.models, MODEL, made, report, code_revision=str(number)
        ).version

    with ThreadPoolExecutor(RACERS) as pool:
        assert len(set(pool.map(race, range(RACERS)))) == 1
    assert refuse_inconsistent(zones.models) == 1
    assert len(list(zones.models.listing(MODEL))) == 6


def test_registrars_in_processes_make_one_version_each(zones: Zones, zone_settings: Settings, tmp_path: Path) -> None:
    """Processes that register two evaluations of one run under ten names at once agree on each of them."""
    folders = [written(tmp_path / str(attempt), *finished(zones, attempt=attempt)) for attempt in (1, 2)]
    runs = [[folders[number % 2], "m", "10"] for number in range(3)]
    with started(REGISTER, zone_settings, *runs) as processes:
        answers = answers_of(processes)
    assert len({version for lines in answers for version in lines}) == 1
    assert refuse_inconsistent(zones.models) == 10
    assert len(list(zones.models.listing("m0"))) == 6


def test_killed_registrars_leave_no_half_version(zones: Zones, zone_settings: Settings, tmp_path: Path) -> None:
    """After SIGKILL at any moment all that is visible is whole, and registering again completes the rest."""
    seed = random.randrange(2**32)
    log.warning("seed %d", seed)
    chance = random.Random(seed)
    folder = written(tmp_path / "records", *finished(zones))
    cut_short = 0
    for number in range(6):
        with started(REGISTER, zone_settings, [folder, f"round{number}-", "1000"]) as (process,):
            release(process)
            time.sleep(chance.uniform(0.05, 0.5))
            process.kill()
        refuse_inconsistent(zones.models)
        begun = {name for name in zones.models.folders() if name.startswith("round")}
        cut_short += len(begun - set(registry.models_in(zones.models)))
        for name in begun:
            registry.register(zones.checkpoints, zones.models, name, *finished(zones))
        assert begun <= set(registry.models_in(zones.models))
    refuse_inconsistent(zones.models)
    log.warning("%d versions were cut short", cut_short)


def test_no_change_of_an_alias_is_lost(zones: Zones) -> None:
    """Threads that change an alias whatever it says all succeed, and its history holds every change once."""
    made = [registered(zones, day) for day in (1, 2)]

    def change(number: int) -> list[str]:
        reasons = [f"{number}.{turn}" for turn in range(6)]
        for turn, reason in enumerate(reasons):
            registry.set_alias(zones.models, MODEL, f"a{number}", made[turn % 2], reason=reason)
            registry.set_alias(zones.models, MODEL, CHAMPION, made[(number + turn) % 2], reason=reason)
        return reasons

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    state, _ = registry.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    history = state.history
    assert [entry.generation for entry in history] == list(range(1, state.generation + 1))
    assert all(one.version != two.version for one, two in pairwise(history))
    assert len({entry.reason for entry in history}) == len(history)
    for number in range(4):
        own, _ = registry.read_alias(zones.models, MODEL, f"a{number}") or pytest.fail("no alias")
        assert own.generation == 6


def test_one_of_several_judges_in_threads_wins(zones: Zones) -> None:
    """Of threads that all judged the same state exactly one may change it, round after round."""
    made = [registered(zones, day) for day in range(1, RACERS + 1)]
    for _ in range(5):
        found = registry.read_alias(zones.models, MODEL, CHAMPION)
        candidates = [version for version in made if not found or version != found[0].version]
        barrier = Barrier(len(candidates))

        def judge(version: str, barrier: Barrier = barrier, etag: str | None = found[1] if found else None) -> str:
            barrier.wait()
            try:
                registry.set_alias(zones.models, MODEL, CHAMPION, version, reason="race", expected=etag)
            except Conflict:
                return ""
            return version

        with ThreadPoolExecutor(len(candidates)) as pool:
            winners = [version for version in pool.map(judge, candidates) if version]
        assert winners == [registry.resolve(zones.models, MODEL, CHAMPION).version]


def test_one_of_several_judges_in_processes_wins(zones: Zones, zone_settings: Settings) -> None:
    """Of processes that all judged the same state exactly one may change it."""
    made = [registered(zones, day) for day in (1, 2, 3, 4)]
    registry.set_alias(zones.models, MODEL, CHAMPION, made[0], reason="first")
    _, etag = registry.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    with started(SET_ALIAS, zone_settings, *([MODEL, version, etag] for version in made[1:])) as processes:
        answers = [lines[0] for lines in answers_of(processes)]
    assert sorted(answers) == ["lost", "lost", "won"]
    assert registry.resolve(zones.models, MODEL, CHAMPION).version == made[1:][answers.index("won")]


def test_a_stale_judge_loses_though_the_alias_came_back(zones: Zones) -> None:
    """A, B, A: the etag of the first A does not fit the second, on a store whose etags are hashes of content."""
    one, two, three = (registered(zones, day) for day in (1, 2, 3))
    registry.set_alias(zones.models, MODEL, CHAMPION, one, reason="same words")
    _, stale = registry.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    registry.set_alias(zones.models, MODEL, CHAMPION, two, reason="same words")
    registry.set_alias(zones.models, MODEL, CHAMPION, one, reason="same words")
    with pytest.raises(Conflict, match="was changed by another writer meanwhile"):
        registry.set_alias(zones.models, MODEL, CHAMPION, three, reason="stale", expected=stale)
    assert registry.resolve(zones.models, MODEL, CHAMPION).version == one


def test_a_deleted_alias_is_not_revived_by_a_stale_judge(zones: Zones) -> None:
    """Where the alias is gone, an etag of its last state wins nothing."""
    one, two = (registered(zones, day) for day in (1, 2))
    registry.set_alias(zones.models, MODEL, CHAMPION, one, reason="first")
    _, stale = registry.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    zones.models.delete([f"{MODEL}/aliases/{CHAMPION}.json"])
    with pytest.raises(Conflict):
        registry.set_alias(zones.models, MODEL, CHAMPION, two, reason="stale", expected=stale)
    assert registry.read_alias(zones.models, MODEL, CHAMPION) is None


def test_rollbacks_at_once_go_back_one_step(zones: Zones) -> None:
    """Two people who roll back the same champion take back one version, not two."""
    made = [registered(zones, day) for day in (1, 2, 3)]
    for version in made:
        registry.set_alias(zones.models, MODEL, CHAMPION, version, reason="promoted")
    found = registry.read_alias(zones.models, MODEL, CHAMPION)
    barrier = Barrier(2)

    class Together(Store):
        """A store on which both have read the alias before either changes it."""

        def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
            barrier.wait()
            zones.models.compare_and_swap(key, data, etag=etag)

    together = Together(zones.models._backend, zones.models.url)  # noqa: SLF001 - the same zone, another behaviour

    def roll_back(_: int) -> bool:
        try:
            registry.rollback(together, MODEL, CHAMPION, "worse")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(roll_back, range(2))) == [False, True]
    state, _ = registry.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    assert found is not None
    assert (state.version, state.generation) == (made[1], found[0].generation + 1)
    assert registry.rollback(zones.models, MODEL, CHAMPION, "worse still").version == made[0]
    with pytest.raises(NotFound, match="that was not rolled back itself"):
        registry.rollback(zones.models, MODEL, CHAMPION, "worst")


def test_an_altered_file_is_detected(zones: Zones) -> None:
    """A model file that was replaced in the store is never handed out."""
    manifest = registry.read_manifest(zones.models, MODEL, registered(zones, 1))
    zones.models.put(manifest.files["model.onnx"].key, b"something else")
    with pytest.raises(Corrupted, match=r"model\.onnx"):
        registry.load_file(zones.models, manifest, "model.onnx")
