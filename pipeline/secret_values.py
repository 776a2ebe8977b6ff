"""The stack's secrets as values: which there are, how each is made, when one is weak, and who reads which.

No file is touched here; ``stack_secrets`` does that.
"""

import itertools
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Final, Literal

from pipeline import api_keys
from pipeline.errors import InvalidInput, InvalidSettings
from pipeline.store_users import STORE_USERS, identities

LOOPBACK = "127.0.0.1"
PREFECT_USER = "safelight"
GRAFANA_USER = "safelight"
WEBHOOK = """MINIO_NOTIFY_WEBHOOK_ENABLE_SAFELIGHT="on"
MINIO_NOTIFY_WEBHOOK_ENDPOINT_SAFELIGHT="http://upload-events:8090/"
MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_SAFELIGHT="{}"
MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_SAFELIGHT="/data/.uploads-not-told"
MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_SAFELIGHT="1000"
"""
"""What Silo reads with ``MINIO_CONFIG_ENV_FILE``; events wait while nobody listens, as many as that."""
DATABASE = "postgresql+asyncpg://safelight:{}@postgres:5432/safelight"
ALLOWED = frozenset(api_keys.LETTERS + "-._~")
"""What needs no escaping in a URL, a shell and a configuration file."""
SHORTEST, LONGEST, DIFFERENT = 16, 40, 8
"""Bounds of a secret's length (the longest is MinIO's), and how many different characters a strong one has."""

random_secret: Final = api_keys.new_key
"""A new secret is 190 bits, too."""

Files = dict[str, str]


@dataclass(frozen=True, slots=True)
class Stack:
    """What the surroundings decide.

    Attributes:
        bind: the address that ports are published on.
        store: the server of the store.
        postgres: whether Prefect's database is Postgres.
        webhook: whether the store tells of uploads by itself.
        keys: whether the inference server asks for a key; None where that depends on ``bind``.
    """

    bind: str = LOOPBACK
    store: Literal["silo", "seaweedfs"] = "silo"
    postgres: bool = False
    webhook: bool = False
    keys: bool | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Stack":
        """What the ``STACK_…`` variables say.

        Raises:
            InvalidSettings: one cannot be what it is.
        """
        store, database = environ.get("STACK_STORE") or "silo", environ.get("STACK_DATABASE") or "sqlite"
        keys = {"": None, "on": True, "off": False}
        if (said := environ.get("STACK_API_KEYS") or "") not in keys:
            raise InvalidSettings(f"STACK_API_KEYS: {said!r} is neither on nor off.")
        if store not in {"silo", "seaweedfs"}:
            raise InvalidSettings(f"STACK_STORE: {store!r} is neither silo nor seaweedfs.")
        if database not in {"sqlite", "postgres"}:
            raise InvalidSettings(f"STACK_DATABASE: {database!r} is neither sqlite nor postgres.")
        return cls(
            environ.get("STACK_BIND") or LOOPBACK,
            "seaweedfs" if store == "seaweedfs" else "silo",
            database == "postgres",
            environ.get("STACK_WEBHOOK") == "on",
            keys[said],
        )

    @property
    def asks_for_keys(self) -> bool:
        """Whether the inference server does: beyond this machine it does, unless somebody said that it does not."""
        return self.is_wide if self.keys is None else self.keys

    @property
    def is_wide(self) -> bool:
        """Whether ports are published beyond this machine.

        Raises:
            InvalidSettings: ``bind`` is no address.
        """
        try:
            return not ip_address(self.bind.strip("[]")).is_loopback
        except ValueError as error:
            raise InvalidSettings(
                f"STACK_BIND: {self.bind!r} is no IP address: use one of this machine's, or 0.0.0.0 for all of them."
            ) from error


@dataclass(frozen=True, slots=True)
class Secret:
    """What is rotated as one: the file that changes, and the services that must read it again."""

    file: str
    services: tuple[str, ...]


SECRETS: Mapping[str, Secret] = {
    "root": Secret("root_password", ("object-store",)),
    "worker": Secret("worker_secret_key", ("worker",)),
    "serving": Secret("serving_secret_key", ("serving",)),
    "people": Secret("people_secret_key", ()),
    "cli": Secret("cli_secret_key", ()),
    "events": Secret("events_secret_key", ("upload-events",)),
    "people-key": Secret("people_api_key", ()),
    "pipeline-key": Secret("pipeline_api_key", ("worker",)),
    "uploads": Secret("uploads_token", ("upload-events",)),
    "prefect": Secret("prefect_password", ("prefect-server", "worker", "upload-events")),
    "database": Secret("database_password", ("prefect-server",)),
    "grafana": Secret("grafana_password", ("grafana",)),
}


def generated() -> dict[str, Callable[[], str]]:
    """How each value is made, by the name of its file."""
    found: dict[str, Callable[[], str]] = {}
    for user in STORE_USERS:
        found[f"{user}_access_key"] = partial(_named, user)
        found[f"{user}_secret_key"] = random_secret
    return found | {
        "root_user": partial(_named, "root"),
        "root_password": random_secret,
        "prefect_password": random_secret,
        "people_api_key": api_keys.new_key,
        "pipeline_api_key": api_keys.new_key,
        "uploads_token": random_secret,
        "database_password": random_secret,
        "grafana_password": random_secret,
    }


def weakness(value: str) -> str | None:
    """Why ``value`` is no secret that strangers could be left to guess at; None if it is one."""
    if len(value) < SHORTEST:
        return f"it has {len(value)} characters, and {SHORTEST} are needed"
    if len(set(value)) < DIFFERENT:
        return f"it has {len(set(value))} different characters, and {DIFFERENT} are needed"
    if value in (value + value)[1:-1]:
        return "it repeats itself"
    if len({ord(after) - ord(before) for before, after in itertools.pairwise(value)}) < DIFFERENT // 2:
        return "its characters follow one another in order"
    return None


def files_of(values: Mapping[str, str], stack: Stack) -> dict[str, Files]:
    """What each consumer reads, by its name and the file's; a SeaweedFS's certificates are not among it."""
    keys = {user: (values[f"{user}_access_key"], values[f"{user}_secret_key"]) for user in STORE_USERS}
    login = f"{PREFECT_USER}:{values['prefect_password']}"
    root = {name: values[name] for name in ("root_user", "root_password")}
    client = {"PREFECT_API_AUTH_STRING": login}
    server = client | {"PREFECT_SERVER_API_AUTH_STRING": login}
    if stack.postgres:
        server["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = DATABASE.format(values["database_password"])
    users = {name: values[name] for user in STORE_USERS for name in (f"{user}_access_key", f"{user}_secret_key")}
    own = {user: {"store_access_key": key, "store_secret_key": secret} for user, (key, secret) in keys.items()}
    seaweedfs = {"s3.json": identities((root["root_user"], root["root_password"]), keys)}
    asking = {"inference_api_key": values["pipeline_api_key"]}
    silo = root | ({"config.env": WEBHOOK.format(values["uploads_token"])} if stack.webhook else {})
    return {
        "object-store": silo if stack.store == "silo" else seaweedfs,
        "store-init": root | users,
        "prefect-server": server,
        "prefect-init": client,
        "worker": own["worker"] | client | asking,
        "cli": own["cli"] | client | asking,
        "upload-events": own["events"] | client | {"uploads_token": values["uploads_token"]},
        "serving": own["serving"] | {"api_keys": _good_keys(values, stack)},
        "postgres": {"password": values["database_password"]},
        "grafana": {"grafana_password": values["grafana_password"]},
    }


def _good_keys(values: Mapping[str, str], stack: Stack) -> str:
    """What the inference server reads: who may ask it, or that nobody is asked."""
    names = ("people", "pipeline")
    keys = {name: api_keys.digest_of_key(values[f"{name}_api_key"]) for name in names}
    return api_keys.written(keys if stack.asks_for_keys else None)


def weak_ones(values: Mapping[str, str]) -> dict[str, str]:
    """Which secrets are weak, and why."""
    found = {name: weakness(values[secret.file]) for name, secret in SECRETS.items() if secret.file in values}
    return {name: why for name, why in found.items() if why}


def _named(name: str) -> str:
    return f"{name}-{secrets.token_hex(4)}"


def refuse_impossible(value: str) -> None:
    """Refuse a person's own value that not everything which reads it could hold.

    Raises:
        InvalidInput: it is too short or too long, or has an odd character.
    """
    odd = sorted(set(value) - ALLOWED)
    if odd:
        raise InvalidInput(f"The new value has the character {odd[0]!r}: use letters, digits and -._~ alone.")
    if not 8 <= len(value) <= LONGEST:
        raise InvalidInput(f"The new value has {len(value)} characters: use {SHORTEST} to {LONGEST}.")
