"""The threads that decode what the event loop does not, and who has to wait for a turn.

- Headers of large bodies are read here too: walking 30 MB of segments takes a fifth of a second.
- **Large images take their turns**, one at a time in a process: each may take a gigabyte of memory and two seconds, and
  a small file is enough for that. Some may wait; the others are refused at once, and images of a usual size never wait
  for them.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from serving.batch import Job, examine, why_not
from serving.errors import Overloaded

Done = Callable[[Job, Exception | None], None]

LARGE_WAITING: Final = 4
"""Jobs of large images in a process, the one under way included."""
RETRY_AFTER_S: Final = 2


class Decoders:
    """Two pools; used by the event loop alone."""

    def __init__(self, threads: int, decode: Callable[[Job], None], done: Done) -> None:
        """Nothing runs yet.

        Args:
            threads: that decode images of a usual size.
            decode: called with a job in one of the threads.
            done: told on the event loop that a job was decoded, or why it was not.
        """
        self._decode = decode
        self._done = done
        self._usual = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="decode-large")
        self._waiting = 0

    def put(self, job: Job) -> None:
        """Decode a job's images when it is their turn."""
        self._usual.submit(self._run, job, asyncio.get_running_loop())

    def close(self) -> None:
        """Let the threads finish what they are at."""
        self._usual.shutdown()
        self._large.shutdown()

    def _run(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        error = why_not(job) or _caught(partial(examine, job))
        if error is None and job.is_large:
            loop.call_soon_threadsafe(self._put_large, job, loop)
        else:
            loop.call_soon_threadsafe(self._done, job, error or _caught(partial(self._decode, job)))

    def _put_large(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting >= LARGE_WAITING:
            self._done(job, Overloaded("Other large images are being decoded; try again later.", RETRY_AFTER_S))
        else:
            self._waiting += 1
            self._large.submit(self._run_large, job, loop)

    def _run_large(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        error = why_not(job) or _caught(partial(self._decode, job))
        loop.call_soon_threadsafe(self._large_is_done, job, error)

    def _large_is_done(self, job: Job, error: Exception | None) -> None:
        self._waiting -= 1
        self._done(job, error)


def _caught(work: Callable[[], None]) -> Exception | None:
    """What it raised: the call gets it, and a future that nobody reads would keep it."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    return None
