"""What the processes of a replica share: some memory in which each has a seat, and one word that all requests read.

- **The generation is one aligned word.** A request reads it once; whoever writes it changes the answers of all
  processes in the same instant. It only grows.
- **Each place has one writer**: the word and the agreement are the coordinator's (``model_watch``), a seat's report and
  counts are its process's. Records are JSON behind a checksum, so that a reader who meets a writer sees it and reads
  again; nobody waits for a lock that a killed process might hold.
- **A seat's counts outlive its process**: the one that takes its place counts on, so no sum ever falls.
- The memory has no name and lies on no disk (but for a deleted temporary file where the system has nothing better), so
  a replica that is killed leaves nothing behind.
"""

import mmap
import os
import secrets
import struct
import tempfile
import threading
import time
import zlib
from typing import Final, TypeVar

from pydantic import BaseModel

from pipeline.errors import SafelightError
from serving.agreement import Agreement, Report
from serving.counts import BYTES as COUNTS

RecordType = TypeVar("RecordType", bound=BaseModel)

RECORD_BYTES: Final = 16384
REASON_CHARS: Final = 1000
"""Of a reason that is written on the board: some of them, in whatever script, fit into a record."""
WORD: Final = 8
WORDS: Final = 4
GENERATION, DEATHS, REPLICA = 0, 1, 2
"""Of the replica's words."""
HEARTBEAT, COMPUTES = 1, 2
"""Of a seat's words."""
SEAT_BYTES: Final = WORDS * WORD + COUNTS + RECORD_BYTES
START: Final = WORDS * WORD + RECORD_BYTES
"""Where the first seat begins; the replica's words and the agreement come before."""
HEADER = struct.Struct("<II")
READS: Final = 1000
NS: Final = 1e9


class Board:
    """The shared memory; every process of a replica has one ``Board`` on it."""

    def __init__(self, file: int) -> None:
        """``file`` is a descriptor that ``new_board_file`` made."""
        memory = memoryview(mmap.mmap(file, 0))
        self.seats = (len(memory) - START) // SEAT_BYTES
        self._counting = threading.Lock()
        self._words = memory[: WORDS * WORD].cast("Q")
        self._agreement = memory[WORDS * WORD : START]
        self._seats = [memory[at : at + SEAT_BYTES] for at in range(START, len(memory), SEAT_BYTES)]
        self._beats = [seat[: WORDS * WORD].cast("Q") for seat in self._seats]

    @property
    def generation(self) -> int:
        """The one that answers at this moment."""
        return self._words[GENERATION]

    def flip(self, generation: int) -> None:
        """From now on ``generation`` answers, in every process. For the coordinator alone."""
        self._words[GENERATION] = generation

    def agreement(self) -> Agreement:
        """What the coordinator said last."""
        return _read(self._agreement, Agreement)

    def agree(self, agreement: Agreement) -> None:
        """Say something new. For the coordinator alone."""
        _write(self._agreement, agreement)

    def report(self, seat: int) -> Report:
        """What the process on a seat said last."""
        return _read(self._seats[seat][-RECORD_BYTES:], Report)

    def say(self, seat: int, report: Report) -> None:
        """Say something new. For the process on that seat alone."""
        _write(self._seats[seat][-RECORD_BYTES:], report)

    def counts(self, seat: int) -> memoryview:
        """Where the process on a seat counts; what lies where is ``counts``'."""
        return self._seats[seat][WORDS * WORD : -RECORD_BYTES]

    def beat(self, seat: int) -> None:
        """Give a sign of life."""
        self._beats[seat][HEARTBEAT] = time.monotonic_ns()

    def silent_s(self, seat: int) -> float | None:
        """Seconds since the process on a seat gave its last sign of life; None if it never did."""
        last = self._beats[seat][HEARTBEAT]
        return (time.monotonic_ns() - last) / NS if last else None

    def compute(self, seat: int, *, busy: bool) -> None:
        """Say that the process on a seat begins to compute, or is done with it. For that process alone."""
        with self._counting:  # it may compute for two models at once
            self._beats[seat][COMPUTES] += 1 if busy else -1

    def others_compute(self, seat: int) -> bool:
        """Whether another process of the replica computes at this moment."""
        return any(words[COMPUTES] for other, words in enumerate(self._beats) if other != seat)

    @property
    def replica(self) -> str:
        """Random; another one after each start of the server."""
        return f"{self._words[REPLICA]:016x}"

    @property
    def deaths(self) -> int:
        """How many processes of the replica ended without being told to."""
        return self._words[DEATHS]

    def vacate(self, seat: int) -> None:
        """Forget the dead process that sat there, but for its counts. For the supervisor alone."""
        self._words[DEATHS] += 1
        self._beats[seat][HEARTBEAT] = 0
        self._beats[seat][COMPUTES] = 0
        self.say(seat, Report())


def new_board_file(seats: int) -> int:
    """A descriptor of memory for ``seats`` processes, to be inherited by them."""
    file = nameless_file("safelight-board")
    os.ftruncate(file, START + seats * SEAT_BYTES)
    os.pwrite(file, secrets.token_bytes(WORD), REPLICA * WORD)
    return file


def reason(error: Exception) -> str:
    """Why something failed, in words that can be written on the board."""
    text = str(error) if isinstance(error, SafelightError) else f"{type(error).__name__}: {error}"
    return text.encode(errors="replace").decode()[:REASON_CHARS]


def nameless_file(name: str) -> int:
    """A descriptor of an empty file without a name in any folder, which is gone with its last holder.

    Raises:
        OSError: the system has no such memory, and no temporary folder can be written.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile(prefix=name) as file:
        return os.dup(file.fileno())


def _write(area: memoryview, record: BaseModel) -> None:
    text = record.model_dump_json().encode()
    if len(text) > RECORD_BYTES - HEADER.size:
        raise ValueError(f"{len(text)} bytes do not fit on the board")
    area[HEADER.size : HEADER.size + len(text)] = text
    area[: HEADER.size] = HEADER.pack(len(text), zlib.crc32(text))


def _read(area: memoryview, kind: type[RecordType]) -> RecordType:
    """The record in ``area``; an empty one before anything was written, and where a writer died in the middle."""
    for _ in range(READS):
        size, checksum = HEADER.unpack(area[: HEADER.size])
        text = bytes(area[HEADER.size : HEADER.size + size])
        if size and zlib.crc32(text) == checksum:
            return kind.model_validate_json(text)
        if not size:
            break
    return kind()
