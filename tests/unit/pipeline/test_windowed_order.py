"""The order of images that are read shard by shard."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import windowed_order
from pipeline.augment import generator_at

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def drawn(sizes: list[int], half: int, seed: int = 0) -> tuple[windowed_order.Order, list[tuple[int, int]]]:
    """An epoch's order, and the place and row of each of its images."""
    given_sizes = torch.tensor(sizes)
    order = windowed_order.epoch_order(torch.arange(len(sizes)), given_sizes, half, generator_at(seed))
    place, row = order.found(0, sum(sizes))
    return order, list(zip(place.tolist(), row.tolist(), strict=True))


@settings(max_examples=60)
@given(sizes=SIZES, half=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_image_comes_once(sizes: list[int], half: int, seed: int) -> None:
    """An epoch has every row of every shard exactly once, and the same seed gives the same order."""
    _, images = drawn(sizes, half, seed)
    assert sorted(images) == [(place, row) for place, size in enumerate(sizes) for row in range(size)]
    assert drawn(sizes, half, seed)[1] == images


@settings(max_examples=60)
@given(sizes=SIZES, half=st.integers(1, 12), seed=st.integers(0, 99))
def test_no_more_shards_than_the_window_are_open(sizes: list[int], half: int, seed: int) -> None:
    """Each image comes in a moment in which its shard is open; never more than twice ``half`` shards are."""
    order, images = drawn(sizes, half, seed)
    assert order.moments[0] == 0
    assert order.moments[-1] == len(images)
    for position, (place, _) in enumerate(images):
        moment = order.moment_of(position)
        assert order.moments[moment] <= position < order.moments[moment + 1]
        assert place in windowed_order.open_at(moment, len(sizes), half)
    assert all(len(windowed_order.open_at(moment, len(sizes), half)) <= 2 * half for moment in range(len(sizes)))


def test_a_window_over_everything_is_a_full_shuffle() -> None:
    """Where half a window holds all shards, each image is equally likely to be at each place."""
    first = torch.zeros(6)
    for seed in range(3000):
        order, _ = drawn([1, 2, 3], 3, seed)
        first[order.drawn[0]] += 1
    assert (first / 3000 - 1 / 6).abs().max() < 0.03


@settings(max_examples=60)
@given(classes=st.lists(st.integers(0, 5), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_classes_take_turns(classes: list[int], seed: int) -> None:
    """Every shard has one turn, and after any number of turns a class has had its share, up to the others' rounding."""
    turns = windowed_order.shards_in_turn(torch.tensor(classes), generator_at(seed))
    assert sorted(turns.tolist()) == list(range(len(classes)))
    listed = [classes[shard] for shard in turns.tolist()]
    for known in set(classes):
        share = classes.count(known) / len(classes)
        before = [listed[:stop].count(known) - share * stop for stop in range(len(listed) + 1)]
        assert max(map(abs, before)) <= 1 + share * len(set(classes))


def test_orders_of_shards_differ() -> None:
    """Two epochs take the shards in different orders."""
    classes = torch.arange(40) % 4
    turns = [windowed_order.shards_in_turn(classes, generator_at(0, epoch)).tolist() for epoch in range(2)]
    assert turns[0] != turns[1]
