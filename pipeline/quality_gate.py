"""The quality gate's rule: whether a challenger may become the champion, and why. Pure; ``promote`` carries it out.

The rule counts images, in exact arithmetic with the bounds as a person wrote them: an accuracy that equals a bound
never falls on the wrong side by a rounding error. Equal to the minimum is enough; equal to the margin is enough, except
at a margin of 0, where one more correct image is needed; a class may lose exactly the bound.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from pipeline.artifacts import GateConfig
from pipeline.errors import listed

NAMED = 10
"""Classes that a reason names one by one."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What one model answers on the test images.

    Attributes:
        classes: the labels that it knows.
        correct: test images answered with their own label, by that label; labels without any may be left out.
        unanswered: test images whose answer is not a number.
    """

    classes: tuple[str, ...]
    correct: Mapping[str, int]
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that the rule decides by, beside its bounds.

    Attributes:
        images: test images by label; every label is one of the challenger's classes.
        challenger: what the challenger answers on them.
        champion: what the champion answers on them, if there is one.
        seen: how many of them the champion was trained on or chosen by; None if that cannot be known.
    """

    images: Mapping[str, int]
    challenger: Tally
    champion: Tally | None = None
    seen: int | None = 0

    @property
    def total(self) -> int:
        """Test images in all."""
        return sum(self.images.values())

    def accuracy(self, tally: Tally) -> Fraction:
        """Share of the test images that are answered correctly; 0 if there are none."""
        return _share(sum(tally.correct.values()), self.total)

    def recall(self, tally: Tally, label: str) -> Fraction:
        """Share of one class's test images that are answered correctly."""
        return _share(tally.correct.get(label, 0), self.images[label])


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the gate looked at: whether it stands in the way, and the sentence that says so."""

    fine: bool
    sentence: str


def decide(comparison: Comparison, gate: GateConfig) -> tuple[bool, tuple[str, ...]]:
    """Whether the challenger may become the champion, and one sentence per finding.

    What stands in the way comes first; otherwise what decided for the challenger does.
    """
    champion = comparison.champion
    findings = [
        *(_gain(comparison, champion, gate) if champion else ()),
        *_minimum(comparison, gate),
        *(_against(comparison, champion, gate) if champion else [Finding(True, "There is no champion yet.")]),
    ]
    findings.sort(key=lambda finding: finding.fine)
    return all(finding.fine for finding in findings), tuple(finding.sentence for finding in findings)


def _minimum(comparison: Comparison, gate: GateConfig) -> Iterator[Finding]:
    if not comparison.total:
        yield Finding(False, "There are no test images to judge by.")
    if nan := comparison.challenger.unanswered:
        yield Finding(False, f"The challenger's answer to {nan:,} test images is not a number: it cannot go live.")
    accuracy = comparison.accuracy(comparison.challenger)
    fine = accuracy >= _written(gate.minimum_accuracy)
    verdict = "reaches" if fine else "is below"
    yield Finding(
        fine, f"The challenger's accuracy of {float(accuracy):.4f} {verdict} the minimum of {gate.minimum_accuracy:g}."
    )


def _gain(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    ours, theirs = comparison.accuracy(comparison.challenger), comparison.accuracy(champion)
    gain = ours - theirs
    fine = gain >= _written(gate.margin) and (gain > 0 or gate.margin < 0)
    difference = f"{'better' if gain > 0 else 'worse'} by {float(abs(gain)):.4f}" if gain else "equally good"
    if fine:
        verdict = f"which meets the margin of {gate.margin:g}"
    else:
        verdict = (
            f"but must be better by {gate.margin:g}" if gate.margin else "but must be better by one image at least"
        )
    yield Finding(
        fine,
        f"On {comparison.total:,} test images the challenger's accuracy is {float(ours):.4f} and the champion's "
        f"{float(theirs):.4f}: the challenger is {difference}, {verdict}.",
    )


def _against(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    """What else there is to say of a champion and its challenger."""
    yield from _losses(comparison, champion, gate)
    yield from _new_classes(comparison, champion)
    yield from _removed_classes(comparison, champion, gate)
    yield from _seen_images(comparison, gate)
    if champion.unanswered:
        yield Finding(
            True, f"The champion's answer to {champion.unanswered:,} test images is not a number: errors all."
        )


def _losses(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    shared = [label for label in champion.classes if comparison.images.get(label)]
    judged = [label for label in shared if comparison.images[label] >= gate.class_images]
    loss = {
        label: comparison.recall(champion, label) - comparison.recall(comparison.challenger, label) for label in judged
    }
    broken = [label for label in judged if loss[label] > _written(gate.class_drop)]
    if broken:
        told = [
            f"{label!r} loses {float(loss[label]):.4f} on {comparison.images[label]:,} images"
            for label in sorted(broken, key=lambda label: -loss[label])
        ]
        yield Finding(
            False, f"A class may lose {gate.class_drop:g} of the champion's recall, but {listed(told, NAMED)}."
        )
    elif judged:
        yield Finding(True, f"No class of {len(judged)} loses more than {gate.class_drop:g} of the champion's recall.")
    if small := len(shared) - len(judged):
        yield Finding(True, f"Classes with under {gate.class_images} test images are not judged alone: {small} here.")


def _new_classes(comparison: Comparison, champion: Tally) -> Iterator[Finding]:
    new = [label for label, count in comparison.images.items() if count and label not in champion.classes]
    if not new:
        return
    told = [f"{label!r} (recall {float(comparison.recall(comparison.challenger, label)):.4f})" for label in new]
    old = [label for label in comparison.images if label not in new]
    total = sum(comparison.images[label] for label in old)
    ours, theirs = (
        float(_share(sum(tally.correct.get(label, 0) for label in old), total))
        for tally in (comparison.challenger, champion)
    )
    yield Finding(
        True,
        f"The champion does not know {listed(told, NAMED)}, which counts as its error; on the {total:,} images of the "
        f"other classes the challenger's accuracy is {ours:.4f} and the champion's {theirs:.4f}.",
    )


def _removed_classes(comparison: Comparison, champion: Tally, gate: GateConfig) -> Iterator[Finding]:
    removed = [repr(label) for label in champion.classes if label not in comparison.challenger.classes]
    if removed:
        sentence = f"The challenger does not know {listed(removed, NAMED)}, which the champion does"
        yield _needs("removed_class", sentence, gate)


def _seen_images(comparison: Comparison, gate: GateConfig) -> Iterator[Finding]:
    if comparison.seen is None:
        sentence = "The champion's dataset version is gone, so it may have been trained on any of these test images"
        yield _needs("seen_test_images", sentence, gate)
    elif comparison.seen:
        sentence = (
            f"The champion was trained on, or chosen by, {comparison.seen:,} of the {comparison.total:,} test images, "
            "which flatters it"
        )
        yield _needs("seen_test_images", sentence, gate)


def _needs(permission: str, sentence: str, gate: GateConfig) -> Finding:
    if permission in gate.allow:
        return Finding(True, f"{sentence}; this is allowed.")
    return Finding(False, f"{sentence}: allow {permission!r} to accept that.")


def _share(part: int, whole: int) -> Fraction:
    return Fraction(part, whole) if whole else Fraction(0)


def _written(bound: float) -> Fraction:
    """A bound as a person wrote it: 0.07 is 7/100, not the nearest binary number."""
    return Fraction(repr(bound))
