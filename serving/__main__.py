"""``python -m serving``: the inference server, in one process or several.

Exit status 0 after SIGTERM or SIGINT, with every request that was under way answered; 1 when the address cannot be
listened on; 2 when a setting is wrong. What went wrong is one sentence on standard error.
"""

import logging
import os
import socket
import sys
from collections.abc import Mapping

from pipeline.errors import InvalidSettings
from pipeline.settings import SERVING_PREFIX, Settings
from pipeline.store import Store
from serving.api_keys import ApiKeys
from serving.board import Board, new_board_file
from serving.entry import models_zone, predictions_zone, prepare_process
from serving.listener import listen, url
from serving.model_files import Shelf
from serving.model_watch import ModelWatch
from serving.settings import ServingSettings
from serving.supervisor import Supervisor

log = logging.getLogger("serving")


def main(environ: Mapping[str, str]) -> int:
    """Serve until a signal comes; the exit status."""
    prepare_process()
    try:
        settings = ServingSettings.from_environ(environ)
        _refuse_no_store(environ)
        _refuse_everybody(settings)
        models, predictions = models_zone(environ), predictions_zone(environ, settings.log)
        listener = listen(settings)
    except InvalidSettings as error:
        return _refused(str(error), 2)
    except OSError as error:
        return _refused(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}.", 1)
    # Connections made from now on wait in the listener's queue.
    log.info("model %s answers at %s", settings.model, url(settings.host, listener))
    if settings.processes == 1:
        _serve_alone(settings, models, predictions, listener)
    else:
        _serve_with_several(settings, models, listener, environ)
    return 0


def _serve_alone(settings: ServingSettings, models: Store, predictions: Store | None, listener: socket.socket) -> None:
    # Here, because the parent of several processes needs none of what these bring.
    from serving.app import create_app  # noqa: PLC0415
    from serving.worker import serve  # noqa: PLC0415

    serve(create_app(settings, models, predictions), listener, settings, alone=True)


def _serve_with_several(
    settings: ServingSettings, models: Store, listener: socket.socket, environ: Mapping[str, str]
) -> None:
    """This process coordinates and watches the others, which answer."""
    board, shelf = new_board_file(settings.processes), Shelf.new()
    watch = ModelWatch(models, settings, Board(board), shelf)
    watch.start()
    try:
        Supervisor(settings, listener, board, shelf, environ).run()
    finally:
        watch.stop()


def _refuse_no_store(environ: Mapping[str, str]) -> None:
    if Settings.from_environ(environ).uses_embedded_store:
        raise InvalidSettings(
            "Nothing says where the models are: set SAFELIGHT_STORE_URL, SAFELIGHT_MODELS_URL or "
            "SAFELIGHT_S3_ENDPOINT; `safelight serve` does it for the store on this machine."
        )


def _refuse_everybody(settings: ServingSettings) -> None:
    """What answers others than this machine says who may ask, before it is asked."""
    if settings.must_say_who_may_ask:
        raise InvalidSettings(
            f"{SERVING_PREFIX}HOST={settings.host} lets others than this machine ask: name the keys that are good with "
            f"{SERVING_PREFIX}API_KEYS_FILE (`safelight keys new NAME` makes one), or say {SERVING_PREFIX}API_KEYS=off."
        )
    ApiKeys(settings.api_keys_file)


def _refused(sentence: str, status: int) -> int:
    sys.stderr.write(f"serving: {sentence}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(os.environ))
