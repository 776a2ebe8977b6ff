"""Which images make up a dataset version, and on which side of the split: pure rules over what was listed and read.

- **Labels.** The same bytes under two labels are left out, all of them, unless the person names the key whose label is
  right. The same bytes several times within a class are one image.
- **Splits** are given, or come from the image's digest alone: its first 8 bytes, as a fraction, are below the test
  share or not, so that no image changes side when others arrive. The next 8 bytes cut validation from training images
  (not from training images that a person gave, if validation images were given too). The same bytes in two given splits
  stay where they are examined most strictly: test, then validation.
- **Small classes.** Where chance leaves a class of two or more images without a test image, its lowest digest is lent
  to the test split, and goes back when another one comes. Where chance leaves it without a training image, its highest
  digest is lent to training; when a training image arrives it becomes a test image, the one case in which a test image
  may have been trained on (the quality gate looks for those).
- **Size and colour.** ``auto`` follows from the images that are used: 28, 32 or else 64 pixels, the smallest in which
  all fit; grey when all are stored in grey.
- **A version is the digest of what is in it**: class list, pixel specification, and digest, label and split of each
  image in the order of digests. Where pixels are stored has no part in it, nor has the way by which they came.
- **Limits.** A run fails when more images than ``max(20, 5 %)`` are unreadable, when a class loses half of its images
  or more, when a class has no training or no test image, and when there are not two classes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import PixelSpec, PrepareConfig, Split, digest_of

FORMAT = 1
"""Raised whenever the same images and parameters would make another dataset version than before."""

UNREADABLE_IMAGES = 20
UNREADABLE_SHARE = 0.05
FREE, TRAIN, VALIDATION, TEST = range(4)
"""Codes of a split; the highest wins where the same bytes are given to several. FREE: none is given."""
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
AUTO_SIZES = (28, 32)
LARGE_SIZE = 64
LEFT_OUT = -1
NAMES_SHOWN = 3
HASHED_AT_ONCE = 8_192

Codes = NDArray[Any]
"""Small integers; of which width does not matter."""
Flags = NDArray[np.bool_]
Digests = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The listed images and what was read of them, in columns of equal length N.

    Attributes:
        classes: all labels, sorted.
        label: integers (N,), positions in ``classes``.
        given: integers (N,), codes of the given splits.
        named: bool (N,), whether a person named the key as the one whose label is right.
        readable: bool (N,); what follows is meaningless where it is False.
        images: uint8 (U, 32), the distinct digests, sorted.
        image: integers (N,), positions in ``images``.
        side: integers (N,), the longer side in pixels.
        channels: integers (N,), 1 or 3.
    """

    classes: tuple[str, ...]
    label: Codes
    given: Codes
    named: Flags
    readable: Flags
    images: Digests
    image: Codes
    side: Codes
    channels: Codes


@dataclass(frozen=True, slots=True)
class Selection:
    """What ``select`` made of the candidates.

    Attributes:
        label: int32 (N,), positions in ``classes``; ``LEFT_OUT`` where a candidate is not used.
        split: int8 (N,), codes; FREE where a candidate is not used.
        classes: labels by class index.
        pixels: what the images become.
        counts: images (distinct digests) per split.
        version: 16 hexadecimal digits.
        reasons: by position, why a readable candidate is left out.
        problem: why no dataset can be made of this, as a sentence without its end; None if one can.
    """

    label: Codes
    split: Codes
    classes: tuple[str, ...]
    pixels: PixelSpec
    counts: dict[Split, int]
    version: str
    reasons: dict[int, str]
    problem: str | None


@dataclass(frozen=True, slots=True)
class Images:
    """The distinct images that are used, in the order of their digests; U rows.

    Attributes:
        digest: uint8 (U, 32).
        label: integers (U,).
        given: integers (U,), codes of the given splits.
    """

    digest: Digests
    label: Codes
    given: Codes


def select(candidates: Candidates, config: PrepareConfig) -> Selection:
    """Settle labels and splits, size and colour, and whether this can be a dataset."""
    rows = np.flatnonzero(candidates.readable).astype(np.int32)
    digests, image = candidates.images, candidates.image[rows]
    right, conflicting, reasons = _settle_labels(candidates, rows, image, len(digests))
    given, leaving, overlaps = _settle_given(candidates, rows, image, right, len(digests))
    lost = ~candidates.readable
    lost[rows[conflicting]] = True
    used = right & ~leaving
    rows, image = rows[used], image[used]
    present = np.unique(image)
    labels = np.zeros(len(digests), np.int32)
    labels[image] = candidates.label[rows]
    images = Images(digests if len(present) == len(digests) else digests[present], labels[present], given[present])
    splits = assign_splits(images, config.test_share, config.validation_share)
    pixels = pixel_spec(candidates.side[rows], candidates.channels[rows], config)

    label = np.full(len(candidates.label), LEFT_OUT, np.int32)
    label[rows] = candidates.label[rows]
    split = np.full(len(candidates.label), FREE, np.int8)
    split[rows] = splits[np.searchsorted(present, image)]
    return Selection(
        label=label,
        split=split,
        classes=candidates.classes,
        pixels=pixels,
        counts={name: int((splits == code).sum()) for code, name in enumerate(SPLITS, TRAIN)},
        version=version_of(candidates.classes, pixels, images, splits),
        reasons=reasons | overlaps,
        problem=next(_problems(candidates, lost, images.label, splits), None),
    )


def distinct(digests: Digests) -> tuple[Digests, Codes]:
    """The distinct rows of uint8 (N, 32), sorted, and for each row its position among them."""
    whole = np.ascontiguousarray(digests).view("V32").ravel()
    # As ``np.unique`` does it, with fewer copies: this is what a preparation needs most memory for.
    order = np.argsort(whole, kind="stable")
    ordered = whole[order]
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    position = np.empty(len(ordered), np.int32)
    position[order] = np.cumsum(first, dtype=np.int32) - 1
    unique = ordered if first.all() else ordered[first]
    return unique.view(np.uint8).reshape(-1, 32), position


def assign_splits(images: Images, test_share: float, validation_share: float) -> Codes:
    """The split's code of each image, integers (U,): given, by digest, or lent as the module says."""
    free = images.given == FREE
    split = np.where(_below(images.digest, 0, test_share), np.int8(TEST), np.int8(TRAIN))
    split = np.where(free, split, images.given)
    split[_without(split == TEST, images.label, free)] = TEST
    # The other way round: the first of the reversed order is the highest digest.
    reversed_order = slice(None, None, -1)
    needed = _without(split[reversed_order] == TRAIN, images.label[reversed_order], free[reversed_order])
    split[len(split) - 1 - needed] = TRAIN

    held_out = (split == TRAIN) & _below(images.digest, 8, validation_share)
    if (images.given == VALIDATION).any():
        held_out &= free
    held_out[_without((split == TRAIN) & ~held_out, images.label, held_out)] = False
    split[held_out] = VALIDATION
    return split


def pixel_spec(side: Codes, channels: Codes, config: PrepareConfig) -> PixelSpec:
    """What images of these longer sides and stored channels become."""
    largest = int(side.max(initial=0))
    auto = next((size for size in AUTO_SIZES if largest <= size), LARGE_SIZE)
    size = auto if config.size == "auto" else config.size
    grey = config.colour == "grey" or (config.colour == "auto" and bool((channels == 1).all()))
    return PixelSpec(height=size, width=size, channels=1 if grey else 3, fit=config.fit)


def version_of(classes: Sequence[str], pixels: PixelSpec, images: Images, split: Codes) -> str:
    """16 hexadecimal digits of the SHA-256 of a dataset's logical content."""
    content = {"format": FORMAT, "classes": classes, "pixels": pixels.model_dump()}
    digest = hashlib.sha256(digest_of(content).encode())
    row = np.dtype([("digest", np.uint8, 32), ("label", "<u4"), ("split", "u1")])
    for start in range(0, len(split), HASHED_AT_ONCE):
        part = slice(start, start + HASHED_AT_ONCE)
        rows = np.empty(len(split[part]), row)
        rows["digest"], rows["label"], rows["split"] = images.digest[part], images.label[part], split[part]
        digest.update(rows.tobytes())
    return digest.hexdigest()[:16]


def _settle_labels(
    candidates: Candidates, rows: Codes, image: Codes, count: int
) -> tuple[Flags, Flags, dict[int, str]]:
    """Which rows keep their label, which are in a conflict that nobody settled, and why rows are left out."""
    label, named = candidates.label[rows], candidates.named[rows]
    low, high = _extremes(image, label, count)
    named_low, named_high = _extremes(image[named], label[named], count)
    winner = np.where(named_low == named_high, named_high, LEFT_OUT)
    contradictory = (low != high)[image]
    right = ~contradictory | (label == winner[image])
    conflicting = contradictory & (winner[image] == LEFT_OUT)
    reasons = {}
    for row in np.flatnonzero(~right):
        own, of = label[row], image[row]
        if conflicting[row]:
            other = high[of] if own == low[of] else low[of]
            reason = f"the same bytes are labelled {candidates.classes[other]!r} too: delete one, or name it in keep"
        else:
            reason = f"the same bytes are labelled {candidates.classes[winner[of]]!r} by a key that is named in keep"
        reasons[int(rows[row])] = f"conflicting labels: {reason}"
    return right, conflicting, reasons


def _settle_given(
    candidates: Candidates, rows: Codes, image: Codes, right: Flags, count: int
) -> tuple[Codes, Flags, dict[int, str]]:
    """The split that is given to each image, which rows leave the one that they were given, and why."""
    given = candidates.given[rows]
    strictest = np.full(count, FREE, np.int8)
    np.maximum.at(strictest, image[right], given[right])
    leaving = right & (given > FREE) & (given < strictest[image])
    reasons = {
        int(
            rows[row]
        ): f"the same bytes are given to {_name(strictest[image[row]])} too: they leave {_name(given[row])}"
        for row in np.flatnonzero(leaving)
    }
    return strictest, leaving, reasons


def _problems(candidates: Candidates, lost: Flags, label: Codes, split: Codes) -> Iterator[str]:
    """What stands in the way of a dataset, the plainest first."""
    classes, total = candidates.classes, len(candidates.label)
    unreadable = int((~candidates.readable).sum())
    limit = max(UNREADABLE_IMAGES, int(UNREADABLE_SHARE * total))
    if unreadable > limit:
        yield f"{unreadable:,} of {total:,} images cannot be read, and {limit:,} is the limit: repair or delete them"
    sizes = np.bincount(candidates.label, minlength=len(classes))
    losses = np.bincount(candidates.label[lost], minlength=len(classes))
    half = np.flatnonzero(2 * losses >= sizes)
    if half.size:
        worst = half[0]
        yield (
            f"Half of the images or more would be left out in {_names(classes, half)} ({losses[worst]:,} of "
            f"{sizes[worst]:,} in {classes[worst]!r}): repair them or delete them"
        )
    if len(classes) < 2:
        only = f"only one class, {classes[0]!r}" if classes else "no class"
        yield f"There is {only}, and a classifier needs two: add images with another label"
    for name, there in (
        ("second image", np.bincount(label, minlength=len(classes)) > 1),
        ("training image", np.isin(np.arange(len(classes)), label[split == TRAIN])),
        ("test image", np.isin(np.arange(len(classes)), label[split == TEST])),
    ):
        if not there.all():
            yield (
                f"There is no {name} in {_names(classes, np.flatnonzero(~there))}: a class needs images for training "
                "and for test, so add some, change the splits in labels.csv, or remove it"
            )


def _extremes(image: Codes, label: Codes, count: int) -> tuple[Codes, Codes]:
    """The lowest and the highest label of each image; unequal where it has none."""
    low, high = np.full(count, np.iinfo(np.int32).max, np.int32), np.full(count, LEFT_OUT, np.int32)
    np.minimum.at(low, image, label)
    np.maximum.at(high, image, label)
    return low, high


def _below(digest: Digests, start: int, share: float) -> Flags:
    """Whether 8 bytes of each digest, read as a fraction, are below ``share``."""
    numbers = np.ascontiguousarray(digest[:, start : start + 8]).view(">u8").ravel()
    return numbers < np.uint64(int(share * 2**64))


def _without(there: Flags, label: Codes, movable: Flags) -> Codes:
    """For each class of two images or more in which nothing is ``there``: its first movable position, if any."""
    classes = int(label.max(initial=-1)) + 1
    needy = (np.bincount(label, minlength=classes) >= 2) & (np.bincount(label[there], minlength=classes) == 0)
    positions = np.flatnonzero(needy[label] & movable)
    _, first = np.unique(label[positions], return_index=True)
    return positions[first]


def _name(code: int) -> str:
    return SPLITS[code - TRAIN]


def _names(classes: Sequence[str], chosen: Codes) -> str:
    names = [repr(classes[code]) for code in chosen]
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{'class' if len(names) == 1 else 'classes'} {', '.join(names[:NAMES_SHOWN])}{more}"
