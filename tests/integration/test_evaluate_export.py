import hashlib
import io
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import datasets, evaluate, export, images, prepare, train
from pipeline.artifacts import PrepareConfig, StoredFile, TrainConfig, TrainingRun
from pipeline.errors import Corrupted, ExportMismatch
from pipeline.onnx_model import OnnxModel
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.store import Store, open_store
from pipeline.zones import Zones, open_zones

CHROMIUM = shutil.which("chromium")
CLASSES = ("bright <b>", "dark", "striped")


def picture(label: str, rng: np.random.Generator) -> bytes:
    """A grey PNG of 20 x 20 pixels that shows its class, with noise."""
    pixels = rng.integers(0, 60, (20, 20, 1))
    if label == CLASSES[0]:
        pixels += 150
    if label == CLASSES[2]:
        pixels[::2] += 150
    return images.encode_png(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def trained(store_settings: Settings) -> tuple[Zones, TrainingRun]:
    """Zones with a small dataset, and a training run on it that is finished."""
    zones = open_zones(store_settings.model_copy(update={"store_url": f"s3://safelight-tests/{secrets.token_hex(6)}"}))
    rng = np.random.default_rng(4)
    objects = [(f"shades/{label}/{n}.png", picture(label, rng)) for label in CLASSES for n in range(60)]
    assert len(list(zones.images.write_many([*objects, ("shades/dark/broken.png", objects[0][1][:40])]))) == 181
    prepared = prepare.prepare(zones, "shades", PrepareConfig(test_share=0.3))
    return zones, train.train(zones, prepared.version, TrainConfig(epochs=2, batch_size=16), device="cpu")


@pytest.fixture
def zones(trained: tuple[Zones, TrainingRun], zone_settings: Settings) -> Zones:
    """The trained run's dataset, and a checkpoints zone of this test's own that holds the run's checkpoint alone."""
    shared, run = trained
    own = replace(shared, checkpoints=open_store(zone_settings.zone_url("checkpoints"), zone_settings))
    for found in shared.checkpoints.listing(run.checkpoint.rpartition("/")[0]):
        own.checkpoints.put(found.key, shared.checkpoints.get(found.key))
    return own


@pytest.fixture
def run(trained: tuple[Zones, TrainingRun]) -> TrainingRun:
    """The training run."""
    return trained[1]


def read(store: Store, file: StoredFile) -> bytes:
    """The bytes of a file of a record, which must be those that the record names."""
    data = store.get_verified(file.key, file.sha256)
    assert len(data) == file.size
    return data


def states(store: Store, folder: str) -> dict[str, Any]:
    """When each object below ``folder`` was written, and its etag."""
    return {found.key: (found.modified, found.etag) for found in store.listing(folder)}


def test_what_was_judged_is_what_is_exported(zones: Zones, run: TrainingRun) -> None:
    """Every file is stored as its record says, and the ONNX file alone gives the evaluation's own predictions."""
    exported = export.export(zones, run)
    judged = evaluate.evaluate(zones, run, device="cpu")
    assert set(exported.files) == {"model.onnx", "model.safetensors"}
    assert set(judged.files) == {"report.html", "evaluation.json", "predictions.parquet"}
    for file in (*exported.files.values(), *judged.files.values()):
        read(zones.checkpoints, file)
    table = pq.read_table(io.BytesIO(read(zones.checkpoints, judged.files["predictions.parquet"])))
    test = datasets.load_split(zones.datasets, run.dataset, "test")
    answer = OnnxModel(read(zones.checkpoints, exported.files["model.onnx"])).probabilities(test.pixels)
    stored = np.array(table["probabilities"].to_pylist(), np.float32)
    np.testing.assert_allclose(answer, stored, atol=export.LARGEST_DIFFERENCE)
    assert table["image_digest"].to_pylist() == [digest.tobytes() for digest in test.digests]
    assert judged.images == len(test.labels) == exported.parity["images"]
    assert judged.accuracy == (stored.argmax(axis=1) == test.labels).mean() > 0.5
    page = read(zones.checkpoints, judged.files["report.html"]).decode()
    assert "bright &lt;b&gt;" in page
    assert "bright <b>" not in page
    assert "Left out:" in page


def test_a_second_time_nothing_is_done(zones: Zones, run: TrainingRun) -> None:
    """Exporting and evaluating again returns equal records, computes nothing and writes nothing."""
    first = export.export(zones, run), evaluate.evaluate(zones, run)
    before = states(zones.checkpoints, run.id)
    told: list[Progress] = []
    assert (
        export.export(zones, run, on_progress=told.append),
        evaluate.evaluate(zones, run, on_progress=told.append),
    ) == first
    assert told == []
    assert states(zones.checkpoints, run.id) == before


@pytest.mark.parametrize("lost", [1, 2])
def test_an_interrupted_evaluation_goes_on_with_its_predictions(zones: Zones, run: TrainingRun, lost: int) -> None:
    """Killed before the record, or before the page: the same record comes out, and no image is judged twice."""
    whole = evaluate.evaluate(zones, run)
    zones.checkpoints.delete([whole.files[name].key for name in ("evaluation.json", "report.html")[:lost]])
    told: list[Progress] = []
    assert evaluate.evaluate(zones, run, on_progress=told.append) == whole
    assert "evaluating" not in {progress.stage for progress in told}


@pytest.mark.parametrize(
    "lost", [("export.json",), ("export.json", "model.safetensors"), ("export.json", "model.onnx")]
)
def test_an_interrupted_export_is_repeated_to_the_same_record(
    zones: Zones, run: TrainingRun, lost: tuple[str, ...]
) -> None:
    """Killed between any two writes, an export repeated gives the files and the record that it would have given."""
    whole = export.export(zones, run)
    zones.checkpoints.delete([f"{run.id}/export/{name}" for name in lost])
    assert export.export(zones, run) == whole


def test_predictions_that_were_stored_first_decide_all_figures(zones: Zones, run: TrainingRun) -> None:
    """Where another writer's predictions are stored, figures and record are made of those and not of our own."""
    test = datasets.load_split(zones.datasets, run.dataset, "test")
    wrong = np.eye(3, dtype=np.float32)[(test.labels + 1) % 3]
    data = evaluate.to_parquet(test, wrong)
    zones.checkpoints.put(f"{run.id}/evaluation/predictions.parquet", data)
    judged = evaluate.evaluate(zones, run)
    assert judged.accuracy == 0
    assert judged.ece == 1
    assert judged.files["predictions.parquet"].sha256 == hashlib.sha256(data).hexdigest()


def test_predictions_of_other_images_are_refused(zones: Zones, run: TrainingRun) -> None:
    """Predictions under the run's key that are not on its test split make no report."""
    table = pa.table({name: pa.array([], kind) for name, kind in evaluate.COLUMNS.items()})
    file = io.BytesIO()
    pq.write_table(table, file)
    zones.checkpoints.put(f"{run.id}/evaluation/predictions.parquet", file.getvalue())
    with pytest.raises(Corrupted, match="other images"):
        evaluate.evaluate(zones, run)
    assert zones.checkpoints.head(f"{run.id}/evaluation/evaluation.json") is None


def test_a_stored_file_that_answers_otherwise_stops_the_export(zones: Zones, run: TrainingRun) -> None:
    """Parity is proven with the bytes that are stored: another model's file under the key leaves no record."""
    whole = export.export(zones, run)
    other = OnnxModel(read(zones.checkpoints, whole.files["model.onnx"]))
    assert other.classes == 3
    network = export.Probabilities(export.model.build("small_resnet", 3, run.dataset.pixels)).eval()
    zones.checkpoints.delete([f"{run.id}/export/export.json"])
    zones.checkpoints.put(whole.files["model.onnx"].key, export.to_onnx(network, run.dataset.pixels))
    with pytest.raises(ExportMismatch):
        export.export(zones, run)
    assert zones.checkpoints.head(f"{run.id}/export/export.json") is None


@pytest.mark.parametrize("step", [export.export, evaluate.evaluate])
def test_altered_weights_are_found_out(zones: Zones, run: TrainingRun, step: Any) -> None:
    """A checkpoint whose bytes were changed is neither exported nor judged."""
    key = next(found.key for found in zones.checkpoints.listing(run.id) if found.key.endswith(".safetensors"))
    data = bytearray(zones.checkpoints.get(key))
    data[-5] ^= 1
    zones.checkpoints.put(key, bytes(data))
    with pytest.raises(Corrupted):
        step(zones, run)


@pytest.mark.parametrize(
    ("step", "key"), [(export.export, "export/export.json"), (evaluate.evaluate, "evaluation/evaluation.json")]
)
def test_a_record_that_cannot_be_read_is_named(zones: Zones, run: TrainingRun, step: Any, key: str) -> None:
    """A record that is not one is reported with its key and what to do."""
    zones.checkpoints.put(f"{run.id}/{key}", b"{}")
    with pytest.raises(Corrupted, match=rf"{run.id}/{key} is no .*; delete it and"):
        step(zones, run)


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real browser that refuses the network."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield running
        running.close()


def test_the_page_works_in_a_browser(zones: Zones, run: TrainingRun, browser: Any, tmp_path: Path) -> None:
    """The page loads without a request or an error, fits a phone, sorts by keyboard, and is whole without script."""
    judged = evaluate.evaluate(zones, run)
    file = tmp_path / "report.html"
    file.write_bytes(read(zones.checkpoints, judged.files["report.html"]))
    page = browser.new_page(viewport={"width": 390, "height": 844})
    heard: list[str] = []
    page.on("request", lambda request: heard.append(request.url))
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(file.as_uri())
    assert [each for each in heard if not each.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    head = page.get_by_role("button", name="Test images")
    head.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    counts = page.locator("table.sortable tbody tr td:nth-child(5)").all_inner_texts()
    assert counts == sorted(counts, key=int, reverse=True)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Test images")
    without = browser.new_context(java_script_enabled=False).new_page()
    without.goto(file.as_uri())
    assert without.get_by_role("button").count() == 0
    assert without.locator("table.sortable tbody tr").count() == 3
