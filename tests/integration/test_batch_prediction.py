"""Batch prediction on a real object store: what the server answers, whoever is killed or works beside it."""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import tiny_models
from batch_predictions import FOLDER, MODEL, champion, keys, predicted, put, rows
from dask_workers import dask_cluster
from environs import environ
from integration.test_same_answer import SIDES, picture
from live_server import wait_until
from serving_process import Start

from pipeline import batch_plans, fan_out, garbage, images
from pipeline.batches import Place
from pipeline.errors import StoreError
from pipeline.predict import BatchResult
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.store import open_store
from pipeline.unreferenced import Limits
from pipeline.verification import verify
from pipeline.zones import Zones, open_zones

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PART = 40
SMALL_PARTS = f"""
import sys
from pipeline import batch_plans
from pipeline.cli import main

batch_plans.PART_OBJECTS = {PART}
main()
"""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_plans, "PART_OBJECTS", PART)


def command(*words: str) -> list[str]:
    """``safelight predict …``, in parts of ``PART`` objects."""
    return [sys.executable, "-c", SMALL_PARTS, "predict", *words]


def run(settings: Settings, *words: str) -> "subprocess.CompletedProcess[str]":
    """What the command says."""
    return subprocess.run(command(*words), env=environ(settings), capture_output=True, text=True, check=False)


def test_every_answer_is_the_server_s(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Images of several formats and sizes: the server's label, and its probabilities up to 1e-6."""
    version = champion(zones)
    kinds = itertools.cycle(["PNG", "JPEG", "WebP"])
    made = {f"{number:03d}.{kind}": (SIDES[number % 5], kind) for number, kind in zip(range(90), kinds, strict=False)}
    for number, (name, (side, kind)) in enumerate(made.items()):
        zones.images.put(f"{FOLDER}/{name}", picture(number, side, kind))
    zones.images.put(f"{FOLDER}/broken.png", b"no image")
    server = start(zone_settings, TOP_K="3")
    server.wait_for(version)
    for row in rows(zones.predictions, predicted(zones)):
        answer = server.client.post("/predict", content=zones.images.get(row["key"]))
        if row["label"] is None:
            assert answer.status_code == 422
            assert row["reason"] in answer.json()["detail"]
            continue
        assert answer.json()["label"] == row["label"]
        assert answer.json()["model_version"] == row["model_version"]
        served = {each["label"]: each["probability"] for each in answer.json()["top"]}
        ours = dict(zip(tiny_models.DATASET.classes, row["probabilities"], strict=True))
        assert served == pytest.approx(ours, rel=0, abs=1e-6)
        assert served[row["label"]] == pytest.approx(row["probability"], rel=0, abs=1e-6)


def test_killed_again_and_again_it_goes_on(zones: Zones, zone_settings: Settings) -> None:
    """Killed at its plan and between parts, while images arrive and the champion moves: what one process makes."""
    champion(zones, onnx_file=tiny_models.slow_onnx(tiny_models.DATASET, 1, ms=100))
    put(zones, range(6 * PART))
    expected = rows(zones.predictions, predicted(zones, name="undisturbed"))
    for parts in (0, 1, 3):
        predict_and_kill(zone_settings, zones, parts)
        assert zones.predictions.head(Place(MODEL, "day").manifest) is None
        champion(zones, seed=10 + parts)
        put(zones, [1000 + parts])
    done = run(zone_settings, MODEL, FOLDER, "--name", "day", "--json")
    result = BatchResult.model_validate_json(done.stdout)
    assert result.found >= 3
    assert rows(zones.predictions, result) == expected
    assert verify(zones).broken == ()


def predict_and_kill(settings: Settings, zones: Zones, parts: int) -> None:
    """Predict in another process, killed as soon as there is a plan, and so many parts."""
    place = Place(MODEL, "day")
    with subprocess.Popen(command(MODEL, FOLDER, "--name", "day"), env=environ(settings)) as process:
        wait_until(
            lambda: zones.predictions.head(place.plan) and len(list(zones.predictions.listing(place.folder))) >= parts,
            60,
        )
        process.kill()


def test_two_at_once_answer_once(zones: Zones, zone_settings: Settings) -> None:
    """The second one waits, and finds it done."""
    champion(zones)
    put(zones, range(3 * PART))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: predicted(open_zones(zone_settings)), range(2)))
    assert sorted(result.new for result in results) == [False, True]
    assert results[0].manifest == results[1].manifest
    assert len(keys(zones)) == 4


def test_readme_s_query_counts_the_answers(zones: Zones, tmp_path: Path) -> None:
    """It reads all parts at once, and tells labels and reasons."""
    champion(zones)
    put(zones, range(2 * PART))
    zones.images.put(f"{FOLDER}/broken.png", b"no image")
    result = predicted(zones, name="november")
    for part in result.manifest.parts:
        (tmp_path / Path(part.key).name).write_bytes(zones.predictions.get(part.key))
    query = README.split("## Answers to many images at once")[1].split("```sql")[1].split("```")[0]
    assert "_batch/fashion-mnist/november/*.parquet" in query
    there, found_once = re.subn(r"read_parquet\([^)]*\)", f"read_parquet('{tmp_path}/*.parquet')", query)
    assert found_once == 1
    found = duckdb.sql(there)
    assert found.columns == ["label", "images", "confidence", "reason"]
    told = {label: (images, reason) for label, images, _, reason in found.fetchall()}
    assert told.pop(None) == (1, "not an image of a supported format (PNG, JPEG, WebP, BMP, TIFF, GIF)")
    assert sum(images for images, _ in told.values()) == 2 * PART


def test_readers_of_the_log_do_not_meet_them(zones: Zones, tmp_path: Path) -> None:
    """The log's files of a model are found by their pattern as before, also where all of the zone is looked at."""
    champion(zones)
    put(zones, range(3))
    predicted(zones)
    zones.predictions.put(f"{MODEL}/date=2026-11-22/replica-1-x.parquet", b"rows")
    for each in zones.predictions.listing():
        (tmp_path / each.key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each.key).write_bytes(b"rows")
    for pattern in (f"{MODEL}/*/*.parquet", "[a-z0-9]*/*/*.parquet"):
        assert [path.name for path in tmp_path.glob(pattern)] == ["replica-1-x.parquet"]
    assert zones.predictions.folders(MODEL) == ["date=2026-11-22"]


def test_what_was_given_up_is_garbage_and_what_is_complete_is_not(zones: Zones, zone_settings: Settings) -> None:
    """After a day an unfinished batch goes as a whole, its lease too; a later run begins anew."""
    champion(zones)
    put(zones, range(2 * PART))
    whole = predicted(zones, name="whole")

    def killed(answer: Any, parts: Any) -> Iterator[Any]:
        yield answer(next(iter(parts)))
        raise StoreError("the machine went")

    with pytest.raises(StoreError):
        predicted(zones, name="half", map_parts=killed)
    for limits, count in ((Limits(), 0), (Limits(older_than=timedelta(seconds=-1)), 5)):
        swept = garbage.sweep(zones, zone_settings, limits, remove=True)
        assert not swept.left_alone
        found = [each for each in swept.garbage if each.zone == "predictions"]
        assert {each.kind for each in found} == ({"unfinished batch predictions"} if count else set())
        assert len(found) == count
    assert keys(zones) == sorted([*(part.key for part in whole.manifest.parts), Place(MODEL, "whole").manifest])
    assert predicted(zones, name="half").found == 0


def test_another_bucket_of_the_store_is_read_too(zones: Zones, zone_settings: Settings) -> None:
    """By the command, with a URL: keys are that bucket's own, and the manifest says which bucket that is."""
    champion(zones)
    outside = f"{zone_settings.store_url}-outside"
    bucket, _, prefix = outside.removeprefix("s3://").partition("/")
    elsewhere = open_store(outside, zone_settings)
    for number in range(3):
        elsewhere.put(f"{number}.png", images.encode_png(tiny_models.picture(number)))
    result = BatchResult.model_validate_json(run(zone_settings, MODEL, outside, "--json").stdout)
    assert (result.manifest.source, result.manifest.prefix) == (f"s3://{bucket}", prefix)
    assert [row["key"] for row in rows(zones.predictions, result)] == [f"{prefix}/{number}.png" for number in range(3)]
    again = run(zone_settings, MODEL, f"{outside}/")
    assert "answered 3 of 3 objects" in again.stdout
    assert "(as answered before)" in again.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((MODEL, ""), "The prefix is empty: name a folder of images"),
        ((MODEL, "s3://no-such-bucket-here/a"), "no-such-bucket-here"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_sentence(
    shared: tuple[Zones, Settings], words: tuple[str, ...], said: str
) -> None:
    """It says what was wrong, on one line, without a traceback."""
    done = run(shared[1], *words)
    assert done.returncode in {1, 2}
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def shared(shared_zone_settings: Settings) -> tuple[Zones, Settings]:
    """Zones with a champion and an image, which nobody changes."""
    zones = open_zones(shared_zone_settings)
    champion(zones)
    put(zones, [1])
    return zones, shared_zone_settings


def test_processes_answer_as_one_process_does(
    zones: Zones, zone_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With parts answered by processes of this machine: the same rows."""
    champion(zones)
    put(zones, range(3 * PART))
    expected = rows(zones.predictions, predicted(zones, name="threads"))
    settings = zone_settings.model_copy(update={"task_runner": "processes", "decode_threads": 2})
    for name, value in environ(settings).items():
        monkeypatch.setenv(name, value)
    result = predicted(zones, name="processes", map_parts=fan_out.map_parts(settings, zones))
    assert len(result.manifest.parts) == 3
    assert rows(zones.predictions, result) == expected


def test_a_dask_worker_killed_in_the_middle_changes_nothing(
    zones: Zones, zone_settings: Settings, tmp_path: Path
) -> None:
    """With parts answered by a real cluster, one of two workers killed meanwhile: the same rows."""
    champion(zones)
    put(zones, range(6 * PART))
    expected = rows(zones.predictions, predicted(zones, name="threads"))
    with dask_cluster(tmp_path) as cluster:
        first, _ = (cluster.start_worker(environ(zone_settings)) for _ in range(2))
        settings = zone_settings.model_copy(update={"task_runner": cluster.address})

        def kill_one(progress: Progress) -> None:
            if progress.stage == "answering" and progress.done and first.poll() is None:
                cluster.kill(first)

        result = predicted(zones, name="dask", map_parts=fan_out.map_parts(settings, zones), on_progress=kill_one)
        assert first.poll() is not None
    assert rows(zones.predictions, result) == expected
