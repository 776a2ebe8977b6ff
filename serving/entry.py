"""What every process of the server does first, and how long it may take to end; knows nothing of requests."""

import logging
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Final, NoReturn

from pipeline.settings import Settings
from pipeline.store import Store, open_store

FINISH_S: Final = 30
"""How long requests that are under way may take after the drain, in seconds."""


def prepare_process() -> None:
    """The log, and what signals do before the server handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # A client's mistake is the client's to read, in the answer; the parser would log each.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def models_zone(environ: Mapping[str, str]) -> Store:
    """The models zone, opened without patience.

    Raises:
        InvalidSettings: a setting of the store is wrong.
    """
    settings = Settings.from_environ(environ)
    return open_store(settings.zone_url("models"), settings.model_copy(update={"store_patience_s": 0.0}))


def predictions_zone(environ: Mapping[str, str], wanted: bool | None) -> Store | None:
    """The zone that predictions are logged to, opened without patience; None where they are not.

    Args:
        environ: names the store.
        wanted: whether predictions are logged; None: where it is said where that zone is. A bucket of our own name in
            a store that is everybody's may be anybody's.

    Raises:
        InvalidSettings: a setting of the store is wrong.
    """
    settings = Settings.from_environ(environ)
    if wanted is None:
        wanted = bool(settings.predictions_url or settings.store_url or settings.s3_endpoint)
    if not wanted:
        return None
    return open_store(settings.zone_url("predictions"), settings.model_copy(update={"store_patience_s": 0.0}))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Before uvicorn handles signals itself."""
    del number, frame
    raise SystemExit(0)
