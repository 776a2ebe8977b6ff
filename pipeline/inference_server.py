"""The inference server that a deployment asks: one that the settings name, or else one of this machine for each model.

- A local server is found again by later commands. It is stopped and started again if it runs with other settings than
  it would be given now (an embedded store that moved to another port, say).
- Credentials travel in its environment, which is its user's own; its arguments are everybody's to read.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from pydantic import SecretStr

from pipeline import processes
from pipeline.settings import PREFIX, SERVING_PREFIX, Settings
from pipeline.zones import reachable

SERVICE = "serving-"
"""Begins the name of each local inference server; the model's name follows."""
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """An inference server; ``log`` says where its log is, ``headers`` what every request to it carries."""

    url: str
    log: str
    headers: Mapping[str, str] = field(default_factory=dict)


def up(settings: Settings, model: str) -> Server:
    """The inference server that the settings name, else this machine's own for ``model``, started if need be.

    Raises:
        LocalServiceFailed: it could not be started.
    """
    if settings.inference_url is not None:
        return Server(settings.inference_url.rstrip("/"), "where that server runs", settings.inference_headers)
    settings = reachable(settings)
    service = processes.until_listening(
        lambda: _started(settings, model), lambda started: _is_up(_url(started)), START_TIMEOUT_S
    )
    return Server(_url(service), service.log, settings.inference_headers)


def browser_url(settings: Settings, model: str) -> str | None:
    """Where a person's browser finds the server of ``model``; None where that is not known.

    The address at which a deployment asks (``inference_url``) may mean something inside a network of containers alone.
    """
    if settings.public_url is not None or settings.inference_url is not None:
        return settings.public_url
    found = processes.find(settings.home, SERVICE + model)
    return _url(found) if found else None


def down(settings: Settings) -> list[str]:
    """Stop the inference servers that were started on this machine; the names of those that ran."""
    names = [service.name for service in processes.running(settings.home) if service.name.startswith(SERVICE)]
    return [name for name in names if processes.stop(settings.home, name)]


def environ(
    settings: Settings, model: str, port: int, surroundings: Mapping[str, str], *, host: str = "127.0.0.1"
) -> dict[str, str]:
    """The whole environment of a server: ``surroundings``, with what ``settings`` say in place of ours."""
    kept = {
        name: value
        for name, value in surroundings.items()
        if not name.startswith(PREFIX) or name.startswith(SERVING_PREFIX)
    }
    for pinned in ("ALIAS", "VERSION"):  # the server must follow the alias that a deployment moves
        kept.pop(SERVING_PREFIX + pinned, None)
    given = settings.model_dump(exclude_defaults=True, exclude_none=True)
    return kept | {
        **{PREFIX + name.upper(): _text(value) for name, value in given.items()},
        f"{SERVING_PREFIX}MODEL": model,
        f"{SERVING_PREFIX}HOST": host,
        f"{SERVING_PREFIX}PORT": str(port),
    }


def _started(settings: Settings, model: str) -> processes.Service:
    """The local server of ``model``, running with these settings."""
    name = SERVICE + model
    found = processes.find(settings.home, name)
    port = found.ports["http"] if found else processes.free_port(settings.inference_port)
    env = environ(settings, model, port, os.environ)
    if found and _ours(_environ_of(found.pid)) != _ours(env):
        processes.stop(settings.home, name)
    # -P: what happens to be called "serving" in the working folder is not ours.
    command = [sys.executable, "-P", "-m", "serving"]
    return processes.start(settings.home, name, command, env=env, ports={"http": port})


def _url(service: processes.Service) -> str:
    return f"http://127.0.0.1:{service.ports['http']}"


def _environ_of(pid: int) -> dict[str, str]:
    try:
        return psutil.Process(pid).environ()
    except psutil.Error:
        return {}


def _ours(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(PREFIX)}


def _text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/live", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False
