"""Which values are strong, those that are made up among them, and what the stack may be told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidSettings
from pipeline.secret_values import ALLOWED, SECRETS, Stack, generated, weakness


@given(st.text(alphabet=sorted(ALLOWED), max_size=40))
def test_what_is_called_strong_is_long_and_varied(value: str) -> None:
    """No value passes that is short, of few characters, repeated or a sequence."""
    if weakness(value) is None:
        assert len(value) >= 16
        assert len(set(value)) >= 8
        assert value[: len(value) // 2] * 2 != value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "minioadmin",
        "aaaaaaaaaaaaaaaaaaaa",
        "changeit-changeit-",
        "abcdefghijklmnopqrstuvwxyz",
        "12345678901234567890",
    ],
)
def test_known_weak_values_are_weak(value: str) -> None:
    """What people type when they are in a hurry."""
    assert weakness(value * 2 if value == "changeit-" else value) is not None


def test_generated_values_are_strong_and_never_the_same() -> None:
    """A thousand of each kind: none weak, none twice, none that needs escaping."""
    for secret in SECRETS.values():
        values = [generated()[secret.file]() for _ in range(1000)]
        assert len(set(values)) == 1000
        assert not [value for value in values if weakness(value) or set(value) - ALLOWED]


def test_settings_that_cannot_be_are_refused() -> None:
    """A store or a database that there is no part for."""
    assert Stack.from_environ({"STACK_STORE": "", "STACK_BIND": "", "STACK_API_KEYS": ""}) == Stack()
    assert Stack.from_environ({"STACK_API_KEYS": "off"}).keys is False
    with pytest.raises(InvalidSettings, match="STACK_API_KEYS: 'no' is neither on nor off"):
        Stack.from_environ({"STACK_API_KEYS": "no"})
    assert Stack.from_environ({"STACK_STORE": "seaweedfs", "STACK_DATABASE": "postgres"}).postgres
    with pytest.raises(InvalidSettings, match="STACK_STORE"):
        Stack.from_environ({"STACK_STORE": "minio"})
    with pytest.raises(InvalidSettings, match="STACK_DATABASE"):
        Stack.from_environ({"STACK_DATABASE": "mysql"})
