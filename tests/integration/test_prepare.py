"""Preparation on a real S3 server: what it costs, what it survives, and the folder of a stranger."""

import hashlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import synthetic
from counting_proxy import Counts, counting
from environs import environ
from PIL import Image

from pipeline import datasets, images, packing
from pipeline.artifacts import DatasetVersion, PrepareConfig, Split
from pipeline.errors import Corrupted, DatasetRejected
from pipeline.packing import Chunk, PackedChunk
from pipeline.prepare import Pack, PrepareResult, prepare
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

CONFIG = PrepareConfig()
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

PREPARE = """
import os, sys
from pipeline import packing
from pipeline.artifacts import PrepareConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.zones import open_zones

packing.CHUNK_IMAGES = 200
zones = open_zones(Settings.from_environ(os.environ))
print("ready", flush=True)
prepare(zones, "cats", PrepareConfig())
"""


def put_many(zones: Zones, numbers: Iterable[int], dataset: str = "cats", classes: int = 3) -> None:
    """Put small grey images, several at a time."""
    named = ((f"{dataset}/class-{number % classes:03d}/{number:06d}.png", synthetic.png(number)) for number in numbers)
    for _ in zones.images.write_many(named):
        pass


def content(zones: Zones, version: DatasetVersion) -> list[bytes]:
    """All that training sees of a version, every shard and digest verified by the loader."""
    loaded = [datasets.load_split(zones.datasets, version, split) for split in SPLITS]
    assert [len(each.labels) for each in loaded] == [version.counts[split] for split in SPLITS]
    return [array.tobytes() for each in loaded for array in (each.digests, each.labels, each.pixels)]


def from_scratch(zones: Zones, dataset: str = "cats") -> tuple[Zones, DatasetVersion]:
    """The same raw images, prepared in this process's memory."""
    fresh = synthetic.memory_zones()
    for found, data in zones.images.read_many(zones.images.listing(dataset)):
        fresh.images.put(found.key, data or b"")
    return fresh, prepare(fresh, dataset, CONFIG).version


@pytest.fixture
def counted(zone_settings: Settings, zones: Zones) -> Iterator[tuple[Zones, Counts]]:
    """The same zones, reached through a proxy that counts."""
    del zones
    with counting(zone_settings.s3_endpoint or "") as (url, counts):
        yield open_zones(zone_settings.model_copy(update={"s3_endpoint": url})), counts


def test_an_addition_costs_what_it_adds(zones: Zones, counted: tuple[Zones, Counts], tmp_path: Path) -> None:
    """Each of 21 additions of 1 % reads, decodes and writes at most 1.5 % of images and bytes, as the store sees it."""
    through, counts = counted
    total = 1500
    put_many(zones, range(total))
    prepare(through, "cats", CONFIG, cache=tmp_path)
    for _ in range(21):
        added = total // 100
        put_many(zones, range(total, total + added))
        total += added
        counts.clear()
        result = prepare(through, "cats", CONFIG, cache=tmp_path)
        raw_bytes = sum(found.size for found in zones.images.listing("cats"))
        packed_bytes = total * (28 * 28 + 32)
        assert result.images == total
        assert result.decoded == added
        # One request more: is there a labels.csv?
        assert counts.requests["GET", "images"] == added + 1
        assert counts.bytes["GET", "images"] + counts.bytes["GET", "datasets"] <= 0.015 * raw_bytes
        assert counts.bytes["PUT", "datasets"] <= 0.015 * packed_bytes
    assert content(zones, result.version) == content(*from_scratch(zones))


def test_no_change_writes_nothing(zones: Zones, counted: tuple[Zones, Counts], tmp_path: Path) -> None:
    """Prepared again, no image is read and nothing is sent, with quarantined images too."""
    through, counts = counted
    put_many(zones, range(60))
    zones.images.put("cats/class-000/broken.png", b"x")
    prepare(through, "cats", CONFIG, cache=tmp_path)
    counts.clear()
    assert not prepare(through, "cats", CONFIG, cache=tmp_path).new
    assert counts.requests["GET", "images"] == 1
    assert not {operation for operation, _ in counts.requests} & {"PUT", "POST", "DELETE"}


def test_deleting_moving_and_relabelling_decode_nothing(zones: Zones, counted: tuple[Zones, Counts]) -> None:
    """A deletion and a new label read no image; a moved image is read but not decoded."""
    through, counts = counted
    put_many(zones, range(90))
    prepare(through, "cats", CONFIG)

    def after(change: str) -> tuple[str, int, int]:
        counts.clear()
        result = prepare(through, "cats", CONFIG)
        assert result.new
        return change, counts.requests["GET", "images"] - 1, result.decoded

    zones.images.delete(["cats/class-000/000003.png"])
    assert after("deleted") == ("deleted", 0, 0)
    zones.images.put("cats/class-001/moved.png", zones.images.get("cats/class-000/000006.png"))
    zones.images.delete(["cats/class-000/000006.png"])
    assert after("moved to another class") == ("moved to another class", 1, 0)
    keys = [found.key.removeprefix("cats/") for found in zones.images.listing("cats")]
    rows = [f"{key},{key.split('/')[0]}" for key in keys[1:]]
    zones.images.put("cats/labels.csv", "\n".join(["key,label", f"{keys[0]},class-002", *rows]).encode())
    assert after("relabelled") == ("relabelled", 0, 0)


def test_five_hundred_small_classes(zones: Zones) -> None:
    """500 classes of three images each all have training and test images."""
    put_many(zones, range(1500), classes=500)
    version = prepare(zones, "cats", CONFIG).version
    assert len(version.classes) == 500
    for split in ("train", "test"):
        labels = datasets.load_split(zones.datasets, version, split).labels
        assert len(np.unique(labels)) == 500


def test_a_stranger_s_folder(zones: Zones) -> None:
    """Formats, modes, sizes, rotations and names of all kinds are packed as the one decode path reads them."""
    rng = np.random.default_rng(7)
    made: dict[str, bytes] = {}
    for number in range(48):
        mode, kind = [
            ("L", "PNG"),
            ("RGB", "JPEG"),
            ("RGBA", "WEBP"),
            ("P", "GIF"),
            ("CMYK", "TIFF"),
            ("RGB", "BMP"),
            ("I;16", "PNG"),
            ("LA", "PNG"),
        ][number % 8]
        height, width = (int(side) for side in rng.integers(3, 300, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        file = io.BytesIO()
        picture.save(file, kind, **({"exif": exif} if kind in {"JPEG", "WEBP"} else {}))
        folder = ("Größe Ähren", "日本/tief/er", "a..%2E odd+&=?")[number % 3]
        made[f"cats/{folder}/Bild {number} é.{kind if number % 2 else kind.lower()}"] = file.getvalue()
    bad = {
        "cats/日本/bomb.png": synthetic.png(1, 4, 4).replace((4).to_bytes(4) * 2, (20_000).to_bytes(4) * 2),
        "cats/日本/phone.HEIC": b"\0\0\0\x18ftypheic" + bytes(64),
        "cats/日本/cut.jpg": next(data for key, data in made.items() if key.lower().endswith("jpeg"))[:-200],
    }
    for key, data in (made | bad).items():
        zones.images.put(key, data)
    result = prepare(zones, "cats", CONFIG)
    assert result.images == len(made)
    assert result.quarantined == len(bad)
    assert (result.version.pixels.height, result.version.pixels.channels) == (64, 3)
    expected = {hashlib.sha256(data).digest(): images.decode(data, result.version.pixels) for data in made.values()}
    for split in SPLITS:
        loaded = datasets.load_split(zones.datasets, result.version, split)
        for digest, pixels in zip(loaded.digests, loaded.pixels, strict=True):
            assert np.array_equal(pixels, expected[digest.tobytes()])


def test_a_failed_run_says_where_the_list_is(zones: Zones) -> None:
    """When a class is nearly all damaged, nothing is made, and the list of damaged images is stored all the same."""
    put_many(zones, range(60))
    for number in range(30):
        zones.images.put(f"cats/rotten/{number}.png", b"x" if number % 3 else synthetic.png(1000 + number))
    with pytest.raises(
        DatasetRejected, match=r"class 'rotten' \(20 of 30.*quarantine/[0-9a-f]{16}\.jsonl\.$"
    ) as raised:
        prepare(zones, "cats", CONFIG)
    (listed,) = zones.datasets.listing("cats/quarantine")
    assert f"{zones.datasets.url}/{listed.key}" in str(raised.value)
    lines = [json.loads(line) for line in zones.datasets.get(listed.key).splitlines()]
    etags = {found.key: found.etag for found in zones.images.listing("cats/rotten")}
    assert len(lines) == 20
    assert all(line["etag"] == etags[line["key"]] and line["size"] == 1 and line["reason"] for line in lines)
    assert not [found for found in zones.datasets.listing("cats") if "manifest" in found.key]


def test_objects_that_vanish_or_change_meanwhile(zones: Zones) -> None:
    """What is deleted after the listing is left out; what is replaced counts as it was read, and is read once more."""
    put_many(zones, range(60))
    keys = [found.key for found in zones.images.listing("cats")]

    def meanwhile(pack: Pack, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
        for chunk in chunks:
            zones.images.delete(keys[:2])
            zones.images.put(keys[2], synthetic.png(5000))
            yield pack(chunk)

    result = prepare(zones, "cats", CONFIG, map_chunks=meanwhile)
    assert (result.images, result.quarantined) == (58, 2)
    assert content(zones, result.version) == content(*from_scratch(zones))
    again = prepare(zones, "cats", CONFIG)
    assert (again.version, again.read) == (result.version, 1)
    assert prepare(zones, "cats", CONFIG).read == 0


def test_an_altered_shard_is_corrupted(zones: Zones) -> None:
    """A shard whose bytes were changed in the store is named by the loader."""
    put_many(zones, range(60))
    version = prepare(zones, "cats", CONFIG).version
    (shard,) = zones.datasets.listing("cats/shards")
    data = bytearray(zones.datasets.get(shard.key))
    data[len(data) // 2] ^= 1
    zones.datasets.put(shard.key, bytes(data))
    with pytest.raises(Corrupted, match=shard.key):
        datasets.load_split(zones.datasets, version, "train")


def test_preparations_at_once(zones: Zones, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several preparations of the same images, packed in different orders, all end well with one version."""
    monkeypatch.setattr(packing, "CHUNK_IMAGES", 40)
    put_many(zones, range(240))

    def shuffled(seed: int) -> PrepareResult:
        def mapped(pack: Pack, chunks: Iterable[Chunk]) -> Iterator[PackedChunk]:
            order = list(chunks)
            random.Random(seed).shuffle(order)
            return map(pack, order)

        return prepare(zones, "cats", CONFIG, map_chunks=mapped)

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(shuffled, range(5)))
    assert len({result.version.version for result in results}) == 1
    assert any(result.new for result in results)
    assert len([found for found in zones.datasets.listing("cats") if found.key.endswith("manifest.json")]) == 1
    assert content(zones, datasets.latest(zones.datasets, "cats")) == content(*from_scratch(zones))


def test_preparations_of_a_growing_dataset(zones: Zones) -> None:
    """While images keep arriving, preparations at once end with versions that all load, the latest among them."""
    put_many(zones, range(200))

    def after_adding(number: int) -> DatasetVersion:
        put_many(zones, range(1000 * number, 1000 * number + 50))
        return prepare(zones, "cats", CONFIG).version

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(after_adding, range(1, 9)))
    for version in versions:
        content(zones, version)
    assert datasets.latest(zones.datasets, "cats") in versions
    assert content(zones, prepare(zones, "cats", CONFIG).version) == content(*from_scratch(zones))


def test_a_killed_preparation_leaves_nothing_broken(zones: Zones, zone_settings: Settings) -> None:
    """Killed at any moment, it leaves complete versions only, and the next one ends with what a first one makes."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - to repeat a failure
    rng = random.Random(seed)
    number, finished = 0, 0
    for _ in range(10):
        put_many(zones, range(number, number + 600))
        number += 600
        zones.images.delete([f"cats/class-{each % 3:03d}/{each:06d}.png" for each in rng.sample(range(number), 20)])
        finished += _prepare_and_kill(zone_settings, rng.uniform(0.0, 1.2))
        manifests = [found.key for found in zones.datasets.listing("cats") if found.key.endswith("manifest.json")]
        for key in manifests:
            content(zones, datasets.find(zones.datasets, "cats", key.split("/")[1]))
        if manifests and zones.datasets.head("cats/latest.json"):
            datasets.latest(zones.datasets, "cats")
    print(f"{finished} of 10 had finished")  # noqa: T201 - to judge the moments
    version = prepare(zones, "cats", CONFIG).version
    assert content(zones, version) == content(*from_scratch(zones))
    assert not list(zones.datasets.listing("cats/work"))


def _prepare_and_kill(settings: Settings, seconds: float) -> bool:
    """Prepare in another process, killed after ``seconds``; whether it had finished."""
    command, told = [sys.executable, "-c", PREPARE], environ(settings)
    with subprocess.Popen(command, env=told, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return False
