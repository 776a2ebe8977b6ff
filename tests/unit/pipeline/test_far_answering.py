"""What another process made of a part is believed only where it was made in the same store."""

import dataclasses
from collections.abc import Iterable, Iterator

import pytest
import synthetic
from batch_predictions import champion, keys, predicted, put

from pipeline import answering, far_answering
from pipeline.batches import BatchPart, Part
from pipeline.errors import InvalidSettings
from pipeline.predict import AnswerPart, MapParts
from pipeline.zones import Zones


@pytest.fixture
def zones() -> Zones:
    """Zones with a champion and pictures."""
    made = synthetic.memory_zones()
    champion(made)
    put(made, range(3))
    return made


def by_worker_of(theirs: Zones, zones: Zones) -> MapParts:
    """Parts are answered in other zones."""

    def mapped(_own: AnswerPart, parts: Iterable[Part]) -> Iterator[BatchPart]:
        for part in parts:
            made = answering.answer_part(theirs.images, theirs.models, theirs.predictions, part)
            yield far_answering.refuse_other_store(zones, part, made)

    return mapped


def test_a_worker_of_the_same_store_is_believed(zones: Zones) -> None:
    """Also where all that it was given is really gone."""
    assert predicted(zones, map_parts=by_worker_of(zones, zones)).manifest.answered == 3

    def after_all_are_gone(own: AnswerPart, parts: Iterable[Part]) -> Iterable[BatchPart]:
        zones.images.delete([each.key for each in zones.images.listing()])
        return by_worker_of(zones, zones)(own, parts)

    result = predicted(zones, name="gone", map_parts=after_all_are_gone)
    assert result.manifest.left_out == {"deleted since it was listed": 3}


def test_a_worker_that_sees_other_images_is_refused(zones: Zones) -> None:
    """What it left is not found by the next run, which answers all."""
    theirs = dataclasses.replace(zones, images=synthetic.memory_store())
    with pytest.raises(InvalidSettings, match="reads or writes another object store"):
        predicted(zones, name="day", map_parts=by_worker_of(theirs, zones))
    assert not [key for key in keys(zones) if "part-" in key]
    assert predicted(zones, name="day").manifest.answered == 3


def test_a_worker_that_writes_elsewhere_is_refused(zones: Zones) -> None:
    """Its parts are not there."""
    theirs = dataclasses.replace(zones, predictions=synthetic.memory_store())

    def copied_first(own: AnswerPart, parts: Iterable[Part]) -> Iterable[BatchPart]:
        for each in zones.predictions.listing():  # it can read the listing, say
            theirs.predictions.put(each.key, zones.predictions.get(each.key))
        return by_worker_of(theirs, zones)(own, parts)

    with pytest.raises(InvalidSettings, match="reads or writes another object store"):
        predicted(zones, name="day", map_parts=copied_first)
