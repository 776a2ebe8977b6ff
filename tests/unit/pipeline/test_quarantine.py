"""Lists of what was left out."""

import pytest
import synthetic

from pipeline import quarantine
from pipeline.errors import NotFound
from pipeline.store import Store


@pytest.fixture
def datasets() -> Store:
    """An empty zone in memory."""
    return synthetic.memory_zones().datasets


def test_a_list_is_read_as_it_was_written(datasets: Store) -> None:
    """By its key, by its URL, and with the full stop of the sentence that named it; writing it again finds it."""
    lines = [quarantine.line("cats/é.png", "empty file", "abc", 0), quarantine.line("gone.png", "broken link")]
    key = quarantine.write(datasets, "cats", lines)
    for address in (f"{key}", f"{datasets.url}/{key}", f"{datasets.url}/{key}."):
        assert quarantine.read(datasets, address) == lines
    assert quarantine.write(datasets, "cats", lines) == key
    assert [found.key for found in datasets.listing("cats")] == [key]


def test_nothing_left_out_is_no_list(datasets: Store) -> None:
    """Without lines nothing is stored."""
    assert quarantine.write(datasets, "cats", []) is None
    assert not list(datasets.listing())


@pytest.mark.parametrize(
    "address",
    [
        "cats",
        "cats/latest.json",
        "cats/quarantine/0123456789abcdef.jsonl",
        "../cats/quarantine/0123456789abcdef.jsonl",
        "cats/quarantine/../latest.json",
        "cats/quarantine/0123456789abcdef.jsonl/..",
        "",
    ],
)
def test_anything_else_is_one_sentence(datasets: Store, address: str) -> None:
    """What is no list's address, or names a list that is not there, is NotFound, whatever a path could make of it."""
    datasets.put("cats/latest.json", b"{}")
    with pytest.raises(NotFound, match="is no list of what was left out: give the address that import or prepare"):
        quarantine.read(datasets, address)
