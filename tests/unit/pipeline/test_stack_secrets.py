import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import api_keys, stack_secrets
from pipeline.errors import InvalidInput, InvalidSettings, LocalServiceFailed
from pipeline.secret_values import ALLOWED, SECRETS, Stack, generated, weakness
from pipeline.stack_secrets import ALL, write

CONSUMERS = (
    "object-store",
    "store-init",
    "prefect-server",
    "prefect-init",
    "worker",
    "serving",
    "cli",
    "upload-events",
)
SEAWEEDFS = Stack(store="seaweedfs")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty volumes, mounted; files are handed over to whoever runs the test."""
    for name in (ALL, *CONSUMERS):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(stack_secrets, "SERVICE_UID", os.getuid())
    return tmp_path


def _files(root: Path, *names: str) -> dict[str, str]:
    """What lies in volumes, by path."""
    folders = [root / name for name in names or (ALL, *CONSUMERS)]
    return {str(path.relative_to(root)): path.read_text() for folder in folders for path in folder.iterdir()}


def test_each_consumer_gets_its_own_and_nothing_else(root: Path) -> None:
    """What a service needs is in its folder; what another one alone needs is not."""
    write(root, Stack())
    values = {path.removeprefix("all/"): text for path, text in _files(root, ALL).items()}
    assert values.keys() == generated().keys()
    assert _files(root, "serving") == {
        "serving/store_access_key": values["serving_access_key"],
        "serving/store_secret_key": values["serving_secret_key"],
        "serving/api_keys": api_keys.written(None),
    }
    login = f"safelight:{values['prefect_password']}"
    assert _files(root, "prefect-init") == {"prefect-init/PREFECT_API_AUTH_STRING": login}
    for consumer in ("worker", "serving", "cli", "upload-events"):
        seen = "".join(_files(root, consumer).values())
        assert len([name for name in values if name.endswith("_secret_key") and values[name] in seen]) == 1
        assert values["root_password"] not in seen


def test_files_are_their_owners_alone(root: Path) -> None:
    """Every file has mode 600, and the folder lets its owner in and nobody write."""
    write(root, SEAWEEDFS)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in root.glob("*/*")}
    assert modes == {0o600}
    assert {stat.S_IMODE((root / name).stat().st_mode) for name in CONSUMERS} == {0o500}


@pytest.mark.parametrize("stack", [Stack(), SEAWEEDFS, Stack(postgres=True)])
def test_a_second_start_changes_nothing(root: Path, stack: Stack) -> None:
    """Secrets are written once: all bytes are as they were, certificates included."""
    write(root, stack)
    before = _files(root)
    write(root, stack)
    assert _files(root) == before


@pytest.mark.parametrize("stack", [Stack(), SEAWEEDFS])
def test_an_interrupted_first_start_is_completed_by_the_next(
    root: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any number of files, the next start makes what is missing and keeps what is there."""
    real = stack_secrets.write_private

    class Killed(BaseException):
        pass

    for survived in range(0, 40, 3):
        left = [survived]

        def mortal(path: Path, text: str, left: list[int] = left) -> None:
            if not left[0]:
                path.with_name(f".{path.name}.torn").write_text(text[:3])
                raise Killed
            left[0] -= 1
            real(path, text)

        for path in root.glob("*/*"):
            path.unlink()
        monkeypatch.setattr(stack_secrets, "write_private", mortal)
        try:
            write(root, stack)
        except Killed:
            before = {name: text for name, text in _files(root, ALL).items() if "/." not in name}
        else:
            before = _files(root, ALL)
        monkeypatch.setattr(stack_secrets, "write_private", real)
        write(root, stack)
        after = _files(root)
        assert {name: after[name] for name in before} == before
        assert {name for name in after if name.startswith("all/") and "/." not in name} == {
            f"all/{n}" for n in generated()
        }
        assert not [name for name in after if "/." in name and not name.startswith("all/")]
        for consumer in CONSUMERS:
            assert _files(root, consumer), consumer
        if stack.store == "seaweedfs":
            _assert_certificate_fits(root / "object-store")


def _assert_certificate_fits(folder: Path) -> None:
    """The certificate is its key's, and signed by the authority beside it."""
    from cryptography import x509  # noqa: PLC0415 - only SeaweedFS's tests need it
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    key = load_pem_private_key((folder / "key.pem").read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))


def test_an_empty_or_lost_file_is_made_again(root: Path) -> None:
    """A volume that was lost is filled from the whole; an emptied secret is a missing one."""
    write(root, Stack())
    before = _files(root)
    (root / "worker" / "store_secret_key").unlink()
    (root / ALL / "prefect_password").write_text("\n")
    write(root, Stack())
    after = _files(root)
    assert after["worker/store_secret_key"] == before["worker/store_secret_key"]
    assert weakness(after["all/prefect_password"]) is None
    assert after["worker/PREFECT_API_AUTH_STRING"] == f"safelight:{after['all/prefect_password']}"


def test_what_no_longer_belongs_there_goes(root: Path) -> None:
    """After a change of the store's or the database's server, nothing of the other one is handed out."""
    write(root, Stack(store="seaweedfs", postgres=True))
    assert (root / "prefect-server" / "PREFECT_SERVER_DATABASE_CONNECTION_URL").exists()
    write(root, Stack())
    assert {path.name for path in (root / "object-store").iterdir()} == {"root_user", "root_password"}
    assert {path.name for path in (root / "prefect-server").iterdir()} == {
        "PREFECT_API_AUTH_STRING",
        "PREFECT_SERVER_API_AUTH_STRING",
    }


@pytest.mark.parametrize("name", SECRETS)
def test_rotation_changes_one_secret_wherever_it_is_read(root: Path, name: str) -> None:
    """Nothing keeps the old value, everything else stays, and the services that read it are named."""
    stack = Stack(postgres=True)
    write(root, stack)
    before = _files(root)
    services = stack_secrets.rotate(root, stack, name)
    after = _files(root)
    old = before[f"all/{SECRETS[name].file}"]
    assert not [path for path, text in after.items() if old in text]
    changed = {path.split("/")[0] for path in after if after[path] != before[path]} - {ALL}
    assert changed == {path.split("/")[0] for path, text in before.items() if old in text} - {ALL}
    assert changed - {"store-init", "prefect-init", "cli"} <= set(services)


def test_rotation_on_seaweedfs_names_the_store_first(root: Path) -> None:
    """Its users stand in its file, so it starts anew before whoever signs with the new key."""
    write(root, SEAWEEDFS)
    old = json.loads((root / "object-store" / "s3.json").read_text())
    assert stack_secrets.rotate(root, SEAWEEDFS, "worker") == ("object-store", "worker")
    new = json.loads((root / "object-store" / "s3.json").read_text())
    assert [o["name"] for o, n in zip(old["identities"], new["identities"], strict=True) if o != n] == ["worker"]
    certificate = (root / "object-store" / "cert.pem").read_text()
    stack_secrets.rotate(root, SEAWEEDFS, "root")
    assert (root / "object-store" / "cert.pem").read_text() != certificate
    _assert_certificate_fits(root / "object-store")


def test_silo_is_told_where_to_tell_of_uploads(root: Path) -> None:
    """With the webhook on, its configuration holds the token that the adapter wants; off, it holds none."""
    told = Stack(webhook=True)
    write(root, told)
    token = (root / "upload-events" / "uploads_token").read_text()
    assert token in (root / "object-store" / "config.env").read_text()
    assert stack_secrets.rotate(root, told, "uploads") == ("object-store", "upload-events")
    assert token not in (root / "object-store" / "config.env").read_text()
    write(root, Stack())
    assert not (root / "object-store" / "config.env").exists()
    assert stack_secrets.rotate(root, Stack(), "uploads") == ("upload-events",)


def test_a_wide_binding_needs_strong_secrets(root: Path) -> None:
    """A person's own weak value is accepted on this machine, and refuses any other address by name."""
    wide = Stack(bind="0.0.0.0")  # noqa: S104 - what is tested
    write(root, wide)
    stack_secrets.rotate(root, Stack(), "people", "hunter22")
    write(root, Stack())
    for address in ("0.0.0.0", "192.0.2.7", "[::]", "::"):  # noqa: S104 - what is tested
        with pytest.raises(InvalidSettings, match=r"people.*rotate SECRET=people"):
            write(root, Stack(bind=address))
    for address in ("127.0.0.1", "127.9.9.9", "::1", "[::1]"):
        write(root, Stack(bind=address))
    with pytest.raises(InvalidSettings, match="people"):
        stack_secrets.check(root)
    stack_secrets.rotate(root, wide, "people")
    write(root, wide)
    stack_secrets.check(root)


def test_an_address_that_is_none_is_refused(root: Path) -> None:
    """A host name cannot be bound to, and is told so before anything is written."""
    with pytest.raises(InvalidSettings, match=r"STACK_BIND.*lab"):
        write(root, Stack(bind="lab"))
    assert not _files(root)


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


@pytest.mark.parametrize(
    "value", ["short", "x" * 41, "with space in it here", "quote'quote'quote", "slash/slash/slash/1"]
)
def test_an_impossible_value_is_refused(root: Path, value: str) -> None:
    """What a URL, a shell or the store could not hold is refused, and nothing changes."""
    write(root, Stack())
    before = _files(root)
    with pytest.raises(InvalidInput, match="new value"):
        stack_secrets.rotate(root, Stack(), "prefect", value)
    assert _files(root) == before


def test_an_unknown_secret_is_named_with_those_that_there_are(root: Path) -> None:
    """A typing error is answered with the list."""
    with pytest.raises(InvalidInput, match=r"'wroker'.*worker"):
        stack_secrets.rotate(root, Stack(), "wroker")


def test_sqlite_has_no_password(root: Path) -> None:
    """Where there is no Postgres, its password is not replaced but refused."""
    with pytest.raises(InvalidInput, match="SQLite"):
        stack_secrets.rotate(root, Stack(), "database")


@pytest.mark.parametrize(
    ("stack", "asks"),
    [
        (Stack(), False),
        (Stack(keys=True), True),
        (Stack(bind="192.0.2.7"), True),
        (Stack(bind="192.0.2.7", keys=False), False),
    ],
)
def test_the_inference_server_asks_for_keys_beyond_this_machine(
    root: Path, stack: Stack, asks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """On loopback it does not, elsewhere it does, unless somebody decides otherwise, which is said aloud."""
    write(root, stack)
    good = api_keys.read((root / "serving" / "api_keys").read_text(), "api_keys")
    assert (good is not None) == asks
    for name, folder, file in (("people", ALL, "people_api_key"), ("pipeline", "worker", "inference_api_key")):
        assert good is None or good[name] == api_keys.digest_of_key((root / folder / file).read_text())
    assert ("whoever reaches 192.0.2.7" in capsys.readouterr().out) == (stack.keys is False)


def test_once_it_asks_only_a_person_ends_that(root: Path) -> None:
    """A later start that knows nothing of the wide binding leaves the server closed; one that says off opens it."""
    told = root / "serving" / "api_keys"
    asked = []
    for stack in (Stack(bind="192.0.2.7"), Stack(), Stack(keys=False), Stack()):
        write(root, stack)
        asked.append(api_keys.read(told.read_text(), "api_keys") is not None)
    assert asked == [True, True, False, False]


def test_a_key_is_rotated_and_nothing_starts_anew(root: Path) -> None:
    """The server follows its file; only the worker reads its key when it starts."""
    write(root, Stack(keys=True))
    before = (root / "serving" / "api_keys").read_text()
    assert stack_secrets.rotate(root, Stack(keys=True), "people-key") == ()
    assert (root / "serving" / "api_keys").read_text() != before
    assert stack_secrets.rotate(root, Stack(keys=True), "pipeline-key") == ("worker",)


@pytest.mark.parametrize("asks", [True, False])
def test_a_rotation_opens_and_closes_nothing(root: Path, asks: bool) -> None:
    """Whoever rotates a secret from another shell than the one that bound the stack wide leaves the server as it is."""
    write(root, Stack(bind="192.0.2.7", keys=asks))
    for stack in (Stack(), Stack(bind="192.0.2.7"), Stack(keys=not asks)):
        stack_secrets.rotate(root, stack, "serving")
        good = api_keys.read((root / "serving" / "api_keys").read_text(), "api_keys")
        assert (good is not None) == asks


def test_people_are_shown_what_they_need(root: Path) -> None:
    """Prefect's login and Grafana's, the store's key for people and its root; before the first start, what to do."""
    with pytest.raises(InvalidInput, match="make up"):
        stack_secrets.shown(root)
    with pytest.raises(InvalidSettings, match="make up"):
        stack_secrets.check(root)
    write(root, Stack())
    text = stack_secrets.shown(root)
    files = _files(root, ALL)
    of_people = ("people_access_key", "people_secret_key", "people_api_key", "root_user", "root_password")
    for name in ("prefect_password", "grafana_password", *of_people):
        assert files[f"all/{name}"] in text
    assert files["all/worker_secret_key"] not in text


def test_without_its_volume_it_says_so(tmp_path: Path) -> None:
    """A missing mount is one sentence."""
    with pytest.raises(LocalServiceFailed, match="cannot be written"):
        write(tmp_path, Stack())


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


def test_it_starts_quickly_and_fails_in_one_sentence() -> None:
    """No heavy library is imported, and a mistake is a sentence on standard error and exit status 1."""
    heavy = "{'torch', 'prefect', 'cryptography', 'typer'}"
    code = f"import sys, pipeline.stack_secrets; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.stack_secrets", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("safelight: ")
    assert done.stderr.count("\n") == 1
