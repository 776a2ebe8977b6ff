"""The quality gate's rule, with plain values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import GateConfig
from pipeline.quality_gate import Comparison, Tally, decide

IMAGES = {"cat": 100, "dog": 100}


def tally(cat: int, dog: int, **more: int) -> Tally:
    """A model that knows cats and dogs, and answers so many of each correctly."""
    return Tally(("cat", "dog"), {"cat": cat, "dog": dog}, **more)


def compared(challenger: Tally, champion: Tally | None, seen: int | None = 0) -> Comparison:
    """A hundred test images of each."""
    return Comparison(IMAGES, challenger, champion, seen)


@pytest.mark.parametrize(
    ("challenger", "champion", "gate", "promoted"),
    [
        # the first model
        ((60, 60), None, {}, True),
        ((60, 59), None, {}, False),
        ((0, 0), None, {"minimum_accuracy": 0}, True),
        # better than the champion
        ((80, 81), (80, 80), {}, True),
        ((80, 80), (80, 80), {}, False),
        ((80, 79), (80, 80), {}, False),
        ((80, 79), (80, 80), {"margin": -0.005}, True),
        ((80, 78), (80, 80), {"margin": -0.005}, False),
        ((80, 80), (80, 80), {"margin": -0.005}, True),
        ((87, 87), (80, 80), {"margin": 0.07}, True),
        ((87, 86), (80, 80), {"margin": 0.07}, False),
        # better than the champion, and still not good enough
        ((50, 50), (40, 40), {}, False),
        # one class pays for another
        ((100, 75), (80, 80), {}, True),
        ((100, 74), (80, 80), {}, False),
        ((100, 74), (80, 80), {"class_drop": 0.06}, True),
        ((100, 74), (80, 80), {"class_images": 101}, True),
        ((100, 74), (80, 80), {"class_images": 100}, False),
    ],
)
def test_bounds(
    challenger: tuple[int, int], champion: tuple[int, int] | None, gate: dict[str, float], promoted: bool
) -> None:
    """Each bound holds to the image: met exactly it is met, and one image less breaks it."""
    comparison = compared(tally(*challenger), tally(*champion) if champion else None)
    assert decide(comparison, GateConfig.model_validate(gate))[0] is promoted


@pytest.mark.parametrize(
    ("comparison", "gate", "first"),
    [
        (
            compared(tally(50, 50), None),
            {},
            "The challenger's accuracy of 0.5000 is below the minimum of 0.6.",
        ),
        (
            compared(tally(70, 70), None),
            {},
            "The challenger's accuracy of 0.7000 reaches the minimum of 0.6.",
        ),
        (
            compared(tally(80, 80), tally(80, 80)),
            {},
            "On 200 test images the challenger's accuracy is 0.8000 and the champion's 0.8000: the challenger is "
            "equally good, but must be better by one image at least.",
        ),
        (
            compared(tally(80, 79), tally(80, 80)),
            {"margin": 0.01},
            "On 200 test images the challenger's accuracy is 0.7950 and the champion's 0.8000: the challenger is "
            "worse by 0.0050, but must be better by 0.01.",
        ),
        (
            compared(tally(80, 82), tally(80, 80)),
            {"margin": 0.01},
            "On 200 test images the challenger's accuracy is 0.8100 and the champion's 0.8000: the challenger is "
            "better by 0.0100, which meets the margin of 0.01.",
        ),
        (
            compared(tally(100, 74), tally(80, 80)),
            {},
            "A class may lose 0.05 of the champion's recall, but 'dog' loses 0.0600 on 100 images.",
        ),
        (
            compared(tally(90, 90, unanswered=3), None),
            {},
            "The challenger's answer to 3 test images is not a number: it cannot go live.",
        ),
        (
            compared(tally(90, 90), tally(80, 80), seen=12),
            {},
            "The champion was trained on, or chosen by, 12 of the 200 test images, which flatters it: allow "
            "'seen_test_images' to accept that.",
        ),
        (
            compared(tally(90, 90), tally(80, 80), seen=None),
            {},
            "The champion's dataset version is gone, so it may have been trained on any of these test images: allow "
            "'seen_test_images' to accept that.",
        ),
        (
            compared(tally(90, 90), Tally(("cat", "dog", "emu"), {"cat": 80, "dog": 80})),
            {},
            "The challenger does not know 'emu', which the champion does: allow 'removed_class' to accept that.",
        ),
        (
            Comparison({}, Tally(("cat", "dog"), {})),
            {"minimum_accuracy": 0},
            "There are no test images to judge by.",
        ),
    ],
)
def test_the_deciding_reason_comes_first(comparison: Comparison, gate: dict[str, float], first: str) -> None:
    """The first reason is what decided, as a sentence with its figures."""
    assert decide(comparison, GateConfig.model_validate(gate))[1][0] == first


def test_a_class_that_the_champion_lacks_is_its_error_and_told_apart() -> None:
    """A new class counts against the champion overall; the reasons compare the old classes alone too."""
    images = {"cat": 100, "dog": 100, "emu": 50}
    challenger = Tally(("cat", "dog", "emu"), {"cat": 79, "dog": 79, "emu": 45})
    promoted, reasons = decide(Comparison(images, challenger, tally(80, 80)), GateConfig())
    assert promoted
    assert reasons[0].startswith("On 250 test images the challenger's accuracy is 0.8120 and the champion's 0.6400")
    assert (
        "The champion does not know 'emu' (recall 0.9000), which counts as its error; on the 200 images of the other "
        "classes the challenger's accuracy is 0.7900 and the champion's 0.8000." in reasons
    )


def test_a_new_class_is_not_judged_as_a_loss() -> None:
    """The per-class bound is for classes that both models know."""
    images = {"cat": 100, "emu": 100}
    challenger = Tally(("cat", "emu"), {"cat": 90, "emu": 40})
    assert decide(Comparison(images, challenger, Tally(("cat",), {"cat": 80})), GateConfig())[0]


@pytest.mark.parametrize(
    ("champion", "seen", "permission"),
    [
        (Tally(("cat", "dog", "emu"), {"cat": 80, "dog": 80}), 0, "removed_class"),
        (tally(80, 80), 1, "seen_test_images"),
        (tally(80, 80), None, "seen_test_images"),
    ],
)
def test_what_a_person_can_allow(champion: Tally, seen: int | None, permission: str) -> None:
    """A removed class and seen test images need their own permission, and are told of even when allowed."""
    comparison = compared(tally(90, 90), champion, seen)
    other = {"removed_class": "seen_test_images", "seen_test_images": "removed_class"}[permission]
    assert not decide(comparison, GateConfig())[0]
    assert not decide(comparison, GateConfig.model_validate({"allow": [other]}))[0]
    promoted, reasons = decide(comparison, GateConfig.model_validate({"allow": [permission]}))
    assert promoted
    assert any(reason.endswith("; this is allowed.") for reason in reasons)


def test_a_champion_without_numbers_can_be_replaced() -> None:
    """Answers of the champion that are not numbers are its errors, and do not protect it."""
    promoted, reasons = decide(compared(tally(80, 80), tally(10, 10, unanswered=180)), GateConfig())
    assert promoted
    assert "The champion's answer to 180 test images is not a number: errors all." in reasons


def test_the_worst_class_is_told_first() -> None:
    """Where several classes lose too much, they are told in the order of their losses."""
    reasons = decide(compared(tally(70, 60), tally(80, 80)), GateConfig())[1]
    assert any("but 'dog' loses 0.2000 on 100 images, 'cat' loses 0.1000 on 100 images." in text for text in reasons)


def test_many_classes_are_told_in_one_sentence() -> None:
    """With five hundred failing classes the reason names ten and counts the others."""
    images = {f"class {number}": 50 for number in range(500)}
    classes = tuple(images)
    challenger, champion = Tally(classes, dict.fromkeys(classes, 30)), Tally(classes, dict.fromkeys(classes, 40))
    promoted, reasons = decide(Comparison(images, challenger, champion), GateConfig())
    assert not promoted
    assert all(len(reason) < 1000 for reason in reasons)
    assert any(reason.endswith("and 490 more.") for reason in reasons)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    """Any comparison: classes come, go and stay, and each model answers any number of each correctly."""
    ours = tuple(draw(st.sets(st.sampled_from("abcde"), min_size=1)))
    theirs = tuple(draw(st.sets(st.sampled_from("abcde"), min_size=1)))
    images = {label: draw(st.integers(1, 60)) for label in ours}
    challenger = Tally(
        ours, {label: draw(st.integers(0, images[label])) for label in ours}, draw(st.sampled_from([0, 0, 1]))
    )
    champion = Tally(theirs, {label: draw(st.integers(0, images[label])) for label in theirs if label in images})
    return Comparison(
        images,
        challenger,
        draw(st.sampled_from([champion, champion, None])),
        draw(st.sampled_from([0, 0, 3, None])),
    )


def shares() -> st.SearchStrategy[float]:
    """Bounds as people write them: with up to three decimals."""
    return st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@st.composite
def gates(draw: st.DrawFn) -> GateConfig:
    """Any bounds."""
    return GateConfig(
        minimum_accuracy=draw(shares()),
        margin=draw(shares()) - draw(st.sampled_from([0, 0, 1])),
        class_drop=draw(shares()),
        class_images=draw(st.integers(1, 40)),
        allow=tuple(draw(st.sets(st.sampled_from(["removed_class", "seen_test_images"])))),
    )


def broken_bounds(comparison: Comparison, gate: GateConfig) -> list[str]:
    """The bounds that a comparison breaks, counted in thousandths: a second statement of the rule."""
    total = sum(comparison.images.values())
    ours = sum(comparison.challenger.correct.values())
    champion = comparison.champion
    broken = ["minimum"] if 1000 * ours < round(1000 * gate.minimum_accuracy) * total else []
    broken += ["numbers"] if comparison.challenger.unanswered else []
    if champion is None:
        return broken
    gain, margin = ours - sum(champion.correct.values()), round(1000 * gate.margin)
    broken += ["margin"] if 1000 * gain < margin * total or (margin >= 0 and gain <= 0) else []
    broken += [
        label
        for label in set(champion.classes) & set(comparison.images)
        if (count := comparison.images[label]) >= gate.class_images
        and 1000 * (champion.correct[label] - comparison.challenger.correct[label])
        > round(1000 * gate.class_drop) * count
    ]
    if set(champion.classes) - set(comparison.challenger.classes) and "removed_class" not in gate.allow:
        broken.append("removed_class")
    if comparison.seen != 0 and "seen_test_images" not in gate.allow:
        broken.append("seen_test_images")
    return broken


@given(comparisons(), gates())
def test_promoted_exactly_when_no_bound_is_broken(comparison: Comparison, gate: GateConfig) -> None:
    """The rule agrees with its second statement, and always gives its reasons as sentences."""
    promoted, reasons = decide(comparison, gate)
    assert promoted is (not broken_bounds(comparison, gate))
    assert reasons
    assert all(reason[0].isupper() and reason.endswith(".") for reason in reasons)


@given(comparisons(), gates(), st.data())
def test_a_better_challenger_is_never_worse_off(comparison: Comparison, gate: GateConfig, data: st.DataObject) -> None:
    """One more correct answer, or one less of the champion's, never turns a promotion into a refusal."""
    label = data.draw(st.sampled_from(sorted(comparison.images)))
    more = min(comparison.images[label], comparison.challenger.correct[label] + 1)
    challenger = Tally(
        comparison.challenger.classes,
        {**comparison.challenger.correct, label: more},
        comparison.challenger.unanswered,
    )
    champion = comparison.champion
    if champion and label in champion.classes and data.draw(st.booleans()):
        fewer = max(0, champion.correct[label] - 1)
        champion = Tally(champion.classes, {**champion.correct, label: fewer})
    better = Comparison(comparison.images, challenger, champion, comparison.seen)
    assert decide(better, gate)[0] or not decide(comparison, gate)[0]


@given(comparisons(), gates(), shares())
def test_a_stricter_gate_never_lets_more_through(comparison: Comparison, gate: GateConfig, share: float) -> None:
    """Raising a bound, or withdrawing a permission, never turns a refusal into a promotion."""
    stricter: list[dict[str, object]] = [
        {"minimum_accuracy": max(gate.minimum_accuracy, share)},
        {"margin": max(gate.margin, share)},
        {"class_drop": min(gate.class_drop, share)},
        {"class_images": 1},
        {"allow": ()},
    ]
    for change in stricter:
        assert decide(comparison, gate)[0] or not decide(comparison, gate.model_copy(update=change))[0]
