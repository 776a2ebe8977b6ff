"""The secrets of the stack in containers: made once, handed to each service in a volume of its own, shown, rotated.

Decisions:

- **One volume holds them all**, and only this program ever mounts it. What a service reads is a copy, in a volume that
  this program and that service mount: files of mode 600 that belong to the service's user. Copies are made anew from
  the whole at each start, so that a start that was interrupted, or a volume that was lost, is made good by the next.
- **Nothing secret is in an environment variable, a command line or an image**; not even at rotation, where a person's
  own value comes by standard input.
- **Wider than this machine only with strong secrets**: generated ones are; a person's own are looked at.
- **Whether the inference server asks for keys is decided when the stack is started.** A rotation leaves that as it is:
  whoever rotates need not have set STACK_BIND as whoever started the stack had.
- Only the standard library and our own: this runs at each ``docker compose up`` before anything else may start.
"""

import dataclasses
import fcntl
import os
import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline import api_keys
from pipeline.errors import InvalidInput, InvalidSettings, LocalServiceFailed, SafelightError
from pipeline.private_files import unusable, write_private
from pipeline.secret_values import (
    GRAFANA_USER,
    LOOPBACK,
    PREFECT_USER,
    SECRETS,
    Files,
    Stack,
    files_of,
    generated,
    random_secret,
    refuse_impossible,
    weak_ones,
)

ROOT = Path("/secrets")
"""Where the volumes are mounted: ``all``, and one by the name of each consumer."""
ALL = "all"
DATA = Path("/volumes")
"""Volumes whose images leave them to root: they are given to the services that write there."""
SERVICE_UID = 10001
POSTGRES_UID = 999
UIDS = {"postgres": POSTGRES_UID}
"""The user that a consumer runs as, where it is not ``SERVICE_UID``."""
COMMANDS = "write, check, show, rotate SECRET or set SECRET"


def write(root: Path, stack: Stack) -> None:
    """Make what is missing, hand each consumer its copy, and refuse a wide binding with a weak secret.

    Raises:
        InvalidSettings: a secret is weak and ports are published beyond this machine, or a setting is wrong.
        LocalServiceFailed: a volume cannot be written.
    """
    wide = stack.is_wide
    weak = weak_ones(make_and_hand_out(root, stack))
    if weak and wide:
        raise InvalidSettings(
            f"STACK_BIND={stack.bind} would publish the stack with {_sentence(weak)}: run `make rotate SECRET="
            f"{next(iter(weak))}`, or leave STACK_BIND at {LOOPBACK}."
        )
    if wide and not stack.asks_for_keys:
        print(f"safelight: whoever reaches {stack.bind} can ask the inference server, because STACK_API_KEYS=off.")
    if weak:
        print(f"safelight: {_sentence(weak)}; STACK_BIND is refused other addresses than loopback until it is rotated.")


def make_and_hand_out(root: Path, stack: Stack, *, give: bool = True) -> Mapping[str, str]:
    """All values, after what was missing was made and each consumer that has a folder got its copy.

    Args:
        root: folder with ``all`` and one for each consumer.
        stack: what the surroundings decide.
        give: the copies to the users that read them, which takes root's rights; else they stay the caller's own.

    Raises:
        LocalServiceFailed: a folder cannot be written.
    """
    with _alone(root):
        values = _complete(root)
        asks = stack.asks_for_keys or (stack.keys is None and _asks_now(root, stack))
        # Once it asks, only STACK_API_KEYS=off ends that: a command that knows nothing of a wide binding must not.
        _hand_out(root, values, dataclasses.replace(stack, keys=asks), give=give)
    return values


def check(root: Path) -> None:
    """Look at all secrets.

    Raises:
        InvalidSettings: one is missing or weak.
    """
    values = _read(root)
    missing = [name for name in generated() if name not in values]
    weak = weak_ones(values)
    if missing:
        raise InvalidSettings(
            f"{len(missing)} secrets are missing, {missing[0]} first: run `make up`, which makes them."
        )
    if weak:
        raise InvalidSettings(f"There is {_sentence(weak)}: run `make rotate SECRET={next(iter(weak))}`.")


def rotate(root: Path, stack: Stack, name: str, value: str | None = None, *, give: bool = True) -> tuple[str, ...]:
    """Replace a secret by a new one, or by a person's own; returns the services that must be started anew, in order.

    ``give`` is what it is to ``make_and_hand_out``.

    Raises:
        InvalidInput: there is no such secret, or the value cannot be one.
        LocalServiceFailed: a volume cannot be written.
    """
    if name not in SECRETS:
        raise InvalidInput(f"{name!r} is no secret: choose one of {', '.join(SECRETS)}.")
    if name == "database" and not stack.postgres:
        raise InvalidInput("Prefect's database is SQLite here, which has no password: there is nothing to replace.")
    if value is not None:
        refuse_impossible(value)
    secret = SECRETS[name]
    with _alone(root):
        values = _complete(root) | {secret.file: value or random_secret()}
        write_private(root / ALL / secret.file, values[secret.file])
        if name == "root":
            (root / "object-store" / "security.toml").unlink(missing_ok=True)  # certificates are made anew with it
        _hand_out(root, values, dataclasses.replace(stack, keys=_asks_now(root, stack)), give=give)
    by_file = stack.store == "seaweedfs" and secret.file.endswith("_secret_key")
    tells = stack.store == "silo" and stack.webhook and name == "uploads"
    return ("object-store", *secret.services) if by_file or tells else secret.services


def shown(root: Path, *, without: Container[str] = (), made_by: str = "make up") -> str:
    """What people need, and where: a line each, but for what is not there in this kind of stack.

    ``made_by``: the command that makes secrets.

    Raises:
        InvalidInput: nothing was made yet.
    """
    values = _read(root)
    lines = {
        "Prefect UI": (PREFECT_USER, "prefect_password"),
        "store, people": (values.get("people_access_key", ""), "people_secret_key"),
        "store, root": (values.get("root_user", ""), "root_password"),
        "inference": ("X-API-Key", "people_api_key"),
        "Grafana": (GRAFANA_USER, "grafana_password"),
    }
    here = {what: found for what, found in lines.items() if what not in without}
    if any(file not in values for _, file in here.values()):
        raise InvalidInput(f"There are no secrets yet: run `{made_by}`, which makes them.")
    return "\n".join(f"{what:<14} {user:<16} {values[file]}" for what, (user, file) in here.items())


def main() -> None:
    """Run a command; a person's mistake is one sentence and exit status 1."""
    try:
        _run(sys.argv[1:], Stack.from_environ(os.environ))
    except SafelightError as error:
        sys.exit(f"safelight: {error}")


def _run(words: list[str], stack: Stack) -> None:
    match words:
        case ["write"]:
            write(ROOT, stack)
            for volume in DATA.iterdir():
                _own(volume, SERVICE_UID, 0o700)
        case ["check"]:
            check(ROOT)
        case ["show"]:
            print(shown(ROOT))
        case ["rotate", name]:
            print(*rotate(ROOT, stack, name))
        case ["set", name]:
            print(*rotate(ROOT, stack, name, sys.stdin.readline().rstrip("\n")))
        case _:
            raise InvalidInput(f"Say one of {COMMANDS}.")


def _sentence(weak: Mapping[str, str]) -> str:
    name, why = next(iter(weak.items()))
    more = f" and {len(weak) - 1} more" if len(weak) > 1 else ""
    return f"a weak secret, {name} ({why}){more}"


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """While no other start writes secrets."""
    try:
        folder = os.open(root / ALL, os.O_RDONLY)
    except OSError as error:
        raise unusable(root / ALL, error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _asks_now(root: Path, stack: Stack) -> bool:
    """Whether the inference server asks for a key as it was told last, or as ``stack`` says where it was not told."""
    told = root / "serving" / "api_keys"
    if not told.is_file():
        return stack.asks_for_keys
    return api_keys.read(told.read_text(encoding="utf-8"), str(told)) is not None


def _read(root: Path) -> dict[str, str]:
    """All values that are there; an empty file is none."""
    found = {}
    for name in generated():
        path = root / ALL / name
        if path.is_file() and (value := path.read_text(encoding="utf-8").strip()):
            found[name] = value
    return found


def _complete(root: Path) -> dict[str, str]:
    """All values, after those that were missing were made."""
    values = _read(root)
    for name, make in generated().items():
        if name not in values:
            values[name] = make()
            write_private(root / ALL / name, values[name])
    return values


def _hand_out(root: Path, values: Mapping[str, str], stack: Stack, *, give: bool) -> None:
    """Make each mounted consumer's folder hold what it should, and nothing else."""
    wanted = files_of(values, stack)
    for consumer in (name for name in wanted if (root / name).is_dir()):
        folder, files = root / consumer, wanted[consumer]
        if consumer == "object-store" and stack.store == "seaweedfs":
            files = _seaweedfs_files(folder, files["s3.json"])
        for path in folder.iterdir():
            if path.name not in files:
                path.unlink()
        uid = UIDS.get(consumer, SERVICE_UID) if give else None
        for name, text in files.items():
            _hand_over(folder / name, text, uid)
        _own(folder, uid, 0o500 if give else 0o700)


def _seaweedfs_files(folder: Path, users: str) -> Files:
    """The whole configuration if it was not written to its end yet, else what is there with the present ``users``."""
    if not (folder / "security.toml").is_file():
        from pipeline import seaweedfs  # noqa: PLC0415 - brings cryptography, which no other start needs

        return seaweedfs.contained(users)
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if not path.name.startswith(".")}
    return there | {"s3.json": users}


def _hand_over(path: Path, text: str, uid: int | None) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_private(path, text)
    _own(path, uid, 0o600)


def _own(path: Path, uid: int | None, mode: int) -> None:
    """Set who may use ``path``; None leaves it to whoever has it."""
    try:
        if uid is not None:
            os.chown(path, uid, uid)
        path.chmod(mode)
    except OSError as error:
        whose = "its owner alone" if uid is None else f"user {uid}"
        raise LocalServiceFailed(f"{path} cannot be given to {whose}: {error.strerror}.") from error


if __name__ == "__main__":
    main()
