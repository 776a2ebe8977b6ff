"""The rules by which images make a dataset version."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import PrepareConfig
from pipeline.selection import (
    FREE,
    LEFT_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    Candidates,
    Images,
    Selection,
    assign_splits,
    distinct,
    pixel_spec,
    select,
)

CONFIG = PrepareConfig()
SPLIT_CODES = {None: FREE, "train": TRAIN, "validation": VALIDATION, "test": TEST}


def candidates(
    *rows: tuple[int | None, str] | tuple[int | None, str, str | None], named: tuple[int, ...] = (), side: int = 28
) -> Candidates:
    """Candidates of (image's number or None if unreadable, label, given split)."""
    classes = sorted({row[1] for row in rows})
    images, image = distinct(np.array([list(digest(row[0])) for row in rows], np.uint8).reshape(-1, 32))
    return Candidates(
        classes=tuple(classes),
        label=np.array([classes.index(row[1]) for row in rows], np.int64),
        given=np.array([SPLIT_CODES[row[2]] if len(row) > 2 else FREE for row in rows], np.int64),
        named=np.isin(np.arange(len(rows)), named),
        readable=np.array([row[0] is not None for row in rows], bool),
        images=images,
        image=image,
        side=np.full(len(rows), side, np.int64),
        channels=np.ones(len(rows), np.int64),
    )


def digest(number: int | None) -> bytes:
    """The digest that stands for an image."""
    return hashlib.sha256(str(number).encode()).digest()


def two_classes(count: int = 40) -> list[tuple[int | None, str]]:
    """A plain dataset of two classes."""
    return [(number, ("cat", "dog")[number % 2]) for number in range(count)]


def sides(chosen: Selection, found: Candidates) -> dict[bytes, int]:
    """The split's code of each used image, by digest."""
    used = np.flatnonzero(chosen.label != LEFT_OUT)
    return {found.images[found.image[row]].tobytes(): int(chosen.split[row]) for row in used}


@given(st.permutations(range(40)))
def test_the_order_in_which_keys_arrive_does_not_matter(order: list[int]) -> None:
    """The same images in any order of keys give the same version and the same splits."""
    rows = two_classes()
    first = candidates(*rows)
    other = candidates(*(rows[number] for number in order))
    assert select(first, CONFIG).version == select(other, CONFIG).version
    assert sides(select(first, CONFIG), first) == sides(select(other, CONFIG), other)


@pytest.mark.parametrize(
    "changed",
    [
        [*two_classes(), (99, "cat")],
        two_classes()[:-1],
        [(0, "dog"), *two_classes()[1:]],
        [(0, "cat", "test"), *two_classes()[1:]],
        [(number, "cow" if label == "dog" else label) for number, label in two_classes()],
    ],
    ids=["another image", "one image less", "another label", "another split", "another class name"],
)
def test_other_content_is_another_version(changed: list[tuple[int | None, str]]) -> None:
    """Whatever changes an image, a label, a split or a class name changes the version."""
    assert select(candidates(*changed), CONFIG).version != select(candidates(*two_classes()), CONFIG).version


def test_other_pixels_are_another_version() -> None:
    """Size, colour and fit are part of the version; parameters without effect are not."""
    found = candidates(*two_classes())
    versions = {
        select(found, PrepareConfig.model_validate(change)).version
        for change in ({}, {"size": 30}, {"colour": "rgb"}, {"fit": "stretch"})
    }
    assert len(versions) == 4
    assert select(found, PrepareConfig(size=28, colour="grey", keep=("x",))).version == select(found, CONFIG).version


image_sets = st.sets(st.integers(0, 400), min_size=1, max_size=60)
shares = st.sampled_from([0.01, 0.15, 0.5, 0.9])


@given(image_sets, image_sets, shares)
def test_arriving_images_move_none_from_training_into_test(before: set[int], arriving: set[int], share: float) -> None:
    """An image of a class that could be trained on never gets into test because others come, unless it belongs there.

    It belongs there when its digest says so and it was in training only because its class had nothing else.
    """
    old, new = splits_of(before, share), splits_of(before | arriving, share)
    for number in before:
        alone = sum(other % 3 == number % 3 for other in before) == 1
        belongs_in_test = int.from_bytes(digest(number)[:8]) < int(share * 2**64)
        if old[number] != TEST and not belongs_in_test and not alone:
            assert new[number] != TEST


@given(image_sets, shares, st.sampled_from([0.0, 0.05, 0.5]))
def test_every_class_of_two_images_has_both_splits(found: set[int], share: float, validation_share: float) -> None:
    """Chance leaves no class of two or more images without a training image or without a test image."""
    codes = splits_of(found, share, validation_share)
    for label in range(3):
        own = [codes[number] for number in found if number % 3 == label]
        if len(own) >= 2:
            assert TEST in own
            assert TRAIN in own


def test_shares_are_kept_in_a_large_dataset() -> None:
    """Of many images 15 % are in test, and 5 % of the others in validation."""
    codes = list(splits_of(set(range(20_000)), 0.15, 0.05).values())
    assert codes.count(TEST) / len(codes) == pytest.approx(0.15, abs=0.01)
    assert codes.count(VALIDATION) / len(codes) == pytest.approx(0.85 * 0.05, abs=0.006)


def test_given_splits_are_kept() -> None:
    """Given splits stand; of given training images validation is cut unless validation images were given."""
    rows = [(number, "cat", ("train", "test")[number % 2]) for number in range(200)]
    rows += [(number, "dog", ("train", "test")[number % 2]) for number in range(200, 400)]
    found = candidates(*rows)
    chosen = select(found, CONFIG)
    assert all((code == TEST) == (split == "test") for code, (*_, split) in zip(chosen.split, rows, strict=True))
    assert 2 < chosen.counts["validation"] < 25

    rows[0] = (0, "cat", "validation")
    chosen = select(candidates(*rows), CONFIG)
    assert chosen.counts == {"train": 199, "validation": 1, "test": 200}


def test_same_bytes_in_two_given_splits_leave_training() -> None:
    """Bytes given to training and to test stay in test, and the training key is left out with a reason."""
    rows = [*two_classes(), (100, "cat", "train"), (100, "cat", "test"), (100, "cat"), (101, "dog", "train")]
    chosen = select(candidates(*rows), CONFIG)
    assert chosen.problem is None
    assert chosen.label[40] == LEFT_OUT
    assert "given to test" in chosen.reasons[40]
    assert chosen.split[41] == chosen.split[42] == TEST
    assert len(chosen.reasons) == 1


def test_a_split_that_goes_with_a_wrong_label_does_not_count() -> None:
    """Where a named key settles a conflict, the split given to the losing key means nothing."""
    rows = [*two_classes(), (100, "cat", "train"), (100, "dog", "test")]
    chosen = select(candidates(*rows, named=(40,)), CONFIG)
    assert chosen.split[40] in {TRAIN, VALIDATION}
    assert sorted(chosen.reasons) == [41]


def test_duplicates_within_a_class_count_once() -> None:
    """The same bytes under several keys of a class make the version that they make under one."""
    chosen = select(candidates(*two_classes(), (0, "cat"), (0, "cat")), CONFIG)
    assert chosen.version == select(candidates(*two_classes()), CONFIG).version
    assert sum(chosen.counts.values()) == 40
    assert not chosen.reasons


def test_conflicting_labels_are_left_out_on_both_sides() -> None:
    """The same bytes under two labels are used under neither, and each key's reason names the other label."""
    chosen = select(candidates(*two_classes(), (0, "dog"), (0, "dog")), CONFIG)
    assert chosen.version == select(candidates(*two_classes()[1:]), CONFIG).version
    assert sorted(chosen.reasons) == [0, 40, 41]
    assert "'dog'" in chosen.reasons[0]
    assert "'cat'" in chosen.reasons[40]


def test_a_named_key_settles_a_conflict() -> None:
    """Where a person names one key its label wins for all keys of that label; two named labels settle nothing."""
    rows = [*two_classes(), (0, "dog"), (0, "dog")]
    chosen = select(candidates(*rows, named=(40,)), CONFIG)
    assert sorted(chosen.reasons) == [0]
    assert "named in keep" in chosen.reasons[0]
    assert chosen.label[40] == chosen.label[41] == 1
    both = select(candidates(*rows, named=(0, 40)), CONFIG)
    assert sorted(both.reasons) == [0, 40, 41]


@pytest.mark.parametrize(
    ("good", "bad", "fails"), [(100, 20, False), (100, 21, True), (950, 50, False), (950, 51, True)]
)
def test_the_limit_of_unreadable_images(good: int, bad: int, fails: bool) -> None:
    """A run fails when more images than 20, and more than 5 %, cannot be read, and says how many."""
    rows = [*two_classes(good), *((None, ("cat", "dog")[number % 2]) for number in range(bad))]
    problem = select(candidates(*rows), CONFIG).problem
    assert (problem is not None) == fails
    assert not fails or (problem or "").startswith(f"{bad} of {good + bad:,} images cannot be read")


def test_a_class_that_loses_half_of_its_images() -> None:
    """Half of a class unreadable or in conflict is a problem that names the class; less is none."""
    rows = two_classes()
    cows = [(100 + number, "cow") for number in range(4)]
    assert select(candidates(*rows, *cows, (None, "cow")), CONFIG).problem is None
    unreadable = select(candidates(*rows, *cows[:2], (None, "cow"), (None, "cow")), CONFIG)
    assert "class 'cow' (2 of 4" in (unreadable.problem or "")
    conflict = select(candidates(*rows, *cows, (100, "cat"), (101, "cat")), CONFIG)
    assert "class 'cow' (2 of 4" in (conflict.problem or "")


def test_a_class_with_one_image_is_named() -> None:
    """A class that cannot have both splits is a problem that names it."""
    assert "no second image in class 'cow'" in (select(candidates(*two_classes(), (100, "cow")), CONFIG).problem or "")
    many = [(100 + number, f"class {number:03d}") for number in range(10)]
    problem = select(candidates(*two_classes(), *many), CONFIG).problem or ""
    assert "classes 'class 000', 'class 001', 'class 002' and 7 more" in problem
    given = [(100, "cow", "train"), (101, "cow", "train")]
    assert "no test image in class 'cow'" in (select(candidates(*two_classes(), *given), CONFIG).problem or "")


@pytest.mark.parametrize(
    ("rows", "said"), [([], "no class"), ([(1, "cat"), (2, "cat")], "only one class, 'cat'")], ids=["none", "one"]
)
def test_fewer_than_two_classes(rows: list[tuple[int, str]], said: str) -> None:
    """Without two classes there is no dataset, and the problem says what is there."""
    assert said in (select(candidates(*rows), CONFIG).problem or "")


@pytest.mark.parametrize(("side", "size"), [(8, 28), (28, 28), (29, 32), (32, 32), (33, 64), (4000, 64)])
def test_automatic_size(side: int, size: int) -> None:
    """The smallest of 28, 32 and 64 in which the largest image fits; 64 beyond; never over a chosen size."""
    found = np.array([5, side])
    assert pixel_spec(found, np.ones(2, np.int64), CONFIG).height == size
    assert pixel_spec(found, np.ones(2, np.int64), PrepareConfig(size=100)).width == 100


def test_automatic_colour() -> None:
    """Grey when all used images are stored in grey, RGB when one is not, and whatever a person chose."""
    side = np.array([5, 5])
    assert pixel_spec(side, np.array([1, 1]), CONFIG).channels == 1
    assert pixel_spec(side, np.array([1, 3]), CONFIG).channels == 3
    assert pixel_spec(side, np.array([1, 3]), PrepareConfig(colour="grey")).channels == 1
    assert pixel_spec(side, np.array([1, 1]), PrepareConfig(colour="rgb")).channels == 3


def splits_of(found: set[int], share: float, validation_share: float = 0.05) -> dict[int, int]:
    """The split's code of each image of three classes, by its number."""
    ordered = sorted(found, key=digest)
    table = Images(
        np.array([list(digest(number)) for number in ordered], np.uint8),
        np.array([number % 3 for number in ordered], np.int64),
        np.full(len(ordered), FREE, np.int64),
    )
    codes = assign_splits(table, share, validation_share)
    return dict(zip(ordered, codes.tolist(), strict=True))
