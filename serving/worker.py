"""One process that answers: uvicorn on the shared socket, until it is told to drain and end.

``python -m serving.worker SEAT LISTENER BOARD LIFELINE SHELF…`` is what ``supervisor`` starts; the numbers after the
seat are inherited descriptors.

- **SIGTERM or SIGINT**: from that moment on it says that it is not ready, and each answer asks its client to close the
  connection; after ``drain_s`` it takes no new connections and finishes what is under way. A second signal ends a
  process that is alone at once; among several that is the supervisor's to do, for a signal to all of them reaches each
  twice. Either way the exit status is 0.
- When the supervisor is gone, however it went, the lifeline ends and so does the worker.
"""

import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from serving.app import create_worker_app
from serving.board import Board
from serving.connections import KEEP_ALIVE_S, Limits, look_at_all
from serving.entry import FINISH_S, models_zone, predictions_zone, prepare_process
from serving.express import NOT_PLAIN, Express
from serving.listener import BACKLOG, inherited
from serving.model_files import Shelf
from serving.participant import Participant
from serving.routes import Server
from serving.settings import ServingSettings

SECURITY_HEADERS: Final = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
]
"""Of every answer, those of the connection itself included; pages have a Content-Security-Policy of their own."""
CLOSE: Final = (b"connection", b"close")
OTHER_FILES: Final = 256
"""Open files of a process that are no connections, at the most."""
LOOK_TICKS: Final = 10
"""Between two looks at all connections; there are ten ticks in a second."""


def main(environ: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Serve until told to end; the exit status."""
    prepare_process()
    seat, listener, board, lifeline, *shelf = map(int, arguments)
    settings = ServingSettings.from_environ(environ)
    participant = Participant(Board(board), Shelf(shelf), seat, os.getpid(), threads=settings.threads)
    threading.Thread(target=_end_with, args=[lifeline], name="lifeline", daemon=True).start()
    predictions = predictions_zone(environ, settings.log)
    app = create_worker_app(settings, models_zone(environ), participant, predictions=predictions)
    serve(app, inherited(listener), settings, alone=False)
    return 0


def serve(app: FastAPI, listener: socket.socket, settings: ServingSettings, *, alone: bool) -> None:
    """Answer on ``listener`` until a signal comes; ``alone``: there is no supervisor."""
    server = server_of(app, settings, alone=alone)
    # What was imported and built until now lives as long as the process: to look through it for garbage again and again
    # would hold up requests for some 20 ms each time.
    gc.collect()
    gc.freeze()
    server.run([listener])


def server_of(app: FastAPI, settings: ServingSettings, *, alone: bool) -> "DrainingServer":
    """What answers with ``app``, once it runs."""
    server: Server = app.state.server
    limits = Limits(settings.max_body_mb << 20, allowed_connections(settings.max_connections), server.counts.refused)
    not_plain = NOT_PLAIN | {b"origin"} if settings.allowed_origins else NOT_PLAIN
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(  # type: ignore[arg-type]
            Express, server.predictor, server.counts, server.keys, limits, not_plain
        ),
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,
        headers=SECURITY_HEADERS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FINISH_S,
        # So many connections asyncio accepts at once: where several processes share the socket, none takes them all.
        backlog=1,
    )
    return DrainingServer(config, server, limits, alone=alone)


def allowed_connections(wanted: int) -> int:
    """How many connections this process may have: as many as ``wanted``, or as the system lets it have open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * 5 // 4 + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, max(1, (soft - OTHER_FILES) * 4 // 5))


class DrainingServer(uvicorn.Server):
    """uvicorn, but that it says goodbye first."""

    def __init__(self, config: uvicorn.Config, server: Server, limits: Limits, *, alone: bool) -> None:
        super().__init__(config)
        self._alone = alone
        self._participant = server.participant
        self._drain_s = server.settings.drain_s
        self._keys = server.keys
        self._limits = limits
        self._leave_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        for each in sockets or []:
            each.listen(BACKLOG)  # asyncio took what it accepts at once for the length of the queue

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        ends = await super().on_tick(counter)
        if counter % LOOK_TICKS == 0:
            look_at_all(tuple(self.server_state.connections), self._limits, time.monotonic())
            self._keys.look()
        if self._leave_at is None:
            return ends
        if CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        return ends or time.monotonic() >= self._leave_at

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal."""
        del sig, frame
        if self._leave_at is None:
            self._participant.drain()
            self._leave_at = time.monotonic() + self._drain_s
        elif self._alone:
            os._exit(0)


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written there
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(os.environ, sys.argv[1:]))
