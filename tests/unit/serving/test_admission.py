import random

import pytest
from serving_parts import call

from serving.admission import BURST_S, LARGEST_BYTES, STANDING_IMAGES, Admission
from serving.calls import Call
from serving.errors import DeadlineExceeded, Overloaded

IMAGE_S = 0.001


def at_work(longest_s: float | None = None) -> Admission:
    """One that has learned that an image takes a millisecond; it is empty at time 0."""
    found = Admission(longest_s)
    found.admit(call(begun=0.0), 1, 1, 0.0)
    found.computed(1, 0.0, IMAGE_S)
    found.leave(1, 1)
    return found


def busy(longest_s: float | None = None) -> Admission:
    """The same, but that it has computed for a tenth of a second without a pause when it is 10."""
    found = at_work(longest_s)
    found.computed(100, 9.9, 10.0)
    return found


def admitted(admission: Admission, now: float, most: int = 10_000) -> int:
    """How many calls of one image are let in at one moment."""
    for count in range(most):
        try:
            admission.admit(call(begun=now), 1, 1, now)
        except Overloaded:
            return count
    return most


def test_a_burst_may_wait_for_as_long_as_it_says() -> None:
    """After a moment without a queue, as many come in as are answered within the bound for bursts."""
    assert admitted(at_work(), 10.0) == pytest.approx(BURST_S / IMAGE_S, abs=2)


def test_a_standing_queue_is_kept_short() -> None:
    """Where the server is busy, only as long as a few images take; a moment later, a burst may come again."""
    assert admitted(busy(), 10.0) == pytest.approx(STANDING_IMAGES, abs=2)
    assert admitted(busy(), 10.2) == pytest.approx(BURST_S / IMAGE_S, abs=2)


def test_a_setting_bounds_the_standing_queue() -> None:
    """In time, whatever the model."""
    assert admitted(busy(0.02), 10.0) == pytest.approx(20, abs=2)


def test_who_does_not_wait_as_told_is_let_in_once_the_server_is_not_busy() -> None:
    """Nobody waits, but the server was busy for a while: who comes too early is refused, and others are not."""
    admission, early = busy(), call(begun=10.0)
    early.early = True
    with pytest.raises(Overloaded):
        admission.admit(early, 1, 1, 10.0)
    admission.admit(call(begun=10.0), 1, 1, 10.0)
    admission.leave(1, 1)
    admission.admit(early, 1, 1, 10.2)


def test_how_long_a_client_took_to_send_does_not_count() -> None:
    """A body that came slowly is let in beside others."""
    admission = busy()
    admission.admit(call(begun=10.0), 1, 1, 10.0)
    admission.admit(call(begun=5.0), 1, 1, 10.0)


def test_who_is_refused_is_told_when_to_come_again() -> None:
    """In whole seconds, at least one, as Retry-After has them."""
    admission = busy()
    admission.admit(call(begun=10.0), 3500, 1, 10.0)
    with pytest.raises(Overloaded) as caught:
        admission.admit(call(begun=10.0), 1, 1, 10.0)
    assert caught.value.retry_after_s == 4


def test_one_call_always_comes_in() -> None:
    """However large, where nobody waits."""
    Admission(0.001).admit(call(begun=10.0), 64, LARGEST_BYTES * 2, 10.0)


def test_bytes_are_bounded() -> None:
    """However quick the model is."""
    admission = at_work()
    admission.admit(call(begun=10.0), 1, LARGEST_BYTES, 10.0)
    with pytest.raises(Overloaded):
        admission.admit(call(begun=10.0), 1, 1, 10.0)
    admission.leave(1, LARGEST_BYTES)
    admission.admit(call(begun=10.0), 1, 1, 10.0)


def due(seconds: float, now: float) -> Call:
    """A call whose deadline comes so many seconds after ``now``."""
    return call(begun=now, deadline_s=seconds)


def test_a_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    """Nobody waits for an answer that would come too late, and one that comes in time is let in."""
    admission = at_work()
    admission.admit(call(begun=10.0), 50, 1, 10.0)
    with pytest.raises(Overloaded, match="after this request's deadline"):
        admission.admit(due(0.03, 10.0), 1, 1, 10.0)
    with pytest.raises(DeadlineExceeded):
        admission.admit(due(-0.01, 10.0), 1, 1, 10.0)
    admission.admit(due(0.2, 10.0), 1, 1, 10.0)


def test_who_left_makes_room() -> None:
    """Whatever comes and goes, what is counted is what is there."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - to repeat a failure
    chance, admission, inside = random.Random(seed), at_work(), list[tuple[int, int]]()
    for step in range(500):
        if inside and chance.random() < 0.5:
            admission.leave(*inside.pop(chance.randrange(len(inside))))
        else:
            one = chance.randint(1, 64), chance.randint(1, 1000)
            try:
                admission.admit(call(begun=step * 0.01), *one, step * 0.01)
            except Overloaded:
                continue
            inside.append(one)
        assert admission.images == sum(images for images, _ in inside)
