"""The inference server's own settings, from ``SAFELIGHT_SERVING_…`` variables; frozen, built only in the entry point.

- The model's name has no default: a server that guesses which model is meant would sooner or later serve another one.
- Where the models are stored, and with which credentials, is said by the variables that the pipeline uses too
  (``pipeline.settings``).
- ``$PORT`` counts where ``SAFELIGHT_SERVING_PORT`` is not set, because that is how container platforms tell the port.
"""

import difflib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from pipeline.aliases import CHAMPION
from pipeline.artifacts import Name
from pipeline.errors import InvalidSettings
from pipeline.settings import SERVING_PREFIX


def _split(origins: object) -> object:
    """The parts of a text with commas."""
    return tuple(filter(None, map(str.strip, origins.split(",")))) if isinstance(origins, str) else origins


Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[^/\s,*]+)$")]


class ServingSettings(BaseModel):
    """What the surroundings decide about one inference server.

    Attributes:
        model: name of the model to serve; has to be given.
        alias: which of its versions: the one that this alias points at, from moment to moment.
        version: serve this version for good instead.
        host: address to listen on; only this machine by default.
        port: to listen on; 0 takes a free one.
        poll_s: how often the alias is looked at, in seconds.
        top_k: how many classes an answer names.
        max_body_mb: largest request body, in MiB.
        api_keys: ``off`` says that whoever reaches the server may ask; beyond this machine, that or a file is needed.
        api_keys_file: of the keys with which clients may ask (``safelight keys new``); read anew when it changes.
        allowed_origins: of web pages elsewhere that may ask from a browser, as https://host, with commas between them;
            ``*`` for all; none by default.
        max_connections: of clients to each process, idle ones included.
        threads: cores of each process, for large images and slow models; by default its share of them.
        queue_ms: how long a queue that does not empty may make a request wait, in milliseconds; the rest is refused at
            once. By default as long as 64 images take, 4 ms at least and 2 s at most.
        processes: that answer on the one port.
        cache: folder for the last version that answered, to start from while the store is away; none by default.
        log: keep a record of every answer in the predictions zone; by default where the settings of the store say where
            that zone is.
        log_flush_s: how long a row of it may wait until it is stored, in seconds.
        log_images: keep the images as well, as they were sent: see that you may.
        drain_s: how long the server still answers after SIGTERM while it says that it is not ready, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Name
    alias: Name = CHAMPION
    version: str | None = Field(None, pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{8}$")
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    poll_s: float = Field(1.0, ge=0.05, le=60)
    top_k: int = Field(5, ge=1, le=1000)
    max_body_mb: int = Field(32, ge=1, le=1024)
    api_keys: Literal["off"] | None = None
    api_keys_file: Path | None = None
    allowed_origins: Annotated[tuple[Origin, ...], BeforeValidator(_split)] = ()
    max_connections: int = Field(4096, ge=1, le=65536)
    threads: int | None = Field(None, ge=1, le=256)
    queue_ms: int | None = Field(None, ge=1, le=60_000)
    processes: int = Field(1, ge=1, le=64)
    cache: Path | None = None
    log: bool | None = None
    log_flush_s: float = Field(60.0, ge=1, le=3600)
    log_images: bool = False
    drain_s: float = Field(0.0, ge=0, le=3600)

    @model_validator(mode="after")
    def _alias_or_version(self) -> Self:
        if self.version is not None and "alias" in self.model_fields_set:
            raise ValueError("a server follows an alias or is pinned to a version: set one of the two")
        return self

    @model_validator(mode="after")
    def _one_rule_for_keys(self) -> Self:
        if self.api_keys == "off" and self.api_keys_file is not None:
            raise ValueError("no key is asked for, and a file says which are good: set one of the two")
        return self

    @property
    def must_say_who_may_ask(self) -> bool:
        """Whether others than this machine could ask, and nothing says who of them may."""
        beyond = self.host != "localhost" and not _is_loopback(self.host)
        return beyond and self.api_keys is None and self.api_keys_file is None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """The settings that ``environ`` holds.

        Raises:
            InvalidSettings: a variable is missing, unknown or out of range.
        """
        given = {
            name.removeprefix(SERVING_PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(SERVING_PREFIX) and value != ""
        }
        _refuse_unknown(given, cls)
        if "model" not in given:
            raise InvalidSettings(
                f"{SERVING_PREFIX}MODEL is not set: it names the model to serve; `safelight models list` shows them."
            )
        port_of_platform = "port" not in given and environ.get("PORT")
        if port_of_platform:
            given["port"] = port_of_platform
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InvalidSettings(_sentence(error, "PORT" if port_of_platform else f"{SERVING_PREFIX}PORT")) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name, which may stand for anything


def _sentence(error: ValidationError, port_variable: str) -> str:
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else "version"
    variable = port_variable if field == "port" else SERVING_PREFIX + field.upper()
    return f"{variable}: {first['msg'].removeprefix('Value error, ')}."


def _refuse_unknown(given: Mapping[str, str], settings: type[BaseModel]) -> None:
    for name in given:
        if name not in settings.model_fields:
            near = difflib.get_close_matches(name, settings.model_fields, n=1)
            hint = f"; did you mean {SERVING_PREFIX}{near[0].upper()}?" if near else "."
            raise InvalidSettings(f"{SERVING_PREFIX}{name.upper()} is not a setting{hint}")
