"""The prediction log of real servers on a real object store, read back as its readers do."""

import hashlib
import os
import re
import signal
from collections import Counter
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pytest
import tiny_models
from batch_predictions import predicted, put
from live_server import wait_until
from pydantic import SecretStr
from serving_process import MODEL, Serving, Start, point_at, register, restarted_store, store_pid

from pipeline import embedded_store, images
from pipeline.errors import AccessDenied
from pipeline.private_files import private_folder, write_private
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from pipeline.store_users import STORE_USERS, identities
from pipeline.zones import Zones, open_zones, reachable

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FILE = re.compile(rf"{MODEL}/date=\d{{4}}-\d\d-\d\d/[A-Za-z0-9.-]+-\d+-[0-9a-f-]{{36}}\.parquet")
PART = "part-00000.parquet"
PNGS = [images.encode_png(tiny_models.picture(seed)) for seed in range(20)]


def copied(predictions: Store, folder: Path) -> str:
    """What a query asks for: everything that the log holds, copied to a folder."""
    folder.mkdir()
    for each in predictions.listing():
        assert FILE.fullmatch(each.key), each.key
        file = folder / each.key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(predictions.get(each.key))
    return f"read_parquet('{folder}/{MODEL}/*/*.parquet', hive_partitioning = true)"


def logged(predictions: Store, folder: Path) -> list[dict[str, Any]]:
    """All rows, as DuckDB reads them."""
    there = copied(predictions, folder)
    if not any(folder.iterdir()):
        return []
    rows = duckdb.sql(f"SELECT * FROM {there} ORDER BY time, request_id")  # noqa: S608 - ours
    return [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]


def asked(server: Serving, calls: int, of_one: int = 1) -> dict[str, list[tuple[str, str]]]:
    """Digest and label of each image of so many calls, by request id."""
    answered = {}
    for number in range(calls):
        sent = [PNGS[(number + each) % len(PNGS)] for each in range(of_one)]
        answer = server.client.post("/predict", files=[("image", (f"{i}", data)) for i, data in enumerate(sent)])
        assert answer.status_code == 200, answer.text
        found = answer.json().get("predictions", [answer.json()])
        digests = [hashlib.sha256(data).hexdigest() for data in sent]
        answered[answer.headers["x-request-id"]] = list(zip(digests, [each["label"] for each in found], strict=True))
    return answered


def flat(answered: Mapping[str, list[tuple[str, str]]]) -> Counter[tuple[str, ...]]:
    """The same as a bag of rows."""
    return Counter((call, *image) for call, found in answered.items() for image in found)


def bag(rows: list[dict[str, Any]]) -> Counter[tuple[str, ...]]:
    """What was logged, as a bag of rows."""
    return Counter((row["request_id"], row["image_sha256"], row["label"]) for row in rows)


@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_normal_stop_every_answer_is_there_once(
    zones: Zones, zone_settings: Settings, start: Start, tmp_path: Path, processes: int
) -> None:
    """Exactly the images that were answered, by file, body and several at once, with what was answered."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, PROCESSES=str(processes))
    server.wait_for(version, processes)
    answered = asked(server, 30) | asked(server, 3, of_one=7)
    raw = server.client.post("/predict", content=PNGS[0], headers={"X-Request-Id": "of-the-client"})
    refused = server.client.post("/predict", content=b"no image")
    assert (raw.status_code, refused.status_code) == (200, 422)
    answered["of-the-client"] = [(hashlib.sha256(PNGS[0]).hexdigest(), raw.json()["label"])]
    assert server.end() == 0
    rows = logged(zones.predictions, tmp_path / "copy")
    assert bag(rows) == flat(answered)
    assert {(row["model"], row["model_version"], row["role"]) for row in rows} == {(MODEL, version.version, "champion")}
    assert {row["dataset_version"] for row in rows} == {tiny_models.DATASET.version}
    assert all(f"{row['time'].astimezone():%Y}" >= "2026" for row in rows)
    assert {"image"}.isdisjoint(rows[0])
    assert len(list(zones.predictions.listing())) <= processes


def test_readme_s_query_reads_what_a_server_wrote(
    zones: Zones, zone_settings: Settings, start: Start, tmp_path: Path
) -> None:
    """It counts the answers by day, version and label; its place alone is another one."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings)
    server.wait_for(version)
    labels = Counter(label for found in asked(server, 20).values() for _, label in found)
    server.end()
    query = README.split("```sql")[1].split("```")[0].partition(";")[2]
    there, found_once = re.subn(r"read_parquet\([^)]*\)", copied(zones.predictions, tmp_path / "copy"), query)
    assert found_once == 1
    found = duckdb.sql(there)
    assert found.columns == ["date", "model_version", "role", "label", "answers", "confidence"]
    rows = found.fetchall()
    assert {(row[1], row[2]) for row in rows} == {(version.version, "champion")}
    assert Counter({row[3]: row[4] for row in rows}) == labels
    assert all(0 < row[5] <= 1 for row in rows)


def test_a_killed_server_loses_what_it_had_not_stored_and_leaves_no_half_file(
    zones: Zones, zone_settings: Settings, start: Start, tmp_path: Path
) -> None:
    """What was flushed before stays, each file whole; what was answered since is lost."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, LOG_FLUSH_S="1")
    server.wait_for(version)
    copies = count()
    answered = asked(server, 10)
    wait_until(lambda: len(logged(zones.predictions, tmp_path / f"copy-{next(copies)}")) == 10, 10)
    late = asked(server, 10)
    server.kill()
    rows = bag(logged(zones.predictions, tmp_path / "copy"))
    assert flat(answered) <= rows <= flat(answered | late)


def test_an_outage_of_the_store_costs_no_row(private_store: Settings, start: Start, tmp_path: Path) -> None:
    """Images are answered all the while, and what was answered is stored when the store is back, once."""
    zones = open_zones(private_store)
    version = register(zones, 1)
    point_at(zones, version)
    server = start(private_store, LOG_FLUSH_S="1")
    server.wait_for(version)
    answered = asked(server, 5)
    os.kill(store_pid(private_store), signal.SIGKILL)
    answered |= asked(server, 10)
    wait_until(lambda: b"the prediction log waits" in server.log.read_bytes(), 20)
    answered |= asked(server, 5)
    restarted_store(private_store)
    assert server.end() == 0
    assert bag(logged(zones.predictions, tmp_path / "copy")) == flat(answered)


def test_a_store_that_stays_away_delays_the_end_by_seconds(private_store: Settings, start: Start) -> None:
    """The rows are lost, and the log says how many."""
    zones = open_zones(private_store)
    version = register(zones, 1)
    point_at(zones, version)
    server = start(private_store)
    server.wait_for(version)
    asked(server, 3)
    os.kill(store_pid(private_store), signal.SIGKILL)
    assert server.end(timeout_s=15) == 0
    assert b"3 rows of the prediction log were not stored" in server.log.read_bytes()


def test_a_server_without_the_right_to_write_answers_and_says_so_once(
    zones: Zones, zone_settings: Settings, start: Start
) -> None:
    """No bucket, here: one warning, answers as ever, and the losses at /metrics."""
    version = register(zones, 1)
    point_at(zones, version)
    settings = zone_settings.model_copy(update={"predictions_url": "s3://of-somebody-else/predictions"})
    server = start(settings, LOG_FLUSH_S="1")
    server.wait_for(version)
    asked(server, 3)
    lost = "safelight_prediction_log_dropped_rows_total"
    wait_until(lambda: re.search(rf"^{lost}\S* 3\.0$", server.get("/metrics").text, re.MULTILINE) is not None, 20)
    asked(server, 2)
    wait_until(lambda: re.search(rf"^{lost}\S* 5\.0$", server.get("/metrics").text, re.MULTILINE) is not None, 20)
    assert server.log.read_bytes().count(b"the prediction log loses its rows") == 1


def test_images_are_kept_where_a_person_says_so(
    zones: Zones, zone_settings: Settings, start: Start, tmp_path: Path
) -> None:
    """Byte for byte, so that they can be labelled and learned from."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, LOG_IMAGES="on")
    server.wait_for(version)
    asked(server, 5)
    server.end()
    rows = logged(zones.predictions, tmp_path / "copy")
    assert [hashlib.sha256(row["image"]).hexdigest() for row in rows] == [row["image_sha256"] for row in rows]
    assert len(rows) == 5


def test_a_server_that_is_told_to_keeps_no_log(zones: Zones, zone_settings: Settings, start: Start) -> None:
    """Nothing is written to the zone."""
    version = register(zones, 1)
    point_at(zones, version)
    server = start(zone_settings, LOG="off")
    server.wait_for(version)
    asked(server, 3)
    assert server.end() == 0
    assert not list(zones.predictions.listing())


def test_the_rights_of_the_stack_are_enough_and_no_more(
    tmp_path: Path, request: pytest.FixtureRequest, start: Start
) -> None:
    """A server follows its model and logs, the command line removes old predictions, the worker makes batches."""
    keys = {user: (f"{user}-key", f"{user}-secret-{'x' * 20}") for user in STORE_USERS}
    folder = private_folder(tmp_path / "home" / "store" / "conf")
    write_private(folder / "s3.json", identities(("root-key", f"root-secret-{'x' * 20}"), keys))
    request.addfinalizer(lambda: embedded_store.down(tmp_path / "home"))
    root = reachable(Settings(home=tmp_path / "home", store_patience_s=5))
    zones = open_zones(root)
    version = register(zones, 1)
    point_at(zones, version)
    server = start(as_user(root, keys["serving"]))
    server.wait_for(version)
    answered = asked(server, 3)
    assert server.end() == 0
    assert bag(logged(zones.predictions, tmp_path / "copy")) == flat(answered)
    (file,) = zones.predictions.listing()
    for user in ("serving", "worker", "people", "events"):
        with pytest.raises(AccessDenied):
            open_store("s3://safelight-predictions", as_user(root, keys[user])).delete([file.key])
    worker = as_user(root, keys["worker"])
    put(zones, range(3))
    result = predicted(open_zones(worker))
    (part,) = result.manifest.parts
    for user in ("serving", "people", "events"):
        with pytest.raises(AccessDenied):
            open_store("s3://safelight-predictions", as_user(root, keys[user])).put(part.key, b"other answers")
    with pytest.raises(AccessDenied):
        open_store("s3://safelight-predictions", worker).put(file.key, b"other rows")
    open_store("s3://safelight-predictions", as_user(root, keys["cli"])).delete([file.key])
    assert {each.key for each in zones.predictions.listing()} == {part.key, part.key.replace(PART, "manifest.json")}


def as_user(settings: Settings, key: tuple[str, str]) -> Settings:
    """The same store, seen by somebody else."""
    return settings.model_copy(
        update={"s3_access_key_id": SecretStr(key[0]), "s3_secret_access_key": SecretStr(key[1])}
    )
