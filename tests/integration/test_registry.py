"""Registering and changing aliases against a real object store: races of threads and processes, and kill -9."""

import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import pytest
from racing import at_the_line, race, release
from tiny_models import evaluated, exported, refuse_inconsistent, training_run

from pipeline import aliases, registry
from pipeline.aliases import CHAMPION
from pipeline.artifacts import EvaluationReport, ExportedModel
from pipeline.errors import Conflict, Corrupted, NotFound
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
from pipeline import aliases
from pipeline.errors import Conflict
from pipeline.settings import Settings
from pipeline.store import open_store

settings = Settings.from_environ(os.environ)
store = open_store(settings.zone_url("models"), settings)
model, version, expected = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    aliases.set_alias(store, model, "champion", version, reason=str(os.getpid()), expected=expected or None)
    print("won")
except Conflict:
    print("lost")
"""


def finished(zones: Zones, number: int = 1, *, attempt: int = 1) -> tuple[ExportedModel, EvaluationReport]:
    """A training run, exported and evaluated; another attempt is another evaluation of the same run."""
    run = training_run(number)
    made = exported(zones.checkpoints, run, b"onnx" * 50_000)
    return made, evaluated(zones.checkpoints, run, accuracy=0.25 * attempt, attempt=attempt)


def registered(zones: Zones, number: int) -> str:
    """A version of ``MODEL``."""
    return registry.register(zones.checkpoints, zones.models, MODEL, *finished(zones, number)).version


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

    def attempt(number: int) -> str:
        barrier.wait()
        made, report = attempts[number % 2]
        return registry.register(
            zones.checkpoints, zones.models, MODEL, made, report, code_revision=str(number)
        ).version

    with ThreadPoolExecutor(RACERS) as pool:
        (version,) = set(pool.map(attempt, range(RACERS)))
    assert refuse_inconsistent(zones.models) == 1
    assert len(list(zones.models.listing(f"{MODEL}/{version}"))) == 6


def test_registrars_in_processes_make_one_version_each(zones: Zones, zone_settings: Settings, tmp_path: Path) -> None:
    """Processes that register two evaluations of one run under ten names at once agree on each of them."""
    folders = [written(tmp_path / str(attempt), *finished(zones, attempt=attempt)) for attempt in (1, 2)]
    runs = [[folders[number % 2], "m", "10"] for number in range(3)]
    with at_the_line(REGISTER, zone_settings, *runs) as processes:
        answers = race(processes)
    (version,) = {version for lines in answers for version in lines}
    assert refuse_inconsistent(zones.models) == 10
    assert len(list(zones.models.listing(f"m0/{version}"))) == 6


def test_killed_registrars_leave_no_half_version(zones: Zones, zone_settings: Settings, tmp_path: Path) -> None:
    """After SIGKILL at any moment all that is visible is whole, and registering again completes the rest."""
    seed = random.randrange(2**32)
    log.warning("seed %d", seed)
    chance = random.Random(seed)
    folder = written(tmp_path / "records", *finished(zones))
    cut_short = 0
    for number in range(6):
        with at_the_line(REGISTER, zone_settings, [folder, f"round{number}-", "1000"]) as (process,):
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
            aliases.set_alias(zones.models, MODEL, f"a{number}", made[turn % 2], reason=reason)
            aliases.set_alias(zones.models, MODEL, CHAMPION, made[(number + turn) % 2], reason=reason)
        return reasons

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    state, _ = aliases.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    history = state.history
    assert [entry.generation for entry in history] == list(range(1, state.generation + 1))
    assert all(one.version != two.version for one, two in pairwise(history))
    assert len({entry.reason for entry in history}) == len(history)
    for number in range(4):
        own, _ = aliases.read_alias(zones.models, MODEL, f"a{number}") or pytest.fail("no alias")
        assert own.generation == 6


def test_one_of_several_judges_in_threads_wins(zones: Zones) -> None:
    """Of threads that all judged the same state exactly one may change it, round after round."""
    made = [registered(zones, day) for day in range(1, RACERS + 1)]
    for _ in range(5):
        found = aliases.read_alias(zones.models, MODEL, CHAMPION)
        candidates = [version for version in made if not found or version != found[0].version]
        barrier = Barrier(len(candidates))

        def judge(version: str, barrier: Barrier = barrier, etag: str | None = found[1] if found else None) -> str:
            barrier.wait()
            try:
                aliases.set_alias(zones.models, MODEL, CHAMPION, version, reason="race", expected=etag)
            except Conflict:
                return ""
            return version

        with ThreadPoolExecutor(len(candidates)) as pool:
            winners = [version for version in pool.map(judge, candidates) if version]
        assert winners == [aliases.resolve(zones.models, MODEL, CHAMPION).version]


def test_one_of_several_judges_in_processes_wins(zones: Zones, zone_settings: Settings) -> None:
    """Of processes that all judged the same state exactly one may change it."""
    made = [registered(zones, day) for day in (1, 2, 3, 4)]
    aliases.set_alias(zones.models, MODEL, CHAMPION, made[0], reason="first")
    _, etag = aliases.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    with at_the_line(SET_ALIAS, zone_settings, *([MODEL, version, etag] for version in made[1:])) as processes:
        answers = [lines[0] for lines in race(processes)]
    assert sorted(answers) == ["lost", "lost", "won"]
    assert aliases.resolve(zones.models, MODEL, CHAMPION).version == made[1:][answers.index("won")]


def test_a_stale_judge_loses_though_the_alias_came_back(zones: Zones) -> None:
    """A, B, A: the etag of the first A does not fit the second, on a store whose etags are hashes of content."""
    one, two, three = (registered(zones, day) for day in (1, 2, 3))
    aliases.set_alias(zones.models, MODEL, CHAMPION, one, reason="same words")
    _, stale = aliases.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    aliases.set_alias(zones.models, MODEL, CHAMPION, two, reason="same words")
    aliases.set_alias(zones.models, MODEL, CHAMPION, one, reason="same words")
    with pytest.raises(Conflict, match="was changed by another writer meanwhile"):
        aliases.set_alias(zones.models, MODEL, CHAMPION, three, reason="stale", expected=stale)
    assert aliases.resolve(zones.models, MODEL, CHAMPION).version == one


def test_a_deleted_alias_is_not_revived_by_a_stale_judge(zones: Zones) -> None:
    """Where the alias is gone, an etag of its last state wins nothing."""
    one, two = (registered(zones, day) for day in (1, 2))
    aliases.set_alias(zones.models, MODEL, CHAMPION, one, reason="first")
    _, stale = aliases.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    zones.models.delete([f"{MODEL}/aliases/{CHAMPION}.json"])
    with pytest.raises(Conflict):
        aliases.set_alias(zones.models, MODEL, CHAMPION, two, reason="stale", expected=stale)
    assert aliases.read_alias(zones.models, MODEL, CHAMPION) is None


def test_rollbacks_at_once_go_back_one_step(zones: Zones) -> None:
    """Two people who roll back the same champion take back one version, not two."""
    made = [registered(zones, day) for day in (1, 2, 3)]
    for version in made:
        aliases.set_alias(zones.models, MODEL, CHAMPION, version, reason="promoted")
    found = aliases.read_alias(zones.models, MODEL, CHAMPION)
    barrier = Barrier(2)

    class Together(Store):
        """A store on which both have read the alias before either changes it."""

        def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
            barrier.wait()
            zones.models.compare_and_swap(key, data, etag=etag)

    together = Together(zones.models._backend, zones.models.url)  # noqa: SLF001 - the same zone, another behaviour

    def roll_back(_: int) -> bool:
        try:
            aliases.rollback(together, MODEL, CHAMPION, "worse")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(roll_back, range(2))) == [False, True]
    state, _ = aliases.read_alias(zones.models, MODEL, CHAMPION) or pytest.fail("no alias")
    assert found is not None
    assert (state.version, state.generation) == (made[1], found[0].generation + 1)
    assert aliases.rollback(zones.models, MODEL, CHAMPION, "worse still").version == made[0]
    with pytest.raises(NotFound, match="that was not rolled back itself"):
        aliases.rollback(zones.models, MODEL, CHAMPION, "worst")


def test_an_altered_file_is_detected(zones: Zones) -> None:
    """A model file that was replaced in the store is never handed out."""
    manifest = registry.read_manifest(zones.models, MODEL, registered(zones, 1))
    zones.models.put(manifest.files["model.onnx"].key, b"something else")
    with pytest.raises(Corrupted, match=r"model\.onnx"):
        registry.load_file(zones.models, manifest, "model.onnx")
