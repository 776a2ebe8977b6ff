"""What a verification sees and what it lets pass; damaged objects of each kind are in test_altered_objects.py."""

import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import batch_predictions
import pytest
import synthetic
import tiny_models
from obstore.store import MemoryStore

from pipeline import aliases, datasets
from pipeline.aliases import AliasChange, AliasState
from pipeline.artifacts import PrepareConfig
from pipeline.errors import StoreUnavailable
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.store import Store, StoredObject
from pipeline.verification import history_fault, verify
from pipeline.zones import Zones

NAME = "pets"
CONFIG = PrepareConfig(size=12)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def test_an_empty_store_is_whole() -> None:
    """Nothing stored is nothing broken."""
    found = verify(synthetic.memory_zones())
    assert (found.counts, found.broken) == ({}, ())


def test_everything_is_counted() -> None:
    """A verification tells how many objects of each kind it has read, and reports as it goes."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, NAME, 8)
    prepare(zones, NAME, CONFIG)
    version = tiny_models.register(zones.checkpoints, zones.models, NAME, 1)
    aliases.set_alias(zones.models, NAME, aliases.CHAMPION, version.version, reason="first")
    reports: list[Progress] = []
    found = verify(zones, on_progress=reports.append)
    assert found.broken == ()
    assert found.counts == {
        "aliases": 1,
        "dataset versions": 1,
        "index segments": 1,
        "model files": 5,
        "model versions": 1,
        "raw images": 24,
        "shards": 1,
    }
    assert reports[-1].done == sum(found.counts.values())


def test_batch_predictions_are_read_and_compared() -> None:
    """Each file of a complete batch is counted; one that was altered, or is gone, is named; unfinished ones are not."""
    zones = synthetic.memory_zones()
    batch_predictions.champion(zones)
    batch_predictions.put(zones, range(5))
    (part,) = batch_predictions.predicted(zones).manifest.parts
    found = verify(zones)
    assert found.broken == ()
    assert (found.counts["batch predictions"], found.counts["files of batch predictions"]) == (1, 1)
    zones.predictions.put(part.key, b"altered")
    assert [(each.address, each.fault.partition(":")[0]) for each in verify(zones).broken] == [
        (f"{zones.predictions.url}/{part.key}", "was altered")
    ]
    zones.predictions.delete([part.key])
    assert "is missing" in verify(zones).broken[0].fault
    zones.predictions.delete([part.key.replace("part-00000.parquet", "manifest.json")])
    assert verify(zones).broken == ()


def test_a_canary_of_a_version_that_is_gone_is_found() -> None:
    """Whoever gets a share of the requests has to be complete, as the champion has."""
    zones = synthetic.memory_zones()
    one, two = (tiny_models.register(zones.checkpoints, zones.models, NAME, number).version for number in (1, 2))
    aliases.set_alias(zones.models, NAME, aliases.CHAMPION, one, reason="first")
    canary = aliases.Canary(challenger=two, share=0.1, started_at=NOW)
    aliases.set_canary(zones.models, NAME, aliases.CHAMPION, canary, reason="10 %")
    assert verify(zones).broken == ()
    zones.models.delete([f"{NAME}/{two}/manifest.json"])
    (found,) = verify(zones).broken
    assert two in str(found)


def test_raw_images_may_go_and_be_replaced() -> None:
    """A person's own images are theirs: one that is gone, or is another one by its etag, is no finding."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, NAME, 8)
    prepare(zones, NAME, CONFIG)
    zones.images.delete([f"{NAME}/class-000/000000.png"])
    zones.images.put(f"{NAME}/class-001/000001.png", synthetic.png(999))
    found = verify(zones)
    assert found.broken == ()
    assert found.counts["raw images"] == 22


class Rotten(Store):
    """A store whose disk has changed one object without changing what it says of it."""

    def read_many(self, objects: Iterable[StoredObject]) -> Iterator[tuple[StoredObject, bytes | None]]:
        """All objects, one with other bytes."""
        for found, data in super().read_many(objects):
            yield found, data[:-1] + b"!" if data and found.key.endswith("/000002.png") else data


def test_a_raw_image_that_rotted_is_found() -> None:
    """Other bytes under the etag that was prepared are a fault of the store, and named."""
    backend = MemoryStore()
    zones = with_images(synthetic.memory_zones(), Store(backend, "memory://images"))
    synthetic.put_classes(zones, NAME, 8)
    prepare(zones, NAME, CONFIG)
    (broken,) = verify(with_images(zones, Rotten(backend, "memory://images"))).broken
    assert broken.address == f"memory://images/{NAME}/class-002/000002.png"
    assert "under the same etag" in broken.fault


def with_images(zones: Zones, images: Store) -> Zones:
    """The same zones, with other raw images."""
    return Zones(images, zones.datasets, zones.checkpoints, zones.models, zones.predictions)


def test_what_is_not_finished_is_no_finding() -> None:
    """Shards, files and tensors that nothing complete names are work under way."""
    zones = synthetic.memory_zones()
    synthetic.put_classes(zones, NAME, 8)
    version = prepare(zones, NAME, CONFIG).version
    made = tiny_models.register(zones.checkpoints, zones.models, NAME, 1)
    zones.datasets.delete([f"{NAME}/{version.version}/manifest.json", f"{NAME}/latest.json"])
    zones.models.delete([f"{NAME}/{made.version}/manifest.json"])
    zones.models.delete([f"{NAME}/{made.version}/model.onnx"])
    zones.checkpoints.put("0123456789abcdef/checkpoints/000001-000000007/state.safetensors", b"half")
    assert verify(zones).broken == ()


def test_reading_while_others_write_raises_no_false_alarm() -> None:
    """While datasets grow, models are registered and aliases move, nothing looks broken at any moment."""
    zones = synthetic.memory_zones()
    over = threading.Event()

    def work() -> None:
        try:
            for turn in range(6):
                synthetic.put_classes(zones, NAME, 4, start=12 * turn)
                prepare(zones, NAME, CONFIG)
                version = tiny_models.register(zones.checkpoints, zones.models, NAME, turn + 1)
                aliases.set_alias(zones.models, NAME, aliases.CHAMPION, version.version, reason=str(turn))
                if turn % 2:  # what is removed goes manifest first
                    aliases.rollback(zones.models, NAME, aliases.CHAMPION, "worse")
                    folder = f"{NAME}/{version.version}"
                    zones.models.delete([f"{folder}/manifest.json"])
                    zones.models.delete([each.key for each in zones.models.listing(folder)])
        finally:
            over.set()

    worker = threading.Thread(target=work)
    worker.start()
    readings = 0
    while not over.is_set():
        assert verify(zones).broken == ()
        readings += 1
    worker.join()
    assert readings > 1
    assert datasets.latest(zones.datasets, NAME).counts
    assert verify(zones).counts["dataset versions"] == 6


def test_a_store_that_is_away_is_no_finding() -> None:
    """A verification that cannot read ends by saying so: nothing is called broken that was not read."""

    class Away(Store):
        """A store that answers listings alone."""

        def read_many(self, objects: Iterable[StoredObject]) -> Iterator[tuple[StoredObject, bytes | None]]:
            """No answer."""
            raise StoreUnavailable(f"{self.url}/{next(iter(objects)).key}: the object store does not answer.")

    backend = MemoryStore()
    zones = synthetic.memory_zones()
    models = Store(backend, "memory://models")
    tiny_models.register(zones.checkpoints, models, NAME, 1)
    away = Away(backend, "memory://models")
    with pytest.raises(StoreUnavailable):
        verify(Zones(zones.images, zones.datasets, zones.checkpoints, away, zones.predictions))


def changes(*generations: int) -> tuple[AliasChange, ...]:
    """Changes of these generations, with a nonce each."""
    return tuple(
        AliasChange(generation=each, nonce=f"nonce {each}", version="a", changed_at=NOW, reason="")
        for each in generations
    )


def state(history: tuple[AliasChange, ...]) -> AliasState:
    """The state in which a history ends."""
    last = history[-1]
    return AliasState(alias="champion", history=history, **last.model_dump(exclude={"rolled_back"}))


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (lambda: state(changes(1)), None),
        (lambda: state(changes(7, 8, 9)), None),
        (lambda: state(changes(1, 2, 4)), "gap"),
        (lambda: state(changes(1, 2, 2)), "gap"),
        (lambda: state((*changes(1, 2), changes(1)[0].model_copy(update={"generation": 3}))), "nonce twice"),
        (lambda: state(changes(1, 2)).model_copy(update={"nonce": "another"}), "its own state"),
        (lambda: state(changes(1)).model_copy(update={"history": ()}), "its own state"),
    ],
)
def test_histories(made: Callable[[], AliasState], fault: str | None) -> None:
    """A history holds every change once, in order, and its last one is the state."""
    found = history_fault(made())
    assert found == fault if fault is None or found is None else fault in found
