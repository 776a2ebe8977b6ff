"""When uploads are worth a training."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from pipeline import upload_batches
from pipeline.store import StoredObject
from pipeline.upload_batches import NOTHING, Batch, Change, Content, Rules

RULES = Rules(quiet_s=20, longest_s=600)
A, B = Content("a" * 64, 1), Content("b" * 64, 2)


def stored(key: str, etag: str = "1", size: int = 5) -> StoredObject:
    """A line of a listing."""
    return StoredObject(key, size, etag, datetime(2026, 1, 1, tzinfo=UTC))


def test_contents_are_told_apart_by_dataset() -> None:
    """Each dataset has its own content; what lies in no dataset has none."""
    found = upload_batches.contents(
        [stored("cats/a/1.png"), stored("cats/a/2.png"), stored("dogs/b/1.png"), stored("x")]
    )
    assert {dataset: content.objects for dataset, content in found.items()} == {"cats": 2, "dogs": 1}


@given(st.sampled_from(["key", "etag", "size"]))
def test_whatever_changes_changes_the_content(what: str) -> None:
    """Another key, other bytes of the same key, and nothing else."""
    before = [stored("cats/a/1.png"), stored("cats/a/2.png")]
    other = {"key": stored("cats/a/3.png"), "etag": stored("cats/a/2.png", "2"), "size": stored("cats/a/2.png", size=6)}
    contents = [upload_batches.contents(each)["cats"] for each in (before, list(before), [before[0], other[what]])]
    assert contents[0] == contents[1] != contents[2]


def test_what_had_its_run_is_no_change() -> None:
    """The content of the last batch is nothing new."""
    assert upload_batches.seen(None, Batch(number=3, digest=A.digest), A, 0) is None


def test_a_thousand_uploads_are_one_batch() -> None:
    """While something changes at each look, nothing is due; once it is quiet, all of it is."""
    change = None
    for number in range(50):
        change = upload_batches.seen(change, None, Content(f"{number:064}", number + 1), now=number * 5.0)
        assert change is not None
        assert not upload_batches.is_due(change, RULES, number * 5.0)
    last = Content(f"{49:064}", 50)
    change = upload_batches.seen(change, None, last, 49 * 5.0 + RULES.quiet_s)
    assert change is not None
    assert upload_batches.is_due(change, RULES, 49 * 5.0 + RULES.quiet_s)
    assert upload_batches.batch_of(change, None) == Batch(number=1, digest=last.digest)


def test_uploads_without_end_are_trained_on_now_and_then() -> None:
    """At most so long after the first change there is a batch."""
    assert upload_batches.is_due(Change(B, first=0, last=600), RULES, 600)
    assert not upload_batches.is_due(Change(B, first=0, last=599), RULES, 599)


def test_going_back_to_what_had_its_run_is_a_batch_again_only_after_another() -> None:
    """Uploaded and removed within one quiet time is no change; a content that comes back later has a new number."""
    known = Batch(number=1, digest=A.digest)
    assert upload_batches.seen(Change(B, 0, 0), known, A, 5) is None
    second = upload_batches.batch_of(Change(B, 0, 0), known)
    third = upload_batches.batch_of(Change(A, 0, 0), second)
    assert (third.number, third.digest) == (3, A.digest)


def test_an_emptied_dataset_is_no_batch() -> None:
    """There is nothing to train on."""
    assert not upload_batches.is_due(Change(NOTHING, 0, 0), RULES, 10_000)


def test_looking_takes_a_small_part_of_the_time() -> None:
    """Sooner while something changes, later where a look is long."""
    assert upload_batches.next_look_s({}, RULES, poll_s=60, cost_s=0.1) == 60
    assert upload_batches.next_look_s({"cats": Change(A, 0, 0)}, RULES, poll_s=60, cost_s=0.1) == 20
    assert upload_batches.next_look_s({}, RULES, poll_s=60, cost_s=30) == 19 * 30
