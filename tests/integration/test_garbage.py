"""Garbage on a real object store: removed beside running preparations and trainings, and nothing missed afterwards."""

import itertools
import json
import random
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit

import numpy as np
import pytest
import small_training as small
import synthetic
import tiny_models
from environs import credentials
from minio import Minio
from mortal_store import KilledError, MortalStore
from typer.testing import CliRunner

from pipeline import (
    aliases,
    checkpoints,
    cli_store,
    compaction,
    dataset_versions,
    datasets,
    garbage,
    index_segments,
    packing,
    registry,
    train,
    training_runs,
    verification,
)
from pipeline.artifacts import DatasetVersion, PrepareConfig, TrainConfig, TrainingRun
from pipeline.errors import AccessDenied, Conflict, TrainingStopped
from pipeline.garbage import Sweep
from pipeline.images import encode_png
from pipeline.packing import Chunk, PackedChunk
from pipeline.prepare import Pack, prepare
from pipeline.settings import Settings
from pipeline.store import Store
from pipeline.unreferenced import Limits
from pipeline.zones import Zones

AT_ONCE = Limits(older_than=timedelta(days=-1), quarantine=timedelta(days=-1))
"""No age at all protects anything: only what is referred to, and leases, do."""
GIVEN_UP = AT_ONCE.model_copy(update={"abandoned": timedelta(days=-1)})
CONFIG = PrepareConfig(size=small.SIDE)
TRAINING = TrainConfig(epochs=2, batch_size=16, learning_rate=0.2)
CYCLES = 20


def put_pictures(zones: Zones, numbers: Iterable[int]) -> None:
    """Small grey images in three classes, another one for each number."""
    for number in numbers:
        pixels = small.pictures(np.array([number % 3]), seed=number)[0]
        zones.images.put(f"pictures/{number % 3}/{number:06d}.png", encode_png(pixels))


def swept(zones: Zones, settings: Settings, limits: Limits = AT_ONCE) -> Sweep:
    """Remove all garbage."""
    return garbage.sweep(zones, settings, limits, remove=True)


def refuse_broken(zones: Zones) -> None:
    """Everything that is complete is whole."""
    assert verification.verify(zones).broken == ()


@contextmanager
def sweeping(zones: Zones, settings: Settings) -> Iterator[Counter[str]]:
    """Remove garbage again and again, whatever its age, while the block runs; how often, and how many objects."""
    counts: Counter[str] = Counter()
    over = threading.Event()

    def sweep() -> None:
        while not over.is_set():
            counts["removed"] += len(swept(zones, settings).garbage)
            counts["sweeps"] += 1

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()


def test_beside_preparations(zones: Zones, zone_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swept all the time and without a limit, preparations end with whole versions or say that they cannot end."""
    monkeypatch.setattr(packing, "CHUNK_IMAGES", 30)
    ended = Counter[str]()
    with sweeping(zones, zone_settings) as counts:
        for number in range(0, 480, 60):
            put_pictures(zones, range(number, number + 60))
            try:
                prepare(zones, "pictures", CONFIG)
                ended["well"] += 1
            except Conflict:
                ended["with a sentence"] += 1
            for version in zones.datasets.folders("pictures"):
                if zones.datasets.head(f"pictures/{version}/manifest.json"):
                    datasets.load_split(zones.datasets, datasets.find(zones.datasets, "pictures", version), "train")
    print(ended, counts)  # noqa: T201 - to judge the moments
    assert counts["sweeps"] > 0
    prepare(zones, "pictures", CONFIG)
    refuse_broken(zones)
    swept(zones, zone_settings)
    refuse_broken(zones)
    assert swept(zones, zone_settings).garbage == ()


def test_what_is_removed_before_the_manifest_is_packed_again(zones: Zones, zone_settings: Settings) -> None:
    """When everything that was packed is removed before it is named, the preparation notices, and begins again."""
    put_pictures(zones, range(60))
    attempts = []

    def robbed(pack: Pack, chunks: Iterable[Chunk]) -> list[PackedChunk]:
        packed = [pack(chunk) for chunk in chunks]
        attempts.append(len(swept(zones, zone_settings).garbage) if not attempts else 0)
        return packed

    result = prepare(zones, "pictures", CONFIG, map_chunks=robbed)
    assert attempts[0] > 0
    assert len(attempts) == 2
    assert result.images == 60
    refuse_broken(zones)


class SweptStore(Store):
    """A datasets zone in which garbage is removed, by somebody else, at the very moment a manifest is written."""

    def __init__(self, store: Store, settings: Settings, zones: Zones) -> None:
        super().__init__(store._backend, store.url, patience=store._patience)  # noqa: SLF001 - the same zone, seen by another process
        self.sweeper = threading.Thread(target=swept, args=(zones, settings))

    def write_once(self, key: str, data: bytes) -> bytes:
        """Write, while garbage is being removed."""
        if key.endswith("/manifest.json"):
            self.sweeper.start()
            self.sweeper.join(1.0)
            assert self.sweeper.is_alive(), "it must wait for the dataset's lease"
        return super().write_once(key, data)


def test_at_the_moment_of_the_manifest(zones: Zones, zone_settings: Settings) -> None:
    """Garbage is looked for once the manifest is there: the parts that it names are none."""
    put_pictures(zones, range(60))
    store = SweptStore(zones.datasets, zone_settings, zones)
    prepare(replace(zones, datasets=store), "pictures", CONFIG)
    store.sweeper.join()
    refuse_broken(zones)


def test_beside_a_training_that_is_stopped_and_resumed(zones: Zones, zone_settings: Settings) -> None:
    """With garbage removed all the time, a run is stopped, resumed and finished as if nothing had happened."""
    put_pictures(zones, range(120))
    dataset = prepare(zones, "pictures", CONFIG).version
    elsewhere = replace(zones, checkpoints=synthetic.memory_store())
    expected = train.train(elsewhere, dataset, TRAINING, device="cpu")
    asked = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 5

    with sweeping(zones, zone_settings) as counts:
        with pytest.raises(TrainingStopped):
            train.train(zones, dataset, TRAINING, device="cpu", save_every_s=0, should_stop=should_stop)
        run = train.train(zones, dataset, TRAINING, device="cpu", save_every_s=0)
    assert counts["sweeps"] > 0
    swept(zones, zone_settings)
    kept = {found.key.rpartition("/")[0] for found in zones.checkpoints.listing(f"{run.id}/checkpoints")}
    assert kept == {run.checkpoint.rpartition("/")[0]}
    assert zones.checkpoints.head(training_runs.lease_key(run.id)) is None
    both = [checkpoints.load_weights(each.checkpoints, it) for each, it in ((zones, run), (elsewhere, expected))]
    assert small.equal(*both)
    refuse_broken(zones)


def a_cycle(zones: Zones, settings: Settings, rng: random.Random, cycle: int) -> tuple[DatasetVersion, TrainingRun]:
    """Images change; preparation, training and registration are killed and repeated; only the newest versions stay."""
    zones.images.delete([found.key for found in zones.images.listing("pictures")][:20])
    put_pictures(zones, range(60 + 20 * cycle, 80 + 20 * cycle))
    with suppress(KilledError):
        prepare(replace(zones, datasets=MortalStore(zones.datasets, rng.randrange(12))), "pictures", CONFIG)
    swept(zones, settings, Limits())  # nothing is old: what was left may still be used
    dataset = prepare(zones, "pictures", CONFIG).version
    with suppress(KilledError):
        mortal = replace(zones, checkpoints=MortalStore(zones.checkpoints, rng.randrange(12)))
        train.train(mortal, dataset, TRAINING, device="cpu", save_every_s=0, lease_ttl_s=0.3)
    run = train.train(zones, dataset, TRAINING, device="cpu", save_every_s=0, lease_ttl_s=0.3)
    with suppress(KilledError):
        mortal_models = MortalStore(zones.models, rng.randrange(8))
        tiny_models.register(synthetic.memory_store(), mortal_models, "shapes", 2 * cycle)
    version = tiny_models.register(synthetic.memory_store(), zones.models, "shapes", 2 * cycle + 1)
    aliases.set_alias(zones.models, "shapes", aliases.CHAMPION, version.version, reason="newest")
    forget_all_but(zones, dataset, run, version.version)
    return dataset, run


def forget_all_but(zones: Zones, dataset: DatasetVersion, run: TrainingRun, version: str) -> None:
    """What a person deletes to be rid of old versions: their manifests, and the results of old training runs."""
    kept = (dataset.version, run.id, version)
    for store in (zones.datasets, zones.checkpoints, zones.models):
        keys = [found.key for found in store.listing() if found.key.endswith(("/manifest.json", "/result.json"))]
        store.delete([key for key in keys if not set(kept) & set(key.split("/"))])


def test_nothing_is_left_behind_for_ever(
    zones: Zones, zone_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over cycles of changing, killing, repeating and sweeping, the number of stored objects does not grow."""
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")  # noqa: T201 - to repeat a failure
    rng = random.Random(seed)
    for module in (dataset_versions, registry):
        monkeypatch.setattr(module, "LEASE_TTL_S", 0.3)
    monkeypatch.setattr(garbage, "TTL_S", 0.3)
    monkeypatch.setattr(packing, "CHUNK_IMAGES", 10)
    monkeypatch.setattr(compaction, "COPIED_SHARE", 10.0)
    monkeypatch.setattr(index_segments, "MERGED_SHARE", 10.0)
    put_pictures(zones, range(60))
    counts, removed = [], 0
    for cycle in range(CYCLES):
        dataset, run = a_cycle(zones, zone_settings, rng, cycle)
        removed += len(swept(zones, zone_settings, GIVEN_UP).garbage)
        stores = (zones.datasets, zones.checkpoints, zones.models)
        counts.append(sum(1 for store in stores for _ in store.listing()))
        refuse_broken(zones)
        assert datasets.latest(zones.datasets, "pictures") == dataset
        assert checkpoints.load_weights(zones.checkpoints, run)
    print(f"objects after each cycle: {counts}; removed: {removed}")  # noqa: T201 - the figure itself
    assert swept(zones, zone_settings, GIVEN_UP).garbage == ()
    # Shards come and go with merging; each cycle alone would leave about twenty objects behind.
    assert max(counts[CYCLES // 2 :]) <= max(counts[: CYCLES // 2]) + 5


class BreakingStore(Store):
    """A zone that refuses one deletion, after so many others."""

    def __init__(self, store: Store, deletions: int) -> None:
        super().__init__(store._backend, store.url, patience=store._patience)  # noqa: SLF001 - the same zone, seen through a bad connection
        self.left = deletions

    def delete(self, keys: Iterable[str]) -> None:
        """Delete, or refuse."""
        for key in keys:
            self.left -= 1
            if self.left == -1:
                raise AccessDenied("not this one")
            super().delete([key])


def test_a_removal_that_breaks_off_keeps_the_fence(zones: Zones, zone_settings: Settings) -> None:
    """While a checkpoint of an abandoned run is left its lease is too, so that a successor's checkpoints are newer."""
    put_pictures(zones, range(60))
    dataset = prepare(zones, "pictures", CONFIG).version
    with pytest.raises(TrainingStopped):
        train.train(zones, dataset, TRAINING, device="cpu", save_every_s=0, should_stop=Countdown(3))
    broken_off = 0
    for deletions in itertools.count():
        with suppress(AccessDenied):
            swept(replace(zones, checkpoints=BreakingStore(zones.checkpoints, deletions)), zone_settings, GIVEN_UP)
        folders = [each.key.split("/") for each in zones.checkpoints.listing()]
        left = [rest[0] for run, *rest in folders if garbage.RUN.fullmatch(run)]
        if not left:
            break
        broken_off += "checkpoints" in left
        assert "checkpoints" not in left or "lease.json" in left
    assert broken_off > 1


class Countdown:
    """A wish to stop that comes after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        """Whether it is time."""
        self.left -= 1
        return self.left < 0


def test_unfinished_uploads_are_given_up(zones: Zones, zone_settings: Settings) -> None:
    """An upload in parts that nobody finished is listed and given up, one of another prefix is not touched."""
    url = urlsplit(zone_settings.s3_endpoint or "")
    client = Minio(url.netloc, *credentials(zone_settings), secure=False, region="us-east-1")
    zone = urlsplit(zone_settings.zone_url("images"))
    ours, foreign = f"{zone.path.strip('/')}/pictures/0/große datei.png", f"foreign-{secrets.token_hex(4)}/x"
    for name in (ours, foreign):
        client._create_multipart_upload(zone.netloc, name, {})  # noqa: SLF001 - as another program would
    assert swept(zones, zone_settings, Limits()).garbage == ()
    found = swept(zones, zone_settings).garbage
    assert [(each.zone, each.kind, each.key) for each in found] == [
        ("images", "unfinished uploads", "pictures/0/große datei.png")
    ]
    left = client._list_multipart_uploads(zone.netloc, prefix=foreign)  # noqa: SLF001
    assert [each.object_name for each in left.uploads] == [foreign]
    assert swept(zones, zone_settings).garbage == ()


def test_the_command_lists_first_and_removes_when_told(
    zones: Zones, zone_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``safelight store gc`` is a listing; ``--delete`` removes; what is younger than a day is neither."""
    synthetic.put_classes(zones, "cats", 12)
    prepare(zones, "cats", PrepareConfig())
    lost = f"cats/shards/{'0' * 64}.safetensors"
    zones.datasets.put(lost, b"x" * 100)
    monkeypatch.setattr(cli_store, "open_all", lambda: (zone_settings, zones))
    young = CliRunner().invoke(cli_store.app, ["gc", "--json"])
    assert json.loads(young.stdout)["garbage"] == []
    tomorrow = garbage.store_time(zones.datasets) + timedelta(days=2)
    monkeypatch.setattr(garbage, "store_time", lambda _: tomorrow)
    listed = CliRunner().invoke(cli_store.app, ["gc"])
    assert "100 bytes  shards that no version names" in listed.stdout
    assert zones.datasets.head(lost)
    removed = CliRunner().invoke(cli_store.app, ["gc", "--delete", "--json"])
    assert [each["key"] for each in json.loads(removed.stdout)["garbage"]] == [lost]
    assert zones.datasets.head(lost) is None
    refuse_broken(zones)


def test_the_command_removes_predictions_of_days_that_are_kept_no_more(
    zones: Zones, zone_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the day in the key and the setting; what else lies in the zone, and younger days, stay."""
    now = garbage.store_time(zones.models)
    days = [(now - timedelta(days=age)).date() for age in (0, 7, 8, 400)]
    keys = [f"shapes/date={day}/replica-1-{number}.parquet" for number, day in enumerate(days)]
    for key in (*keys, "shapes/notes.txt"):
        zones.predictions.put(key, b"rows")
    for kept_days, gone in ((0, []), (7, keys[2:])):
        settings = zone_settings.model_copy(update={"predictions_retention_days": kept_days})
        monkeypatch.setattr(cli_store, "open_all", lambda settings=settings: (settings, zones))
        removed = CliRunner().invoke(cli_store.app, ["gc", "--delete", "--json"])
        found = [each for each in json.loads(removed.stdout)["garbage"] if each["zone"] == "predictions"]
        assert sorted(each["key"] for each in found) == sorted(gone)
    assert [each.key for each in zones.predictions.listing("shapes")] == sorted([*keys[:2], "shapes/notes.txt"])
