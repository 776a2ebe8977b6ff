import re

import pytest

from pipeline import api_keys
from pipeline.errors import InvalidInput


def test_what_is_written_can_be_read() -> None:
    """Names and digests come back, and so does the word that no key is needed."""
    keys = {"phone": api_keys.digest_of_key("a"), "lab-2": api_keys.digest_of_key("b")}
    for each in (keys, {}, None):
        assert api_keys.read(api_keys.written(each), "a file") == each


def test_the_file_holds_no_key() -> None:
    """Only its SHA-256 stands there, as sha256sum prints it."""
    key = api_keys.new_key()
    text = api_keys.written({"phone": api_keys.digest_of_key(key)})
    assert key not in text
    assert api_keys.digest_of_key("abc").startswith("ba7816bf8f01cfea")


def test_keys_are_random() -> None:
    """32 letters and digits, never the same."""
    keys = {api_keys.new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", key) for key in keys)


GOOD = "a" * 64


@pytest.mark.parametrize(
    "line",
    [
        "phone",
        f"phone {GOOD} more",
        f"phone {GOOD[1:]}",
        f"phone {GOOD.upper()}",
        f"Phone! {GOOD}",
        f"off\nphone {GOOD}",
    ],
)
def test_a_line_that_says_something_else_is_named(line: str) -> None:
    """A broken line is refused with its number, and so is a waiver among keys."""
    with pytest.raises(InvalidInput, match=r"^keys, line [23]: "):
        api_keys.read(f"# who\n{line}\n", "keys")


def test_a_name_cannot_come_twice() -> None:
    """Else nobody could tell which of them a line in the log means."""
    with pytest.raises(InvalidInput, match="line 2"):
        api_keys.read(f"phone {GOOD}\nphone {'b' * 64}\n", "keys")


@pytest.mark.parametrize("name", ["", "Phone", "a b", "-a", "a" * 64, "ä"])
def test_an_odd_name_is_refused(name: str) -> None:
    """Names are as those of models."""
    with pytest.raises(InvalidInput, match="cannot name a key"):
        api_keys.refuse_odd_name(name)
