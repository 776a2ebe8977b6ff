"""What a copy of a store holds, however much others write while it is made, and wherever it breaks off."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import synthetic
import tiny_models
import torch
from obstore.store import MemoryStore

from pipeline import aliases, backup, checkpoints, store_check
from pipeline.artifacts import PrepareConfig
from pipeline.checkpoints import Checkpoint, Position
from pipeline.errors import InvalidInput
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.settings import Settings, Zone
from pipeline.store import Store, StoredObject, open_store
from pipeline.verification import verify
from pipeline.zones import Zones

NAME = "pets"
CONFIG = PrepareConfig(size=12)
RUN = "0123456789abcdef"
NOTHING = Settings(store_patience_s=0)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


class Others:
    """Who goes on working: each step changes what is newest."""

    def __init__(self, zones: Zones, seed: int) -> None:
        self.zones, self.chance, self.number = zones, random.Random(seed), 0

    def step(self) -> None:
        """More images in a new version; a model version that goes live; a checkpoint, and older ones removed."""
        self.number += 1
        self.chance.choice([self.prepare, self.promote, self.save])()

    def prepare(self) -> None:
        """Another dataset version, and one raw image less."""
        synthetic.put_classes(self.zones, NAME, 4, start=12 * self.number)
        self.zones.images.delete([f"{NAME}/class-000/{12 * self.number:06d}.png"])
        prepare(self.zones, NAME, CONFIG)

    def promote(self) -> None:
        """Another version, live at once."""
        version = tiny_models.register(self.zones.checkpoints, self.zones.models, NAME, self.number)
        aliases.set_alias(self.zones.models, NAME, aliases.CHAMPION, version.version, reason="newer")

    def save(self) -> None:
        """Another checkpoint of a run; only the newest two and the best stay."""
        position = Position(step=self.number, best=checkpoints.manifest_key(RUN, 1, self.number))
        made = Checkpoint(run=RUN, fence=1, position=position, settings={}, environment={})
        tensors = {"weights": {"layer": torch.full((3,), float(self.number))}}
        key = checkpoints.save(self.zones.checkpoints, made, tensors, may_write=lambda: None)
        checkpoints.prune(self.zones.checkpoints, RUN, newest=key, best=key)


class Busy(Store):
    """A zone in which others work between any two objects that are listed or read."""

    meanwhile: Callable[[], None]

    def listing(self, prefix: str = "", *, after: str | None = None) -> Iterator[StoredObject]:
        """One object at a time, as pages come."""
        for found in super().listing(prefix, after=after):
            yield found
            self.meanwhile()

    def read_many(self, objects: Iterable[StoredObject]) -> Iterator[tuple[StoredObject, bytes | None]]:
        """One object after the other, as it is at that moment."""
        for each in objects:
            self.meanwhile()
            yield each, self.get_if_present(each.key)


def busy(backends: dict[Zone, MemoryStore], meanwhile: Callable[[], None]) -> Zones:
    """Zones in which others work."""
    made = {zone: Busy(backend, f"memory://{zone}") for zone, backend in backends.items()}
    for zone in made.values():
        zone.meanwhile = meanwhile
    return Zones(**made)


def in_folder(url: str) -> Zones:
    """The zones of a copy, to be looked at."""
    return Zones(**{zone: open_store(f"{url}/{zone}", NOTHING) for zone in backup.ORDER})


def url_of(folder: Path) -> str:
    """Of a folder that is not there yet."""
    return f"file://{folder}/copy"


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_made_while_others_write_is_whole(tmp_path: Path, seed: int) -> None:
    """Datasets grow, models go live, checkpoints come and go: what the copy holds finds in it all that it names."""
    backends = {zone: MemoryStore() for zone in backup.ORDER}
    zones = Zones(**{zone: Store(backend, f"memory://{zone}") for zone, backend in backends.items()})
    others = Others(zones, seed)
    for work in (others.prepare, others.promote, others.save):
        others.number += 1
        work()
    steps = iter(range(40))

    def meanwhile() -> None:
        if others.chance.random() < 0.2 and next(steps, None) is not None:
            others.step()

    backup.back_up(busy(backends, meanwhile), NOTHING, url_of(tmp_path))
    found = verify(in_folder(url_of(tmp_path)))
    assert found.broken == (), f"seed {seed}"
    assert found.counts["aliases"] == 1
    assert found.counts["dataset versions"] >= 1
    assert next(steps, 40) > 10, "others did too little"


def test_broken_off_anywhere_it_is_whole_and_goes_on(tmp_path: Path) -> None:
    """After any number of objects the copy names nothing that it lacks, nothing is restored; the next completes it."""
    zones = stored()
    url = url_of(tmp_path)

    def ends_after(objects: int) -> Callable[[Progress], None]:
        def told(progress: Progress) -> None:
            if progress.done >= objects:
                raise KeyboardInterrupt

        return told

    total = len([each for zone in backup.ORDER for each in getattr(zones, zone).listing()])
    for objects in range(1, total):
        with pytest.raises(KeyboardInterrupt):
            backup.back_up(zones, NOTHING, url, on_progress=ends_after(objects))
        assert verify(in_folder(url)).broken == ()
        with pytest.raises(InvalidInput, match="holds no complete copy"):
            backup.restore(url, NOTHING, synthetic.memory_zones())
    done = backup.back_up(zones, NOTHING, url)
    assert sum(done.copied.values()) == total
    assert contents(in_folder(url)) == contents(zones)
    assert checkpoints.newest(in_folder(url).checkpoints, RUN)


def stored() -> Zones:
    """Zones with a dataset, a live model, a checkpoint and a logged prediction."""
    zones = synthetic.memory_zones()
    others = Others(zones, 0)
    for work in (others.prepare, others.promote, others.save):
        others.number += 1
        work()
    zones.predictions.put("pets/date=2026-11-22/one.parquet", b"rows")
    return zones


def contents(zones: Zones) -> dict[str, bytes]:
    """Every object of all zones."""
    found = {}
    for zone in backup.ORDER:
        store: Store = getattr(zones, zone)
        found |= {f"{zone}/{each.key}": store.get(each.key) for each in store.listing()}
    return found


def test_a_restored_store_holds_every_byte(tmp_path: Path) -> None:
    """All zones, in an empty store whose own proof of its promises stays; a restore that broke off can be repeated."""
    zones, empty = stored(), synthetic.memory_zones()
    zones.models.put(store_check.MARKER, b"proven")
    empty.models.put(store_check.MARKER, b"proven for itself")
    backup.back_up(zones, NOTHING, url_of(tmp_path))

    def ends(progress: Progress) -> None:
        if progress.done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup.restore(url_of(tmp_path), NOTHING, empty, on_progress=ends)
    said, done = backup.restore(url_of(tmp_path), NOTHING, empty)
    marker = f"models/{store_check.MARKER}"
    assert contents(empty).pop(marker) == b"proven for itself"
    assert contents(empty) | {marker: b"proven"} == contents(zones)
    assert datetime.now(UTC) - said.begun_at < timedelta(minutes=5)
    assert done.size == sum(map(len, contents(zones).values())) - len(b"proven")


@pytest.mark.parametrize(
    ("zone", "key"),
    [("models", "cats/aliases/champion.json"), ("models", f"{NAME}/aliases/champion.json"), ("datasets", "x")],
)
def test_a_store_that_holds_something_else_is_left_alone(tmp_path: Path, zone: Zone, key: str) -> None:
    """Objects that the copy lacks, or an alias that points elsewhere: one sentence names it, nothing is written."""
    backup.back_up(stored(), NOTHING, url_of(tmp_path))
    there = synthetic.memory_zones()
    getattr(there, zone).put(key, b"another")
    with pytest.raises(InvalidInput, match="restore into an empty store"):
        backup.restore(url_of(tmp_path), NOTHING, there)
    assert contents(there) == {f"{zone}/{key}": b"another"}


def test_there_is_nothing_to_restore(tmp_path: Path) -> None:
    """A folder that is not there, or empty, is a person's mistake; no folder is made."""
    with pytest.raises(InvalidInput, match="holds no complete copy"):
        backup.restore(url_of(tmp_path), NOTHING, synthetic.memory_zones())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place is a person's mistake."""
    (tmp_path / "copy").write_text("a file")
    with pytest.raises(InvalidInput, match="cannot hold a copy"):
        backup.back_up(synthetic.memory_zones(), NOTHING, url_of(tmp_path))


@pytest.mark.parametrize("below", ["", "/", "/models/old", "/predictions/"])
def test_a_copy_of_a_store_is_not_put_into_that_store(tmp_path: Path, below: str) -> None:
    """Neither onto itself nor into one of its zones: one sentence, and nothing is written; beside them is a place."""
    url = url_of(tmp_path)
    backup.back_up(stored(), NOTHING, url)
    zones = in_folder(url)
    before = contents(zones)
    with pytest.raises(InvalidInput, match="is in the store that is to be copied"):
        backup.back_up(zones, NOTHING, f"{url}{below}")
    assert contents(zones) == before
    backup.back_up(zones, NOTHING, f"{url}/models-old")
    assert contents(in_folder(f"{url}/models-old")) == before


def test_people_s_images_are_for_nobody_else_to_see(tmp_path: Path) -> None:
    """The folder of a copy is its owner's alone."""
    backup.back_up(synthetic.memory_zones(), NOTHING, url_of(tmp_path))
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700


def test_what_is_there_is_not_copied_again() -> None:
    """Only where its size is the same, and it was copied well after it was changed: clocks differ."""

    def listed(size: int, minutes: float) -> StoredObject:
        return StoredObject("key", size, "", NOW + timedelta(minutes=minutes))

    assert backup.is_unchanged(listed(3, 0), listed(3, 6))
    assert not backup.is_unchanged(listed(3, 0), listed(3, 4))
    assert not backup.is_unchanged(listed(3, 0), listed(4, 60))
    assert not backup.is_unchanged(listed(3, 0), None)


def test_the_next_copy_takes_what_is_new(tmp_path: Path) -> None:
    """What is old is counted as there; what was removed from the store stays in the copy."""
    zones, url = stored(), url_of(tmp_path)
    backup.back_up(zones, NOTHING, url)
    copied = in_folder(url)
    old = {each.key for each in copied.datasets.listing() if backup.rank("datasets", each.key) != backup.POINTERS}
    later = datetime.now(UTC).timestamp() + 600
    for path in (tmp_path / "copy" / "datasets").rglob(
        "*.*"
    ):  # as if it had been made after the store was last changed
        os.utime(path, (later, later))
    zones.predictions.delete(["pets/date=2026-11-22/one.parquet"])
    done = backup.back_up(zones, NOTHING, url)
    assert done.there == {"datasets": len(old)}
    assert [each.key for each in copied.predictions.listing()] == ["pets/date=2026-11-22/one.parquet"]


@pytest.mark.parametrize(
    ("zone", "key", "rank"),
    [
        ("models", "pets/aliases/champion.json", backup.POINTERS),
        ("datasets", "pets/latest.json", backup.POINTERS),
        ("checkpoints", f"{RUN}/lease.json", backup.POINTERS),
        ("models", "pets/20261122T000000Z-01234567/manifest.json", backup.COMPLETE),
        ("checkpoints", f"{RUN}/result.json", backup.COMPLETE),
        ("models", "pets/20261122T000000Z-01234567/evaluation.json", backup.RECORDS),
        ("checkpoints", f"{RUN}/checkpoints/000001-000000007/checkpoint.json", backup.RECORDS),
        ("models", "pets/20261122T000000Z-01234567/model.onnx", backup.CONTENT),
        ("predictions", "_batch/pets/night/manifest.json", backup.COMPLETE),
        ("predictions", "_batch/pets/_work/night/plan.json", backup.RECORDS),
        ("predictions", "_batch/pets/night/part-00000.parquet", backup.CONTENT),
        ("images", "pets/aliases/champion.json", backup.CONTENT),
    ],
)
def test_who_is_named_comes_before_who_names(zone: Zone, key: str, rank: int) -> None:
    """Each kind of object has its turn."""
    assert backup.rank(zone, key) == rank
