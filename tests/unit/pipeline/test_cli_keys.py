import stat
from pathlib import Path

from typer.testing import CliRunner, Result

from pipeline import api_keys
from pipeline.cli_keys import app
from pipeline.errors import InvalidInput


def ran(*words: str) -> Result:
    """``safelight keys …``."""
    return CliRunner().invoke(app, words)


def test_a_key_is_made_shown_once_and_taken_back(tmp_path: Path) -> None:
    """What is printed is the key, what is kept is its SHA-256, and revoking takes that one alone away."""
    file = tmp_path / "keys"
    made = {name: ran("new", name, "--file", str(file)).stdout.strip() for name in ("phone", "lab")}
    assert api_keys.read(file.read_text(), "keys") == {name: api_keys.digest_of_key(key) for name, key in made.items()}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = ran("new", "phone", "--file", str(file)).stdout.strip()
    assert again != made["phone"]
    assert ran("list", "--file", str(file)).stdout.split() == ["phone", "lab"]
    assert ran("revoke", "phone", "--file", str(file)).exit_code == 0
    assert ran("list", "--file", str(file)).stdout.split() == ["lab"]


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    """A key that is not there, an odd name, and a file of something else."""
    file = tmp_path / "keys"
    for words in (("revoke", "phone"), ("new", "My Phone")):
        assert isinstance(ran(*words, "--file", str(file)).exception, InvalidInput)
    file.write_bytes(b"\xff\xfe")
    assert isinstance(ran("list", "--file", str(file)).exception, InvalidInput)
