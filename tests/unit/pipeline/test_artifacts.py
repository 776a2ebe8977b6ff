import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts import Name, PixelSpec, PrepareConfig, TrainConfig, digest_of


@pytest.mark.parametrize("name", ["cats", "a", "fashion-mnist", "x_1", "0", "a" * 63])
def test_names_that_can_be_keys_are_taken(name: str) -> None:
    """Short lower-case names are names."""
    assert TypeAdapter(Name).validate_python(name) == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a b", "-a", "a-", "ä", "a" * 64, "a\n"])
def test_names_that_cannot_be_keys_are_refused(name: str) -> None:
    """Anything that could leave its folder, or reads differently elsewhere, is not a name."""
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_a_digest_does_not_depend_on_order(fields: dict[str, int | str]) -> None:
    """Equal values have equal digests, however they were built."""
    assert digest_of(fields) == digest_of(dict(reversed(fields.items())))


@pytest.mark.parametrize("record", [TrainConfig(), PrepareConfig(), PixelSpec(height=28, width=28, channels=1)])
def test_records_survive_json(record: TrainConfig | PrepareConfig | PixelSpec) -> None:
    """A record read back from its JSON is equal to itself, and an unknown field is refused."""
    assert type(record).from_json(record.to_json()) == record
    with pytest.raises(ValidationError):
        type(record).model_validate({**record.model_dump(), "surprise": 1})
