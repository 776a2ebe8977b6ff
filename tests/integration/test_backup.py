"""A store and Prefect's database, copied while they are used, and what is made of the copies, used in turn."""

import json
import os
import shlex
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import synthetic
import tiny_models
from environs import environ
from prefect_stack import Stack, prefect_stack, server, stop
from serving_process import MODEL, Start

from pipeline import aliases
from pipeline.artifacts import ModelVersion, PrepareConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.verification import verify
from pipeline.zones import Zones, open_zones

ROOT = Path(__file__).parents[2]
PAGES = ("docs/operations.md", "docs/kubernetes.md")

pytestmark = pytest.mark.timeout(300)


def safelight(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """What a command says."""
    command = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(command, env=environ(settings), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def live(zones: Zones) -> ModelVersion:
    """A dataset, and two versions of a model of which the second one is live."""
    synthetic.put_classes(zones, MODEL, 8)
    prepare(zones, MODEL, PrepareConfig(size=12))
    for seed in (1, 2):
        made = tiny_models.register(zones.checkpoints, zones.models, MODEL, seed)
        aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, made.version, reason="test")
    return made


def test_an_empty_store_is_filled_from_a_copy_and_serves(
    zone_settings: Settings, live: ModelVersion, private_store: Settings, start: Start, tmp_path: Path
) -> None:
    """In another server nothing is missing or altered, and the inference server answers with what was live."""
    url = f"file://{tmp_path}/copy"
    done = safelight(zone_settings, "store", "backup", url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["copied"].keys() == {"images", "datasets", "checkpoints", "models"}

    back = safelight(private_store, "store", "restore", url)
    assert back.returncode == 0, back.stderr
    assert "the store is as it was at" in back.stderr + back.stdout
    restored = open_zones(private_store)
    found = verify(restored)
    assert (found.broken, found.counts) == ((), verify(open_zones(zone_settings)).counts)
    serving = start(private_store)
    serving.wait_for(live)
    assert aliases.rollback(
        open_zones(private_store).models, MODEL, aliases.CHAMPION, "the copy has its history"
    ).version


def test_a_person_s_mistake_is_a_sentence(zone_settings: Settings, live: ModelVersion, tmp_path: Path) -> None:
    """No copy there, or a store that is not empty: status 2, no traceback, and the store is as it was."""
    url = f"file://{tmp_path}/copy"
    nothing = safelight(zone_settings, "store", "restore", url)
    assert safelight(zone_settings, "store", "backup", url).returncode == 0
    zones = open_zones(zone_settings)
    aliases.rollback(zones.models, MODEL, aliases.CHAMPION, "since the copy")
    full = safelight(zone_settings, "store", "restore", url)
    for done, words in ((nothing, "holds no complete copy"), (full, "restore into an empty store")):
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    found = aliases.read_alias(zones.models, MODEL, aliases.CHAMPION)
    assert found
    assert found[0].version != live.version


def of_prefect(what: str) -> str:
    """The program that the pages have people run for that: the same one on each."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    lines = [line for line in text.replace("\\\n", "").splitlines() if what in line and "-ISc" in line]
    (program,) = {words[words.index("-ISc") + 1] for words in map(shlex.split, lines)}
    assert len(lines) == len(PAGES)
    return program


def test_prefect_s_database_is_copied_while_it_is_written_and_put_back(tmp_path: Path) -> None:
    """A server that is given the copy knows every run of before, none of after, and goes on from there."""
    with prefect_stack(tmp_path, os.environ) as stack:
        before = {stack.start("pipeline") for _ in range(5)}
        over = threading.Event()

        def write() -> None:
            while not over.is_set():
                stack.start("pipeline")

        others = [threading.Thread(target=write) for _ in range(2)]
        for each in others:
            each.start()
        try:
            run(of_prefect("VACUUM INTO"), stack)
        finally:
            over.set()
            for each in others:
                each.join()
        with sqlite3.connect(stack.home / "prefect" / "backup.db") as copy:
            assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        after = stack.start("pipeline")
        run(of_prefect(".backup("), stack)
        assert stack.server
        stop(stack.server)
        with server(stack):
            assert {stack.ask("GET", f"flow_runs/{each}")["id"] for each in before} == before
            assert stack.send("GET", f"flow_runs/{after}").status_code == 404
            assert stack.state(stack.start("pipeline"))["type"] == "SCHEDULED"


def run(program: str, stack: Stack) -> None:
    """Do what a page says, with the database of this server."""
    assert program.count("/var/lib/safelight/") == 2
    home = stack.home / "prefect"
    subprocess.run([sys.executable, "-ISc", program.replace("/var/lib/safelight", str(home))], check=True)
