"""The forms that people see in Prefect's UI."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import flows, prefect_deployments, prefect_forms
from pipeline.prefect_deployments import LIVE, TRAINING

NAMES = [flow.name for flow in flows.FLOWS]


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a form, those of its records too."""
    yield from schema["properties"].items()
    for name, record in schema["definitions"].items():
        yield from ((f"{name}.{field}", value) for field, value in record.get("properties", {}).items())


@pytest.mark.parametrize("flow", flows.FLOWS, ids=NAMES)
def test_every_field_says_what_it_means(flow: Any) -> None:
    """No field is without a description, unless a record's own stands there."""
    for name, field in fields(prefect_forms.form(flow).model_dump()):
        assert field.get("description") or "$ref" in field, name


@pytest.mark.parametrize("flow", flows.FLOWS, ids=NAMES)
def test_every_range_is_told(flow: Any) -> None:
    """Where a number has bounds, the description names them."""
    for name, field in fields(prefect_forms.form(flow).model_dump()):
        for kind in (field, *field.get("anyOf", ())):
            for bound in prefect_forms.BOUNDS.keys() & kind.keys():
                assert f"{kind[bound]:,}" in field["description"] or f"{kind[bound]:g}" in field["description"], name


@pytest.mark.parametrize("flow", flows.FLOWS, ids=NAMES)
def test_every_flow_runs_with_nothing_changed(flow: Any) -> None:
    """All parameters have defaults, and others are refused."""
    form = prefect_forms.form(flow).model_dump()
    assert not form["required"]
    assert form["additionalProperties"] is False


def test_bounds_in_words() -> None:
    """Inclusive and exclusive bounds, also of one of several types."""
    assert prefect_forms.bounds({"minimum": 2, "maximum": 8192}) == "at least 2, at most 8,192"
    assert prefect_forms.bounds({"exclusiveMinimum": 0.0, "maximum": 10.0}) == "more than 0, at most 10"
    assert prefect_forms.bounds({"anyOf": [{"type": "null"}, {"minimum": 1}]}) == "at least 1"
    assert prefect_forms.bounds({"type": "string"}) == ""


def test_going_live_and_back_never_waits_for_training() -> None:
    """What computes for long has a queue of its own, with a limit; the other one has none, and comes first."""
    queues = {name: prefect_deployments.queue_of(name) for name in NAMES}
    assert {name for name, queue in queues.items() if queue is TRAINING} == {"pipeline", "train", "predict"}
    assert LIVE.limit is None
    assert LIVE.priority < TRAINING.priority
