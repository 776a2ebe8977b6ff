import hashlib
from collections.abc import Iterator
from dataclasses import replace

from obstore.store import MemoryStore

from pipeline.progress import Progress, silent
from pipeline.store import Store, StoredObject
from pipeline.upload_plan import Uploaded, UploadPlan, upload


class _S3Like(Store):
    """A store in memory whose etags are MD5s, as S3's are."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), "memory://")
        self.written: list[str] = []

    def listing(self, prefix: str = "") -> Iterator[StoredObject]:
        for item in super().listing(prefix):
            digest = hashlib.md5(self.get(item.key), usedforsecurity=False).hexdigest()
            yield replace(item, etag=f'"{digest}"')

    def put(self, key: str, data: bytes) -> None:
        self.written.append(key)
        super().put(key, data)


def _plan(**sources: bytes) -> UploadPlan:
    plan = UploadPlan("d")
    for name, source in sources.items():
        assert plan.add(f"d/{name}", source, label=name[0], split="test") is None
    return plan


def test_what_is_missing_or_differs_is_written_and_nothing_else() -> None:
    """Equal bytes are left; other bytes, of the same size or not, and new keys are written."""
    store = _S3Like()
    for key, data in {"d/same": b"1", "d/other": b"2", "d/longer": b"3", "e/new": b"4"}.items():
        store.put(key, data)
    store.written.clear()
    with _plan(same=b"1", other=b"x", longer=b"33", new=b"4") as plan:
        done = upload(plan, store, lambda source: source, silent)
    assert sorted(store.written) == ["d/longer", "d/new", "d/other"]
    assert done == Uploaded(images=3, already_there=1, bytes=4)
    assert [store.get(f"d/{name}") for name in ("same", "other", "longer", "new")] == [b"1", b"x", b"33", b"4"]


def test_where_etags_are_no_digests_everything_is_written_again() -> None:
    """A store with other etags gets all bytes again, and holds the same afterwards."""
    store = Store(MemoryStore(), "memory://")
    store.put("d/a", b"1")
    with _plan(a=b"1") as plan:
        assert upload(plan, store, lambda source: source, silent) == Uploaded(1, 0, 1)
    assert store.get("d/a") == b"1"


def test_images_that_cannot_be_read_are_left() -> None:
    """A source whose bytes are gone is neither written nor counted as there."""
    store = _S3Like()
    with _plan(a=b"1", b=b"2") as plan:
        done = upload(plan, store, lambda source: None if source == b"1" else source, silent)
    assert (done, store.written) == (Uploaded(1, 0, 1), ["d/b"])


def test_a_taken_key_names_who_took_it() -> None:
    """The first source keeps the key; the second is told about it."""
    with _plan(a=b"first") as plan:
        assert plan.add("d/a", b"second") == b"first"
        assert [image.source for image in plan.images()] == [b"first"]


def test_images_come_by_key_with_labels_and_splits() -> None:
    """Whatever the order of planning, images come by key, each with what was given."""
    with _plan(b=b"2", a=b"1", c=b"3") as plan:
        rows = [(image.key, image.label, image.split, image.etag) for image in plan.images()]
        assert rows == [("d/a", "a", "test", None), ("d/b", "b", "test", None), ("d/c", "c", "test", None)]
        assert (plan.count(), plan.labels()) == (3, ["a", "b", "c"])


def test_named_keys_that_are_nowhere_are_told() -> None:
    """A key that a table names is missing unless it is planned or stored."""
    store = _S3Like()
    store.put("d/stored", b"")
    with _plan(here=b"1") as plan:
        for key in ("d/here", "d/stored", "d/gone", "d/gone"):
            plan.name(key)
        plan.note_stored(store.listing("d"))
        assert list(plan.missing()) == ["d/gone"]
        assert plan.is_named("d/gone")
        assert not plan.is_named("d/other")


def test_progress_counts_to_the_total() -> None:
    """The listener hears of all images, the last time as done."""
    heard: list[Progress] = []
    with _plan(a=b"1", b=b"2") as plan:
        upload(plan, _S3Like(), lambda source: source, heard.append)
    assert [(progress.done, progress.total) for progress in heard] == [(0, 2), (2, 2)]
