"""What flows decide by themselves."""

import pytest

from pipeline import flow_tasks, flows
from pipeline.errors import InvalidInput


@pytest.mark.parametrize(
    ("folder", "per_class", "exact", "named"), [("/images", 5, False, "per_class"), (None, None, True, "exact")]
)
def test_parameters_of_two_sources_are_refused(
    folder: str | None, per_class: int | None, exact: bool, named: str
) -> None:
    """What would be ignored is a mistake, and is named."""
    with pytest.raises(InvalidInput, match=named):
        flow_tasks.refuse_mixed_sources(folder, per_class, exact=exact)


@pytest.mark.parametrize(
    ("folder", "per_class", "exact"), [("/images", None, True), (None, 5, False), (None, None, False)]
)
def test_parameters_of_one_source_are_taken(folder: str | None, per_class: int | None, exact: bool) -> None:
    """A folder may be exact, Fashion-MNIST may be limited."""
    flow_tasks.refuse_mixed_sources(folder, per_class, exact=exact)


def test_flows_are_named_as_their_commands() -> None:
    """People find in Prefect's UI what the command line calls so."""
    names = [flow.name for flow in flows.FLOWS]
    assert names == ["pipeline", "import", "prepare", "train", "evaluate", "promote", "deploy", "rollback", "predict"]
