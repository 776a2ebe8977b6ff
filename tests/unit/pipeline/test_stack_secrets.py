"""What lies in the stack's volumes after its first start, its later ones and those that were interrupted."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from secret_volumes import CONSUMERS, SEAWEEDFS, assert_certificate_fits, files

from pipeline import api_keys, stack_secrets
from pipeline.errors import InvalidInput, InvalidSettings, LocalServiceFailed
from pipeline.secret_values import Stack, generated, weakness
from pipeline.stack_secrets import ALL, write


def test_each_consumer_gets_its_own_and_nothing_else(volumes: Path) -> None:
    """What a service needs is in its folder; what another one alone needs is not."""
    write(volumes, Stack())
    values = {path.removeprefix("all/"): text for path, text in files(volumes, ALL).items()}
    assert values.keys() == generated().keys()
    assert files(volumes, "serving") == {
        "serving/store_access_key": values["serving_access_key"],
        "serving/store_secret_key": values["serving_secret_key"],
        "serving/api_keys": api_keys.written(None),
    }
    login = f"safelight:{values['prefect_password']}"
    assert files(volumes, "prefect-init") == {"prefect-init/PREFECT_API_AUTH_STRING": login}
    for consumer in ("worker", "serving", "cli", "upload-events"):
        seen = "".join(files(volumes, consumer).values())
        assert len([name for name in values if name.endswith("_secret_key") and values[name] in seen]) == 1
        assert values["root_password"] not in seen


def test_files_are_their_owners_alone(volumes: Path) -> None:
    """Every file has mode 600, and the folder lets its owner in and nobody write."""
    write(volumes, SEAWEEDFS)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in volumes.glob("*/*")}
    assert modes == {0o600}
    assert {stat.S_IMODE((volumes / name).stat().st_mode) for name in CONSUMERS} == {0o500}


@pytest.mark.parametrize("stack", [Stack(), SEAWEEDFS, Stack(postgres=True)])
def test_a_second_start_changes_nothing(volumes: Path, stack: Stack) -> None:
    """Secrets are written once: all bytes are as they were, certificates included."""
    write(volumes, stack)
    before = files(volumes)
    write(volumes, stack)
    assert files(volumes) == before


@pytest.mark.parametrize("stack", [Stack(), SEAWEEDFS])
def test_an_interrupted_first_start_is_completed_by_the_next(
    volumes: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
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

        for path in volumes.glob("*/*"):
            path.unlink()
        monkeypatch.setattr(stack_secrets, "write_private", mortal)
        try:
            write(volumes, stack)
        except Killed:
            before = {name: text for name, text in files(volumes, ALL).items() if "/." not in name}
        else:
            before = files(volumes, ALL)
        monkeypatch.setattr(stack_secrets, "write_private", real)
        write(volumes, stack)
        after = files(volumes)
        assert {name: after[name] for name in before} == before
        assert {name for name in after if name.startswith("all/") and "/." not in name} == {
            f"all/{n}" for n in generated()
        }
        assert not [name for name in after if "/." in name and not name.startswith("all/")]
        for consumer in CONSUMERS:
            assert files(volumes, consumer), consumer
        if stack.store == "seaweedfs":
            assert_certificate_fits(volumes / "object-store")


def test_an_empty_or_lost_file_is_made_again(volumes: Path) -> None:
    """A volume that was lost is filled from the whole; an emptied secret is a missing one."""
    write(volumes, Stack())
    before = files(volumes)
    (volumes / "worker" / "store_secret_key").unlink()
    (volumes / ALL / "prefect_password").write_text("\n")
    write(volumes, Stack())
    after = files(volumes)
    assert after["worker/store_secret_key"] == before["worker/store_secret_key"]
    assert weakness(after["all/prefect_password"]) is None
    assert after["worker/PREFECT_API_AUTH_STRING"] == f"safelight:{after['all/prefect_password']}"


def test_what_no_longer_belongs_there_goes(volumes: Path) -> None:
    """After a change of the store's or the database's server, nothing of the other one is handed out."""
    write(volumes, Stack(store="seaweedfs", postgres=True))
    assert (volumes / "prefect-server" / "PREFECT_SERVER_DATABASE_CONNECTION_URL").exists()
    write(volumes, Stack())
    assert {path.name for path in (volumes / "object-store").iterdir()} == {"root_user", "root_password"}
    assert {path.name for path in (volumes / "prefect-server").iterdir()} == {
        "PREFECT_API_AUTH_STRING",
        "PREFECT_SERVER_API_AUTH_STRING",
    }


def test_silo_is_told_where_to_tell_of_uploads(volumes: Path) -> None:
    """With the webhook on, its configuration holds the token that the adapter wants; off, it holds none."""
    told = Stack(webhook=True)
    write(volumes, told)
    token = (volumes / "upload-events" / "uploads_token").read_text()
    assert token in (volumes / "object-store" / "config.env").read_text()
    assert stack_secrets.rotate(volumes, told, "uploads") == ("object-store", "upload-events")
    assert token not in (volumes / "object-store" / "config.env").read_text()
    write(volumes, Stack())
    assert not (volumes / "object-store" / "config.env").exists()
    assert stack_secrets.rotate(volumes, Stack(), "uploads") == ("upload-events",)


def test_a_wide_binding_needs_strong_secrets(volumes: Path) -> None:
    """A person's own weak value is accepted on this machine, and refuses any other address by name."""
    wide = Stack(bind="0.0.0.0")  # noqa: S104 - what is tested
    write(volumes, wide)
    stack_secrets.rotate(volumes, Stack(), "people", "hunter22")
    write(volumes, Stack())
    for address in ("0.0.0.0", "192.0.2.7", "[::]", "::"):  # noqa: S104 - what is tested
        with pytest.raises(InvalidSettings, match=r"people.*rotate SECRET=people"):
            write(volumes, Stack(bind=address))
    for address in ("127.0.0.1", "127.9.9.9", "::1", "[::1]"):
        write(volumes, Stack(bind=address))
    with pytest.raises(InvalidSettings, match="people"):
        stack_secrets.check(volumes)
    stack_secrets.rotate(volumes, wide, "people")
    write(volumes, wide)
    stack_secrets.check(volumes)


def test_an_address_that_is_none_is_refused(volumes: Path) -> None:
    """A host name cannot be bound to, and is told so before anything is written."""
    with pytest.raises(InvalidSettings, match=r"STACK_BIND.*lab"):
        write(volumes, Stack(bind="lab"))
    assert not files(volumes)


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
    volumes: Path, stack: Stack, asks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """On loopback it does not, elsewhere it does, unless somebody decides otherwise, which is said aloud."""
    write(volumes, stack)
    good = api_keys.read((volumes / "serving" / "api_keys").read_text(), "api_keys")
    assert (good is not None) == asks
    for name, folder, file in (("people", ALL, "people_api_key"), ("pipeline", "worker", "inference_api_key")):
        assert good is None or good[name] == api_keys.digest_of_key((volumes / folder / file).read_text())
    assert ("whoever reaches 192.0.2.7" in capsys.readouterr().out) == (stack.keys is False)


def test_once_it_asks_only_a_person_ends_that(volumes: Path) -> None:
    """A later start that knows nothing of the wide binding leaves the server closed; one that says off opens it."""
    told = volumes / "serving" / "api_keys"
    asked = []
    for stack in (Stack(bind="192.0.2.7"), Stack(), Stack(keys=False), Stack()):
        write(volumes, stack)
        asked.append(api_keys.read(told.read_text(), "api_keys") is not None)
    assert asked == [True, True, False, False]


def test_people_are_shown_what_they_need(volumes: Path) -> None:
    """Prefect's login and Grafana's, the store's key for people and its root; before the first start, what to do."""
    with pytest.raises(InvalidInput, match="make up"):
        stack_secrets.shown(volumes)
    with pytest.raises(InvalidSettings, match="make up"):
        stack_secrets.check(volumes)
    write(volumes, Stack())
    text = stack_secrets.shown(volumes)
    whole = files(volumes, ALL)
    of_people = ("people_access_key", "people_secret_key", "people_api_key", "root_user", "root_password")
    for name in ("prefect_password", "grafana_password", *of_people):
        assert whole[f"all/{name}"] in text
    assert whole["all/worker_secret_key"] not in text


def test_without_its_volume_it_says_so(tmp_path: Path) -> None:
    """A missing mount is one sentence."""
    with pytest.raises(LocalServiceFailed, match="cannot be written"):
        write(tmp_path, Stack())


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
