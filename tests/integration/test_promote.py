"""The quality gate against a real object store, with real ONNX models that answer as each test wants.

A picture shows its number as a grey value; a model is a table from that value to the label that it answers. So each
test says exactly which images which model gets right, and the gate has to find that out by itself.
"""

import hashlib
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
from numpy.typing import NDArray
from onnx import TensorProto, helper
from racing import at_the_line, race

from pipeline import aliases, images, registry
from pipeline.aliases import CHALLENGER, CHAMPION
from pipeline.artifacts import DatasetVersion, GateConfig, ModelVersion, PixelSpec, PrepareConfig
from pipeline.errors import Conflict, Corrupted, NotFound
from pipeline.onnx_model import INPUT, OUTPUT
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.promote import promote
from pipeline.settings import Settings
from pipeline.store import Store
from pipeline.zones import Zones

MODEL = "pets"
GATE = GateConfig(class_images=100)
TEST_IMAGES = 20

PROMOTE = """
import os, sys
from pipeline.artifacts import GateConfig, ModelVersion
from pipeline.promote import promote
from pipeline.settings import Settings
from pipeline.zones import open_zones

zones = open_zones(Settings.from_environ(os.environ))
challenger = ModelVersion(model="pets", version=sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(promote(zones, challenger, GateConfig(class_images=100)).to_json().decode())
"""

Labels = Mapping[int, str]
"""The label of each picture, by its number; also the label that a model answers, by the grey value."""

CATS_AND_DOGS: Labels = {value: ("cat", "dog")[value % 2] for value in range(TEST_IMAGES)}


def picture(number: int) -> bytes:
    """A PNG of 16 x 16 pixels of the grey value ``number % 256``; what is above that shows in the last pixel."""
    pixels = np.full((16, 16, 1), number % 256, np.uint8)
    pixels[-1, -1] = number // 256
    return images.encode_png(pixels)


def prepared(
    zones: Zones, test: Labels, *, train: Labels | None = None, size: int = 16, colour: str = "grey"
) -> DatasetVersion:
    """A dataset version whose test split is ``test``; beside ``train`` each class has one more training image."""
    rows = {number: (label, "test") for number, label in test.items()}
    rows |= {number: (label, "train") for number, label in (train or {}).items()}
    labels = sorted({label for label, _ in rows.values()})
    rows |= {1000 + number: (label, "train") for number, label in enumerate(labels)}
    lines = [f"{number}.png,{label},{split}" for number, (label, split) in rows.items()]
    for number in rows:
        zones.images.put(f"pets/{number}.png", picture(number))
    zones.images.put("pets/labels.csv", "\n".join(["key,label,split", *lines]).encode())
    return prepare(zones, "pets", PrepareConfig.model_validate({"size": size, "colour": colour})).version


def table_model(pixels: PixelSpec, table: NDArray[np.float32]) -> bytes:
    """An ONNX model that answers the row of ``table`` (256, classes) which the first pixel names."""
    nodes = [
        helper.make_node("Slice", [INPUT, "zeros", "ones", "axes"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], [OUTPUT], axis=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "zeros": np.zeros(3, np.int64),
        "ones": np.ones(3, np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "flat": np.array([-1], np.int64),
        "table": table,
    }
    return tiny_models.onnx_of(nodes, constants, pixels, table.shape[1])


def answers(dataset: DatasetVersion, answered: Labels, *, nan: bool = False) -> NDArray[np.float32]:
    """The table (256, classes) of a model that answers ``answered``, and class 0 otherwise."""
    table = np.zeros((256, len(dataset.classes)), np.float32)
    for value in range(256):
        table[value, dataset.classes.index(answered.get(value, dataset.classes[0]))] = np.nan if nan else 1
    return table


def predictions(test: Labels, dataset: DatasetVersion, table: NDArray[np.float32]) -> bytes:
    """What an evaluation of that table on the test split stores."""
    rows = sorted((hashlib.sha256(picture(number)).digest(), number, label) for number, label in test.items())
    chosen = [table[number % 256] for _, number, _ in rows]
    columns = {
        "image_digest": pa.array([digest for digest, _, _ in rows], pa.binary(32)),
        "label": pa.array([dataset.classes.index(label) for _, _, label in rows], pa.int32()),
        "predicted": pa.array([int(row.argmax()) for row in chosen], pa.int32()),
        "probability": pa.array([float(row.max()) for row in chosen], pa.float32()),
        "probabilities": pa.array([row.tolist() for row in chosen], pa.list_(pa.float32())),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def registered(
    zones: Zones, dataset: DatasetVersion, test: Labels, answered: Labels, *, number: int, nan: bool = False
) -> ModelVersion:
    """A model version that answers ``answered``, trained on ``dataset``, whose test split is ``test``."""
    table = answers(dataset, answered, nan=nan)
    right = sum(answered.get(number % 256, dataset.classes[0]) == label for number, label in test.items())
    return tiny_models.register(
        zones.checkpoints,
        zones.models,
        MODEL,
        number,
        dataset=dataset,
        onnx_file=table_model(dataset.pixels, table),
        accuracy=right / len(test),
        evaluation={"predictions.parquet": predictions(test, dataset, table)},
    )


def all_but(wrong: int, right: Labels = CATS_AND_DOGS) -> Labels:
    """The right answers, except for the first ``wrong`` values."""
    labels = sorted(set(right.values()))
    return {
        value: label if number >= wrong else labels[labels.index(label) - 1]
        for number, (value, label) in enumerate(right.items())
    }


def champion(zones: Zones) -> str | None:
    """The version that the alias points at, if there is one."""
    found = aliases.read_alias(zones.models, MODEL, CHAMPION)
    return found[0].version if found else None


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


class Interrupted(Store):
    """The models zone, where a rival moves the alias right before each of our own moves, while it has versions left."""

    def __init__(self, zone: Store, rivals: list[str]) -> None:
        super().__init__(zone._backend, zone.url, patience=zone._patience)  # noqa: SLF001 - the same zone, another behaviour
        self.zone = zone
        self.rivals = rivals

    def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
        """Ours, after the rival's."""
        if self.rivals:
            aliases.set_alias(self.zone, MODEL, CHAMPION, self.rivals.pop(0), reason="rival")
        super().compare_and_swap(key, data, etag=etag)


def interrupted(zones: Zones, *rivals: ModelVersion) -> Zones:
    """The zones, with rivals."""
    models = Interrupted(zones.models, [rival.version for rival in rivals])
    return Zones(zones.images, zones.datasets, zones.checkpoints, models, zones.predictions)


@pytest.mark.parametrize(("rival_wrong", "promoted"), [(3, True), (1, False)])
def test_an_overtaken_challenger_is_judged_again(zones: Zones, rival_wrong: int, promoted: bool) -> None:
    """Where another promotion came first, the challenger has to beat that new champion."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, rival, challenger = (
        registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=number)
        for number, wrong in ((1, 5), (2, rival_wrong), (3, 2))
    )
    promote(zones, first, GATE)
    decision = promote(interrupted(zones, rival), challenger, GATE)
    assert (decision.promoted, decision.champion) == (promoted, rival)
    assert champion(zones) == (challenger if promoted else rival).version


def test_a_challenger_gives_up_when_the_alias_never_rests(zones: Zones) -> None:
    """After three rounds against moving champions the promotion fails with a sentence, and changes nothing."""
    dataset = prepared(zones, CATS_AND_DOGS)
    rivals = [registered(zones, dataset, CATS_AND_DOGS, all_but(6 - number), number=number) for number in (1, 2, 3)]
    challenger = registered(zones, dataset, CATS_AND_DOGS, all_but(0), number=9)
    with pytest.raises(Conflict, match=f"moved by others 3 times while version {challenger.version} was judged: run"):
        promote(interrupted(zones, *rivals), challenger, GATE)
    assert champion(zones) == rivals[-1].version


def test_promotions_in_threads_leave_the_best_champion(zones: Zones) -> None:
    """Of three challengers at once the best ends up as champion, and each promotion beat the one before it."""
    dataset = prepared(zones, CATS_AND_DOGS)
    made = [registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=9 - wrong) for wrong in (5, 4, 2, 1)]
    promote(zones, made[0], GATE)
    barrier = Barrier(3)

    def compete(challenger: ModelVersion) -> bool:
        barrier.wait()
        return promote(zones, challenger, GATE).promoted

    with ThreadPoolExecutor(3) as pool:
        promoted = {version.version for version, won in zip(made[1:], pool.map(compete, made[1:]), strict=True) if won}
    check_history(zones, made, promoted)


def test_promotions_in_processes_leave_the_best_champion(zones: Zones, zone_settings: Settings) -> None:
    """The same between processes."""
    dataset = prepared(zones, CATS_AND_DOGS)
    made = [registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=9 - wrong) for wrong in (5, 4, 2)]
    promote(zones, made[0], GATE)
    with at_the_line(PROMOTE, zone_settings, *([version.version] for version in made[1:])) as processes:
        told = race(processes)
    promoted = {
        version.version for version, lines in zip(made[1:], told, strict=True) if '  "promoted": true,' in lines
    }
    check_history(zones, made, promoted)


def check_history(zones: Zones, made: list[ModelVersion], promoted: set[str]) -> None:
    """The best version is live, and the history holds exactly the promotions that were told, each better in turn."""
    found = aliases.read_alias(zones.models, MODEL, CHAMPION)
    assert found is not None
    order = [version.version for version in made]
    live = [change.version for change in found[0].history]
    assert live == sorted(live, key=lambda version: order.index(version or ""))
    assert live[-1] == order[-1]
    assert set(live) - {order[0]} == promoted
    assert len(set(live)) == len(live)
