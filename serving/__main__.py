"""``python -m serving``: the inference server as a process.

Exit status 0 after SIGTERM or SIGINT, with every request that was under way answered; 1 when the address cannot be
listened on; 2 when a setting is wrong. What went wrong is one sentence on standard error.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Final, NoReturn

import uvicorn
from fastapi import FastAPI

from pipeline.errors import InvalidSettings
from pipeline.settings import SERVING_PREFIX, Settings
from pipeline.store import Store, open_store
from serving.app import create_app
from serving.settings import ServingSettings

log = logging.getLogger("serving")

DRAIN_S: Final = 30
"""How long requests that are under way may take after SIGTERM, in seconds."""
BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - only what such an address is shown as


def main(environ: Mapping[str, str]) -> int:
    """Serve until a signal comes; the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # A client's mistake is the client's to read, in the answer; the parser would log each.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    try:
        settings = ServingSettings.from_environ(environ)
        models = _models_zone(environ)
        listener = _listen(settings)
    except InvalidSettings as error:
        return _refused(f"{error}", 2)
    except OSError as error:
        return _refused(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}.", 1)
    _serve(create_app(settings, models), listener, settings)
    return 0


def _serve(app: FastAPI, listener: socket.socket, settings: ServingSettings) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    # Connections made from now on wait in the listener's queue.
    log.info("model %s answers at %s", settings.model, _url(settings.host, listener))
    uvicorn.Server(config).run([listener])


def _models_zone(environ: Mapping[str, str]) -> Store:
    settings = Settings.from_environ(environ)
    if settings.uses_embedded_store:
        raise InvalidSettings(
            "Nothing says where the models are: set SAFELIGHT_STORE_URL, SAFELIGHT_MODELS_URL or "
            "SAFELIGHT_S3_ENDPOINT; `safelight serve` does it for the store on this machine."
        )
    return open_store(settings.zone_url("models"), settings.model_copy(update={"store_patience_s": 0.0}))


def _listen(settings: ServingSettings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        InvalidSettings: the host is no address of this machine.
        OSError: the port is taken, or is not ours to take.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InvalidSettings(f"{SERVING_PREFIX}HOST: {settings.host} is not an address: {error.strerror}.") from error
    family, kind, _, _, address = found[0]
    # With its protocol named: asyncio switches Nagle's algorithm off on no other sockets, and each answer to a client
    # that keeps its connection open would wait 40 ms for an acknowledgement.
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    shown = "127.0.0.1" if host in WILDCARDS else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _refused(sentence: str, status: int) -> int:
    sys.stderr.write(f"serving: {sentence}\n")
    return status


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Before and after uvicorn handles signals itself; it raises the signal again when it is done."""
    del number, frame
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(os.environ))
