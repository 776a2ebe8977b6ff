"""Several processes on one socket: started, watched, started again when they die, and told to end together.

- Each process is a fresh interpreter: nothing that has threads is ever forked, and one that died leaves no trace in the
  next. Its descriptors are all that it inherits.
- The first signal is passed on at once, so that all are not ready in the same moment; from then on nobody is started
  again. The second one kills.
- A process whose event loop gives no sign of life is killed. It is looked at often before that is believed: where the
  whole server was frozen for a while (a laptop's lid), nobody hung.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

from serving.board import Board
from serving.entry import FINISH_S
from serving.model_files import Shelf
from serving.settings import ServingSettings

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1
SIGNALS: Final = 64
"""So many are read at once."""
SILENT_S: Final = 10.0
SILENT_LOOKS: Final = 50
"""So long, and at so many looks in a row, a process must be silent to be killed."""
START_S: Final = 60.0
"""How long a process may take to give its first sign of life."""
SHORT_LIFE_S: Final = 5.0
"""One that lived for less is started again after a pause, longer from time to time."""
LONGEST_PAUSE_S: Final = 30.0
GRACE_S: Final = 10.0
"""Beyond what a process may take to end, before it is killed."""


class Seat:
    """One process's place, and who sits there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.start_at = 0.0
        self.short_lives = 0
        self.silent_looks = 0


class Supervisor:
    """The parent of all processes of a server."""

    def __init__(
        self, settings: ServingSettings, listener: socket.socket, board: int, shelf: Shelf, environ: Mapping[str, str]
    ) -> None:
        """Nothing is started yet; ``board`` is the descriptor of the memory that all share."""
        self._settings = settings
        self._listener = listener
        self._board_file = board
        self._board = Board(board)
        self._shelf = shelf
        self._environ = dict(environ)
        self._seats = [Seat(number) for number in range(settings.processes)]
        self._lifeline, self._end = os.pipe()  # held open by this process alone
        self._told, self._tell = os.pipe()  # a signal comes at any moment; this way it is seen to at a good one
        self._ending_since: float | None = None

    def run(self) -> None:
        """Until a signal comes and all have ended."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os.write(self._tell, b"!"))
        while self._look():
            heard, _, _ = select.select([self._told], [], [], LOOK_S)
            for _ in os.read(self._told, SIGNALS) if heard else b"":
                self._pass_on()

    def _look(self) -> bool:
        """See to each process; whether any is left, or will be."""
        for seat in self._seats:
            if seat.process is not None and seat.process.poll() is not None:
                self._bury(seat)
            if seat.process is not None:
                self._judge(seat)
            elif self._ending_since is None and time.monotonic() >= seat.start_at:
                self._start(seat)
        return self._ending_since is None or any(seat.process for seat in self._seats)

    def _start(self, seat: Seat) -> None:
        inherited = [self._listener.fileno(), self._board_file, self._lifeline, *self._shelf.files]
        # -P: what happens to be called "serving" in the working folder is not ours.
        command = [sys.executable, "-P", "-m", "serving.worker", str(seat.number), *map(str, inherited)]
        # A session of its own: Ctrl-C is this process's to pass on.
        seat.process = subprocess.Popen(command, pass_fds=inherited, env=self._environ, start_new_session=True)
        seat.started, seat.silent_looks = time.monotonic(), 0

    def _bury(self, seat: Seat) -> None:
        assert seat.process is not None  # noqa: S101 - only who was started can have died
        if self._ending_since is None:
            lived = time.monotonic() - seat.started
            seat.short_lives = seat.short_lives + 1 if lived < SHORT_LIFE_S else 0
            pause = min(LONGEST_PAUSE_S, 2.0 ** (seat.short_lives - 1)) if seat.short_lives > 1 else 0.0
            seat.start_at = time.monotonic() + pause
            log.warning(
                "process %d ended with status %d; another one takes its place%s",
                seat.process.pid,
                seat.process.returncode,
                f" in {pause:.0f} s" if pause else "",
            )
        seat.process = None
        self._board.vacate(seat.number)

    def _judge(self, seat: Seat) -> None:
        """Kill a process that hangs, or does not end."""
        assert seat.process is not None  # noqa: S101 - only who was started is judged
        limit = self._settings.drain_s + FINISH_S + GRACE_S
        if self._ending_since is not None and time.monotonic() - self._ending_since > limit:
            seat.process.kill()
        silent_s = self._board.silent_s(seat.number)
        if silent_s is None:
            silent_s = time.monotonic() - seat.started - START_S
        seat.silent_looks = seat.silent_looks + 1 if silent_s > SILENT_S else 0
        if seat.silent_looks > SILENT_LOOKS:
            log.warning("process %d gives no sign of life and is killed", seat.process.pid)
            seat.process.kill()

    def _pass_on(self) -> None:
        """Tell all to end; at the second time, end them."""
        again = self._ending_since is not None
        self._ending_since = self._ending_since or time.monotonic()
        for seat in self._seats:
            if seat.process is not None:
                seat.process.send_signal(signal.SIGKILL if again else signal.SIGTERM)
        # The processes have it; held here, it would take connections that nobody accepts.
        self._listener.close()
