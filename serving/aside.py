"""Work that may take long, or never end, on a thread of its own: whoever wants its result looks whether it is there."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def aside(work: Callable[[], Result], name: str) -> "Future[Result]":
    """Begin ``work``. To give it up, forget it: the thread is a daemon, so that it never keeps the process from ending.

    That is what ``ThreadPoolExecutor`` does not offer: it waits for its threads, and for what is queued behind one.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - the one who asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
