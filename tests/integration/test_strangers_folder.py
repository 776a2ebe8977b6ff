"""A stranger's folder, as wild as people's folders are, on the whole route from an import to a served answer."""

import json
import os
import struct
import unicodedata
import zlib
from io import BytesIO
from pathlib import Path

import live_server
import numpy as np
import pytest
from PIL import Image

from pipeline import evaluate, export, prepare, promote, quarantine, registry, sources, train
from pipeline.artifacts import GateConfig, PrepareConfig, TrainConfig
from pipeline.zones import Zones

ODD_CLASSES = (
    "labels.csv",
    "<script>alert(1)<",
    "#%+?&=;",
    "-dash",
    'it\'s "q"',
    "日本",
    "🍎 apple",
    "Cat",
    "cat",
    unicodedata.normalize("NFD", "naïve"),
    "x" * 200,
)
CLASSES = (*ODD_CLASSES, *(f"class {number}" for number in range(20)))
PER_CLASS = 8
FORMATS = (
    ("png", "PNG", "RGBA"),
    ("JPG", "JPEG", "RGB"),
    ("webp", "WEBP", "RGB"),
    ("bmp", "BMP", "L"),
    ("TIFF", "TIFF", "RGB"),
    ("gif", "GIF", "P"),
    ("jpeg", "JPEG", "CMYK"),
    ("png", "PNG", "LA"),
)
BAD = {
    "empty.png": "empty file",
    "text.jpg": "not an image of a supported format",
    "cut.png": "truncated PNG",
    "photo.heic": "HEIC is not supported",
    "renamed.jpg": "HEIC is not supported",
    "bomb.png": "20000 x 20000 pixels",
    "both.png": "conflicting labels",
}


def picture(number: int, suffix: str, form: str, mode: str, folder: Path) -> None:
    """One image of noise in a class of its own brightness; another number is another image."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(20, 90, 2)
    level = 190 * (number // PER_CLASS) // len(CLASSES)
    pixels = rng.integers(level, level + 60, (height, width, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x112] = 1 + number % 8
    below = folder / ("a b/é" if number % 3 else "")
    below.mkdir(parents=True, exist_ok=True)
    options = {"exif": exif} if form == "JPEG" else {}
    Image.fromarray(pixels).convert(mode).save(below / f"{number} ü%.{suffix}", form, **options)


def bomb(side: int) -> bytes:
    """A PNG of ``side`` by ``side`` black pixels in little space."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def huge_tiff(path: Path, size: int) -> None:
    """A TIFF's first bytes in a sparse file."""
    with path.open("wb") as file:
        file.write(b"II*\0\x08\0\0\0")
        file.truncate(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """31 odd classes, links, and all that does not belong."""
    root = tmp_path / "My Photos (2024)"
    for index, label in enumerate(CLASSES):
        for number, form in enumerate(FORMATS):
            picture(index * PER_CLASS + number, *form, root / label)
    first = root / CLASSES[-1]
    one = BytesIO()
    Image.new("RGB", (30, 30), "red").save(one, "PNG")
    (first / "both.png").write_bytes(one.getvalue())
    (root / CLASSES[-2] / "both.png").write_bytes(one.getvalue())
    (first / "empty.png").touch()
    (first / "text.jpg").write_text("no image")
    (first / "cut.png").write_bytes(one.getvalue()[:60])
    for name in ("photo.heic", "renamed.jpg"):
        (first / name).write_bytes(b"\0\0\0\x18ftypheic" + os.fsencode(name) * 20)
    (first / "bomb.png").write_bytes(bomb(20_000))
    huge_tiff(first / "huge.tif", 200 << 20)
    for name in (".DS_Store", "Thumbs.db", "._1.png", "notes.txt"):
        (first / name).write_bytes(b"x")
    picture(10_000, *FORMATS[0], tmp_path / "elsewhere")
    (first / "linked").symlink_to(tmp_path / "elsewhere")
    (first / "linked file.png").symlink_to(next((tmp_path / "elsewhere").rglob("*.png")))
    (first / "broken.png").symlink_to("nowhere.png")
    (first / "round").symlink_to("..")
    (root / "no images").mkdir()
    (root / "loose.png").write_bytes(one.getvalue())
    return root


def test_a_strangers_folder_goes_through(zones: Zones, folder: Path) -> None:
    """Every file is accounted for, every bad image is listed with its reason, and a server answers with the classes."""
    name = sources.dataset_name(folder)
    assert name == "my-photos-2024"
    imported = sources.import_folder(zones, folder, name, exact=True)
    good = len(CLASSES) * PER_CLASS
    assert imported.uploaded == good + 2 + len(BAD) + 1
    assert imported.skipped == {
        "hidden or system file": 3,
        "not an image by its name": 1,
        sources.TOO_LARGE: 1,
        "broken link": 1,
        "link to a folder that it lies in": 1,
        "in no class folder": 1,
    }
    assert imported.found == imported.uploaded + sum(imported.skipped.values())
    for named in ("huge.tif", "broken.png", "round", "loose.png", "'no images'", "Cat, cat"):
        assert any(named in note for note in imported.notes), named

    config = PrepareConfig(size=16)
    prepared = prepare.prepare(zones, name, config)
    expected = {unicodedata.normalize("NFC", label).replace("\\", "%5C") for label in CLASSES}
    assert set(prepared.version.classes) == expected
    assert (prepared.images, prepared.duplicates, prepared.quarantined) == (good + 1, 1, len(BAD) + 1)
    lines = quarantine.read(zones.datasets, str(prepared.quarantine))
    assert {line["key"].rpartition("/")[2] for line in lines} == set(BAD)
    for line in lines:
        assert line["reason"].startswith(BAD[line["key"].rpartition("/")[2]]), line

    again = sources.import_folder(zones, folder, name, exact=True)
    assert (again.uploaded, again.already_there) == (0, imported.uploaded)
    same = prepare.prepare(zones, name, config)
    assert (same.version, same.new, same.read, same.decoded) == (prepared.version, False, 0, 0)

    run = train.train(zones, prepared.version, TrainConfig(epochs=2, batch_size=32), device="cpu")
    version = registry.register(
        zones.checkpoints, zones.models, name, export.export(zones, run), evaluate.evaluate(zones, run, device="cpu")
    )
    assert promote.promote(zones, version, GateConfig(minimum_accuracy=0)).promoted
    models = live_server.Registry(zones.checkpoints, zones.models)
    page = f"/v2/models/{name}/versions/{version.version}/report"
    with live_server.serving(models, {"model": name, "top_k": len(CLASSES)}) as client:
        live_server.wait_until(lambda: client.get("/v2/health/ready").is_success)
        for image in sorted((folder / CLASSES[1]).rglob("*"))[:4]:
            if image.is_file():
                answer = client.post("/predict", content=image.read_bytes())
                assert answer.status_code == 200, answer.text
                assert {guess["label"] for guess in answer.json()["top"]} == expected
        for bad in ("empty.png", "text.jpg", "photo.heic", "bomb.png"):
            refused = client.post("/predict", content=(folder / CLASSES[-1] / bad).read_bytes())
            assert 400 <= refused.status_code < 500, json.dumps(refused.json())
        assert "<script>alert" not in client.get(page).text


def test_what_leaves_or_moves_in_the_folder_does_so_in_the_dataset(zones: Zones, folder: Path) -> None:
    """A removed class is gone and a moved image has its new label in the next version, and nothing is decoded."""
    sources.import_folder(zones, folder, "photos", exact=True)
    before = prepare.prepare(zones, "photos", PrepareConfig(size=16))
    gone = folder / CLASSES[-3]
    for path in sorted(gone.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    moved = next(path for path in (folder / CLASSES[-4]).rglob("*") if path.is_file())
    moved.rename(folder / CLASSES[-5] / "moved.png")
    imported = sources.import_folder(zones, folder, "photos", exact=True)
    assert imported.uploaded == 1
    assert any(note.startswith(f"{PER_CLASS + 1} stored images are not in") for note in imported.notes)
    after = prepare.prepare(zones, "photos", PrepareConfig(size=16))
    assert set(after.version.classes) == set(before.version.classes) - {CLASSES[-3]}
    assert (after.images, after.read, after.decoded) == (before.images - PER_CLASS, 1, 0)
    assert after.reasons == before.reasons
