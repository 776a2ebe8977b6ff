import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import augment
from pipeline.parts import part_of

PIXELS = torch.arange(6 * 5 * 4 * 3).reshape(6, 5, 4, 3).to(torch.uint8)


@given(st.lists(st.integers(0, 2**40) | st.text(max_size=8), min_size=1, max_size=3))
def test_generators_depend_on_the_position_alone(position: list[int | str]) -> None:
    """The same position draws the same numbers; another one draws others."""
    first, again = (torch.rand(4, generator=augment.generator_at(*position)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(4, generator=augment.generator_at(*position, "other")))


def test_seeds_are_written_down() -> None:
    """The seed of a position never changes: old runs could not be resumed exactly any more."""
    assert augment.seed_of(0, "order", 0) == 3955691223199900983


@given(images=st.integers(2, 3000), batches=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_an_epoch_sees_every_image_once(images: int, batches: int, seed: int) -> None:
    """Batches cover all images exactly once, and their sizes differ by one at most."""
    parts = augment.epoch_batches(images, batches, augment.generator_at(seed))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(images))
    assert len(parts) == batches
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_without_variation_images_are_what_they_are() -> None:
    """No flip and no shift gather the images that were asked for, in their order."""
    index = torch.tensor([4, 0, 4])
    found = augment.augmented(PIXELS, index, mirror=None, shift=0, generator=augment.generator_at(0))
    assert torch.equal(found, PIXELS[index])


def test_mirrored_images_are_mirrored() -> None:
    """Exactly the images that are to be mirrored are, left to right."""
    mirror = torch.tensor([True, False, True])
    index = torch.tensor([1, 1, 5])
    found = augment.augmented(PIXELS, index, mirror=mirror, shift=0, generator=augment.generator_at(0))
    assert torch.equal(found, torch.stack([PIXELS[1].flip(1), PIXELS[1], PIXELS[5].flip(1)]))


def test_mirroring_alternates() -> None:
    """About half of the images are mirrored in an epoch, and exactly the others in the next."""
    sides = augment.first_sides(1000, seed=3)
    first, second, third = (augment.mirrored(sides, epoch) for epoch in range(3))
    assert 400 < first.sum() < 600
    assert torch.equal(second, ~first)
    assert torch.equal(third, first)
    assert torch.equal(sides, augment.first_sides(1000, seed=3))


def test_shift_moves_and_repeats_the_border() -> None:
    """Each image is moved by at most that many pixels, all moves occur, and its border fills what is left free."""
    index = torch.zeros(400, dtype=torch.int64)
    found = augment.augmented(PIXELS, index, mirror=None, shift=1, generator=augment.generator_at(0))
    rows, columns = torch.arange(5), torch.arange(4)
    possible = [
        PIXELS[0][(rows + down).clamp(0, 4)][:, (columns + right).clamp(0, 3)]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    ]
    seen = [any(torch.equal(image, moved) for image in found) for moved in possible]
    assert all(any(torch.equal(image, moved) for moved in possible) for image in found)
    assert all(seen)


@given(of=st.integers(1, 12), parts=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_a_part_of_a_batch_is_varied_like_the_whole(of: int, parts: int, seed: int) -> None:
    """Whoever computes an image of a batch gives it the same variation."""
    index = torch.arange(of) % len(PIXELS)
    mirror = index % 2 == 1
    whole = augment.augmented(PIXELS, index, mirror=mirror, shift=2, generator=augment.generator_at(seed))
    for number in range(parts):
        part = part_of(of, number, parts)
        generator = augment.generator_at(seed)
        found = augment.augmented(
            PIXELS, index[part], mirror=mirror[part], shift=2, generator=generator, of=of, part=part
        )
        assert torch.equal(found, whole[part])
