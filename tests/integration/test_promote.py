"""The quality gate against a real object store: each test says which images which model gets right."""

import pytest
from table_models import CATS_AND_DOGS, GATE, MODEL, TEST_IMAGES, all_but, champion, prepared, registered

from pipeline import aliases, registry
from pipeline.aliases import CHALLENGER, CHAMPION
from pipeline.artifacts import GateConfig
from pipeline.errors import Corrupted, NotFound
from pipeline.progress import Progress
from pipeline.promote import promote
from pipeline.zones import Zones


def test_the_first_model_must_reach_the_minimum(zones: Zones) -> None:
    """Without a champion the minimum accuracy alone decides, and a refused model gets no alias."""
    dataset = prepared(zones, CATS_AND_DOGS)
    bad = registered(zones, dataset, CATS_AND_DOGS, all_but(9), number=1)
    decision = promote(zones, bad, GATE)
    assert (decision.promoted, decision.champion, decision.challenger_accuracy) == (False, None, 0.55)
    assert champion(zones) is None
    good = registered(zones, dataset, CATS_AND_DOGS, all_but(8), number=2)
    decision = promote(zones, good, GATE)
    assert (decision.promoted, decision.champion_accuracy) == (True, None)
    assert champion(zones) == good.version


def test_the_better_model_becomes_the_champion(zones: Zones) -> None:
    """The champion is judged anew on the same images, and only a better challenger replaces it."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, equal, better = (
        registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=number)
        for number, wrong in ((1, 4), (2, 4), (3, 3))
    )
    assert promote(zones, first, GATE).promoted
    decision = promote(zones, equal, GATE)
    assert (decision.promoted, decision.champion, decision.champion_accuracy) == (False, first, 0.8)
    assert champion(zones) == first.version
    decision = promote(zones, better, GATE)
    assert (decision.promoted, decision.challenger_accuracy, decision.champion_accuracy) == (True, 0.85, 0.8)
    assert champion(zones) == better.version
    found = aliases.read_alias(zones.models, MODEL, CHAMPION)
    assert found is not None
    assert found[0].reason == f"Promoted: {decision.reasons[0]}"


def test_before_a_canary_the_better_model_becomes_the_challenger(zones: Zones) -> None:
    """The first version goes live at once, a worse one gets nothing, a better one the other alias."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, equal, better = (
        registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=number)
        for number, wrong in ((1, 4), (2, 4), (3, 3))
    )
    for version, alias, promoted in ((first, CHAMPION, True), (equal, CHALLENGER, False), (better, CHALLENGER, True)):
        decision = promote(zones, version, GATE, by_canary=True)
        assert (decision.promoted, decision.alias) == (promoted, alias)
        assert champion(zones) == first.version
    assert aliases.list_aliases(zones.models, MODEL) == {CHALLENGER: better.version, CHAMPION: first.version}


def test_the_champion_stays_the_champion(zones: Zones) -> None:
    """Judged again, the champion is promoted already: nothing is written, and the flow can go on."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first = registered(zones, dataset, CATS_AND_DOGS, all_but(4), number=1)
    promote(zones, first, GATE)
    before = aliases.read_alias(zones.models, MODEL, CHAMPION)
    decision = promote(zones, first, GATE)
    assert (decision.promoted, decision.champion, decision.challenger_accuracy) == (True, first, 0.8)
    assert decision.reasons == (f"Version {first.version} is the champion already.",)
    assert aliases.read_alias(zones.models, MODEL, CHAMPION) == before


def test_a_withdrawn_champion_is_none(zones: Zones) -> None:
    """Where the alias points at nothing, the next model is judged like the first one."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, second = (registered(zones, dataset, CATS_AND_DOGS, all_but(4), number=number) for number in (1, 2))
    promote(zones, first, GATE)
    aliases.withdraw(zones.models, MODEL, CHAMPION, first.version, "It did not answer.")
    decision = promote(zones, second, GATE)
    assert (decision.promoted, decision.champion) == (True, None)
    assert champion(zones) == second.version


@pytest.mark.parametrize(("size", "colour"), [(8, "grey"), (32, "rgb")])
def test_the_champion_is_judged_with_its_own_preprocessing(zones: Zones, size: int, colour: str) -> None:
    """A champion for other pixels answers the challenger's images decoded as it wants them."""
    theirs = prepared(zones, CATS_AND_DOGS, size=size, colour=colour)
    first = registered(zones, theirs, CATS_AND_DOGS, all_but(6), number=1)
    promote(zones, first, GATE)
    ours = prepared(zones, CATS_AND_DOGS)
    assert ours.pixels != theirs.pixels
    second = registered(zones, ours, CATS_AND_DOGS, all_but(5), number=2)
    decision = promote(zones, second, GATE)
    assert (decision.promoted, decision.challenger_accuracy, decision.champion_accuracy) == (True, 0.75, 0.7)


def test_a_champion_for_other_pixels_answers_though_the_raw_images_are_gone(zones: Zones) -> None:
    """Where the raw images were deleted, the champion gets the challenger's stored pixels."""
    theirs = prepared(zones, CATS_AND_DOGS, size=8)
    promote(zones, registered(zones, theirs, CATS_AND_DOGS, all_but(6), number=1), GATE)
    second = registered(zones, prepared(zones, CATS_AND_DOGS), CATS_AND_DOGS, all_but(5), number=2)
    zones.images.delete([stored.key for stored in zones.images.listing("pets")])
    assert promote(zones, second, GATE).champion_accuracy == 0.7


def test_classes_are_matched_by_label(zones: Zones) -> None:
    """A new class that shifts all class indices counts as the champion's error, and the others as they are."""
    first = registered(zones, prepared(zones, CATS_AND_DOGS), CATS_AND_DOGS, all_but(4), number=1)
    promote(zones, first, GATE)
    with_ants = {**CATS_AND_DOGS, **dict.fromkeys(range(100, 105), "ant")}
    dataset = prepared(zones, with_ants)
    assert dataset.classes == ("ant", "cat", "dog")
    second = registered(zones, dataset, with_ants, {**all_but(5), **dict.fromkeys(range(100, 105), "ant")}, number=2)
    decision = promote(zones, second, GATE)
    assert (decision.promoted, decision.challenger_accuracy, decision.champion_accuracy) == (True, 20 / 25, 16 / 25)
    assert any("does not know 'ant' (recall 1.0000)" in reason for reason in decision.reasons)


def test_a_removed_class_needs_permission(zones: Zones) -> None:
    """A challenger that lacks a class of the champion is promoted only where a person allows it."""
    with_ants = {**CATS_AND_DOGS, **dict.fromkeys(range(100, 105), "ant")}
    first = registered(zones, prepared(zones, with_ants), with_ants, all_but(9, with_ants), number=1)
    assert promote(zones, first, GATE).promoted
    second = registered(zones, prepared(zones, CATS_AND_DOGS), CATS_AND_DOGS, CATS_AND_DOGS, number=2)
    refused = promote(zones, second, GATE)
    assert (refused.promoted, champion(zones)) == (False, first.version)
    assert "'ant'" in refused.reasons[0]
    assert promote(zones, second, GATE.model_copy(update={"allow": ("removed_class",)})).promoted


def test_a_lost_class_is_refused(zones: Zones) -> None:
    """A challenger that is better overall and worse at one class is not promoted."""
    dataset = prepared(zones, CATS_AND_DOGS)
    cats_wrong = {value: "dog" if value < 10 else label for value, label in CATS_AND_DOGS.items()}
    dogs_wrong = {value: "cat" if value < 4 else label for value, label in CATS_AND_DOGS.items()}
    first, second = (
        registered(zones, dataset, CATS_AND_DOGS, answered, number=number)
        for number, answered in ((1, cats_wrong), (2, dogs_wrong))
    )
    promote(zones, first, GATE)
    decision = promote(zones, second, GateConfig(class_images=10))
    assert not decision.promoted
    assert decision.challenger_accuracy > (decision.champion_accuracy or 1)
    assert "'dog' loses 0.2000 on 10 images" in decision.reasons[0]


def test_test_images_that_the_champion_saw_need_permission(zones: Zones) -> None:
    """Test images that the champion was trained on are counted, and need a person's permission."""
    seen = {value: CATS_AND_DOGS[value] for value in range(7)}
    other_test = {value: ("cat", "dog")[value % 2] for value in range(50, 60)}
    first = registered(zones, prepared(zones, other_test, train=seen), other_test, all_but(0), number=1)
    promote(zones, first, GateConfig(class_images=100, minimum_accuracy=0))
    better = registered(zones, prepared(zones, CATS_AND_DOGS), CATS_AND_DOGS, all_but(0), number=2)
    gate = GATE.model_copy(update={"margin": -0.1})
    decision = promote(zones, better, gate)
    assert not decision.promoted
    assert "7 of the 20 test images" in decision.reasons[0]
    assert promote(zones, better, gate.model_copy(update={"allow": ("seen_test_images",)})).promoted


def test_a_champion_whose_dataset_is_gone_needs_permission(zones: Zones) -> None:
    """Where the champion's dataset version was deleted, nobody knows what it saw, and the reason says so."""
    first = registered(zones, prepared(zones, CATS_AND_DOGS, size=8), CATS_AND_DOGS, all_but(4), number=1)
    promote(zones, first, GATE)
    gone = registry.read_manifest(zones.models, MODEL, first.version).dataset
    second = registered(zones, prepared(zones, CATS_AND_DOGS), CATS_AND_DOGS, all_but(0), number=2)
    zones.datasets.delete([stored.key for stored in zones.datasets.listing(f"pets/{gone.version}")])
    decision = promote(zones, second, GATE)
    assert not decision.promoted
    assert decision.reasons[0].startswith("The champion's dataset version is gone")
    assert promote(zones, second, GATE.model_copy(update={"allow": ("seen_test_images",)})).promoted


def test_answers_that_are_not_numbers(zones: Zones) -> None:
    """A challenger that answers NaN is never promoted; a champion that does has no correct answer."""
    dataset = prepared(zones, CATS_AND_DOGS)
    broken = registered(zones, dataset, CATS_AND_DOGS, CATS_AND_DOGS, number=1, nan=True)
    decision = promote(zones, broken, GATE.model_copy(update={"minimum_accuracy": 0.0}))
    assert (decision.promoted, decision.challenger_accuracy, champion(zones)) == (False, 0, None)
    assert "20 test images is not a number" in decision.reasons[0]
    aliases.set_alias(zones.models, MODEL, CHAMPION, broken.version, reason="by hand")
    decision = promote(zones, registered(zones, dataset, CATS_AND_DOGS, all_but(4), number=2), GATE)
    assert (decision.promoted, decision.champion_accuracy) == (True, 0)


def test_predictions_of_other_images_are_refused(zones: Zones) -> None:
    """Stored predictions that do not cover exactly the test split are no base for a decision."""
    dataset = prepared(zones, CATS_AND_DOGS)
    fewer = {value: label for value, label in CATS_AND_DOGS.items() if value}
    challenger = registered(zones, dataset, fewer, CATS_AND_DOGS, number=1)
    with pytest.raises(Corrupted, match="are of other images than the test split of 'pets'"):
        promote(zones, challenger, GATE)
    assert champion(zones) is None


@pytest.mark.parametrize("name", ["predictions.parquet", "model.onnx"])
def test_an_altered_file_decides_nothing(zones: Zones, name: str) -> None:
    """Altered predictions of the challenger, or an altered champion, are an error and the alias stays."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, second = (registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=wrong) for wrong in (5, 2))
    promote(zones, first, GATE)
    altered = second if name == "predictions.parquet" else first
    zones.models.put(f"{MODEL}/{altered.version}/{name}", b"altered")
    with pytest.raises(Corrupted, match=name):
        promote(zones, second, GATE)
    assert champion(zones) == first.version


def test_a_deleted_champion_is_named(zones: Zones) -> None:
    """An alias that points at a deleted version is an error that says how to go on."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, second = (registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=wrong) for wrong in (5, 2))
    promote(zones, first, GATE)
    zones.models.delete([f"{MODEL}/{first.version}/manifest.json"])
    with pytest.raises(NotFound, match=f"points at version {first.version}, which is not stored any more: point it at"):
        promote(zones, second, GATE)
    with pytest.raises(NotFound, match="has no version"):
        promote(zones, first, GATE)


def test_progress_counts_every_test_image(zones: Zones) -> None:
    """Judging reports how many of the test images the champion has answered, up to all of them."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, second = (registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=wrong) for wrong in (5, 2))
    promote(zones, first, GATE)
    told: list[Progress] = []
    promote(zones, second, GATE, on_progress=told.append)
    judging = [each for each in told if each.stage == "judging the champion"]
    assert (judging[-1].done, judging[-1].total) == (TEST_IMAGES, TEST_IMAGES)


def test_a_large_test_split_comes_in_batches(zones: Zones) -> None:
    """A test split of more images than one batch is judged in several, each image once."""
    test = {number: ("cat", "dog")[number % 2] for number in range(300)}
    wrong = {value: ("dog", "cat")[value % 2] if value < 10 else label for value, label in test.items()}
    dataset = prepared(zones, test)
    first, second = registered(zones, dataset, test, wrong, number=1), registered(zones, dataset, test, test, number=2)
    promote(zones, first, GATE)
    told: list[Progress] = []
    decision = promote(zones, second, GATE, on_progress=told.append)
    assert [each.done for each in told if each.stage == "judging the champion"] == [256, 300]
    assert (decision.champion_accuracy, decision.challenger_accuracy) == (280 / 300, 1)
