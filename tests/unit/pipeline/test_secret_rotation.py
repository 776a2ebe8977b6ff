"""One secret of the stack is replaced wherever it is read; all others stay."""

import json
from pathlib import Path

import pytest
from secret_volumes import SEAWEEDFS, assert_certificate_fits, files

from pipeline import api_keys, stack_secrets
from pipeline.errors import InvalidInput
from pipeline.secret_values import SECRETS, Stack
from pipeline.stack_secrets import ALL, write


@pytest.mark.parametrize("name", SECRETS)
def test_rotation_changes_one_secret_wherever_it_is_read(volumes: Path, name: str) -> None:
    """Nothing keeps the old value, everything else stays, and the services that read it are named."""
    stack = Stack(postgres=True)
    write(volumes, stack)
    before = files(volumes)
    services = stack_secrets.rotate(volumes, stack, name)
    after = files(volumes)
    old = before[f"all/{SECRETS[name].file}"]
    assert not [path for path, text in after.items() if old in text]
    changed = {path.split("/")[0] for path in after if after[path] != before[path]} - {ALL}
    assert changed == {path.split("/")[0] for path, text in before.items() if old in text} - {ALL}
    assert changed - {"store-init", "prefect-init", "cli"} <= set(services)


def test_rotation_on_seaweedfs_names_the_store_first(volumes: Path) -> None:
    """Its users stand in its file, so it starts anew before whoever signs with the new key."""
    write(volumes, SEAWEEDFS)
    old = json.loads((volumes / "object-store" / "s3.json").read_text())
    assert stack_secrets.rotate(volumes, SEAWEEDFS, "worker") == ("object-store", "worker")
    new = json.loads((volumes / "object-store" / "s3.json").read_text())
    assert [o["name"] for o, n in zip(old["identities"], new["identities"], strict=True) if o != n] == ["worker"]
    certificate = (volumes / "object-store" / "cert.pem").read_text()
    stack_secrets.rotate(volumes, SEAWEEDFS, "root")
    assert (volumes / "object-store" / "cert.pem").read_text() != certificate
    assert_certificate_fits(volumes / "object-store")


@pytest.mark.parametrize(
    "value", ["short", "x" * 41, "with space in it here", "quote'quote'quote", "slash/slash/slash/1"]
)
def test_an_impossible_value_is_refused(volumes: Path, value: str) -> None:
    """What a URL, a shell or the store could not hold is refused, and nothing changes."""
    write(volumes, Stack())
    before = files(volumes)
    with pytest.raises(InvalidInput, match="new value"):
        stack_secrets.rotate(volumes, Stack(), "prefect", value)
    assert files(volumes) == before


def test_an_unknown_secret_is_named_with_those_that_there_are(volumes: Path) -> None:
    """A typing error is answered with the list."""
    with pytest.raises(InvalidInput, match=r"'wroker'.*worker"):
        stack_secrets.rotate(volumes, Stack(), "wroker")


def test_sqlite_has_no_password(volumes: Path) -> None:
    """Where there is no Postgres, its password is not replaced but refused."""
    with pytest.raises(InvalidInput, match="SQLite"):
        stack_secrets.rotate(volumes, Stack(), "database")


def test_a_key_is_rotated_and_nothing_starts_anew(volumes: Path) -> None:
    """The server follows its file; only the worker reads its key when it starts."""
    write(volumes, Stack(keys=True))
    before = (volumes / "serving" / "api_keys").read_text()
    assert stack_secrets.rotate(volumes, Stack(keys=True), "people-key") == ()
    assert (volumes / "serving" / "api_keys").read_text() != before
    assert stack_secrets.rotate(volumes, Stack(keys=True), "pipeline-key") == ("worker",)


@pytest.mark.parametrize("asks", [True, False])
def test_a_rotation_opens_and_closes_nothing(volumes: Path, asks: bool) -> None:
    """Whoever rotates a secret from another shell than the one that bound the stack wide leaves the server as it is."""
    write(volumes, Stack(bind="192.0.2.7", keys=asks))
    for stack in (Stack(), Stack(bind="192.0.2.7"), Stack(keys=not asks)):
        stack_secrets.rotate(volumes, stack, "serving")
        good = api_keys.read((volumes / "serving" / "api_keys").read_text(), "api_keys")
        assert (good is not None) == asks
