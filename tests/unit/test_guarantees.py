"""The table of guarantees names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(
    r"`((?:unit|integration)/[\w/]+\.py)::(\w+)`",
    (ROOT / "docs" / "decisions" / "guarantees.md").read_text(encoding="utf-8"),
)


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_a_guarantee_s_test_exists(path: str, name: str) -> None:
    """Each test that the table names is a function of that file."""
    assert re.search(rf"^ *def {name}\(", (ROOT / "tests" / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_names_a_test() -> None:
    """No mechanism stands there without a test."""
    table = (ROOT / "docs" / "decisions" / "guarantees.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        assert "::test_" in row, row
