"""The one socket on which a server answers, whatever number of processes accept from it."""

import socket
from typing import Final

from pipeline.errors import InvalidSettings
from pipeline.settings import SERVING_PREFIX
from serving.settings import ServingSettings

BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - only what such an address is shown as


def listen(settings: ServingSettings) -> socket.socket:
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


def inherited(file: int) -> socket.socket:
    """The socket behind a descriptor that another process opened, its protocol named as ``listen`` names it."""
    found = socket.socket(fileno=file)
    return socket.socket(found.family, found.type, socket.IPPROTO_TCP, found.detach())


def url(host: str, listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    port = listener.getsockname()[1]
    shown = "127.0.0.1" if host in WILDCARDS else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
