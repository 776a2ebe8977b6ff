"""The composition root of the inference server."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from pipeline.store import Store
from serving import cores
from serving.api_keys import ApiKeys, describe_keys
from serving.board import Board, new_board_file
from serving.counts import Counts
from serving.cross_origin import CrossOrigin
from serving.front import Front
from serving.metrics import exposition
from serving.model_files import Shelf
from serving.model_watch import ModelWatch
from serving.open_inference import router as open_inference_router
from serving.open_inference_infer import add_infer
from serving.open_inference_schemas import RequestObject
from serving.page import page_router
from serving.participant import Participant
from serving.prediction_log import PredictionLog
from serving.predictor import Predictor
from serving.problems import PROBLEM_CONTENT, answer_problems
from serving.routes import Server, add_predict, router
from serving.schemas import Problem
from serving.settings import ServingSettings
from serving.status import processes

DESCRIPTION = """\
Classifies images with the model version that an alias of the registry points at, and says with each answer which
version that was. Everything that goes wrong comes back as problem JSON (RFC 9457).
"""
BEAT_S: Final = 0.25
"""Between two signs of life of the event loop."""
LOOK_S: Final = 0.02


def create_app(settings: ServingSettings, models: Store, predictions: Store | None = None) -> FastAPI:
    """The server as an ASGI application in one process; it follows the alias between its start-up and its shutdown.

    Args:
        settings: of this server.
        models: the models zone; opened without patience, since the watch looks again anyway.
        predictions: the zone to log answers to, opened without patience as well; None to log none.
    """
    board, shelf = Board(new_board_file(1)), Shelf.new()
    watch = ModelWatch(models, settings, board, shelf)
    participant = Participant(board, shelf, 0, os.getpid(), threads=settings.threads)
    return create_worker_app(settings, models, participant, watch, predictions)


def create_worker_app(
    settings: ServingSettings,
    models: Store,
    participant: Participant,
    watch: ModelWatch | None = None,
    predictions: Store | None = None,
) -> FastAPI:
    """The application of one process of several; without a ``watch``, another process coordinates.

    ``/docs`` needs no internet: fastapi-offline brings Swagger UI's files, which FastAPI's own page loads from a CDN.
    """
    counts = Counts(participant.board.counts(participant.seat))
    log = prediction_log(settings, predictions, counts)
    app = FastAPIOffline(
        redoc_url=None,
        # Asking each request whether somebody traces costs a tenth of it; the trace context goes on without (calls).
        telemetry={"tracing": False, "metrics": False, "logs": False},
        title=f"Safelight: {settings.model}",
        description=DESCRIPTION,
        version="1",
        lifespan=_lifespan(participant, watch, log),
        # In place of FastAPI's own description of a 422, which we never send.
        responses={"4XX": {"description": "Any other problem with the request.", "content": PROBLEM_CONTENT}},
    )
    add_infer(app)
    add_predict(app)
    app.include_router(router)
    app.include_router(open_inference_router)
    app.include_router(page_router(settings.model))
    answer_problems(app)
    keys = ApiKeys(settings.api_keys_file)
    app.add_middleware(Front, counts=counts, keys=keys)
    if settings.allowed_origins:
        app.add_middleware(CrossOrigin, origins=settings.allowed_origins)
    # What FastAPI does not see, because its routes read and write bytes.
    _, described = models_json_schema(
        [(Problem, "serialization"), (RequestObject, "validation")], ref_template="#/components/schemas/{model}"
    )
    app.openapi()["components"]["schemas"] |= described["$defs"]
    if settings.api_keys_file:
        describe_keys(app.openapi())
    threads = settings.threads or cores.share(cores.of_this_machine(), settings.processes)
    queue_s = settings.queue_ms / 1000 if settings.queue_ms else None
    app.state.server = Server(
        settings,
        models,
        participant,
        Predictor(
            participant,
            counts,
            threads=threads,
            top_k=settings.top_k,
            queue_s=queue_s,
            model=settings.model,
            log=log,
        ),
        counts,
        keys,
        exposition(participant, settings.model),
    )
    return app


def prediction_log(settings: ServingSettings, predictions: Store | None, counts: Counts) -> PredictionLog | None:
    """The log of one process, as the settings want it; None without a zone to log to."""
    if predictions is None:
        return None
    return PredictionLog(
        predictions, settings.model, settings.log_flush_s, counts.log_dropped, images=settings.log_images
    )


def _lifespan(
    participant: Participant, watch: ModelWatch | None, log: PredictionLog | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        participant.start()
        if log:
            log.start()
        beating = asyncio.create_task(_beat(participant))
        if watch:
            watch.start()
        await _let_others_answer(participant)
        try:
            yield
        finally:
            beating.cancel()
            if watch:
                watch.stop()
            participant.stop()
            app.state.server.predictor.close()
            if log:
                log.stop()

    return lifespan


async def _beat(participant: Participant) -> None:
    while True:
        participant.board.beat(participant.seat)
        await asyncio.sleep(BEAT_S)


async def _let_others_answer(participant: Participant) -> None:
    """Take no connection before this process has what the others answer with, as long as there are such."""
    board = participant.board
    while not participant.has_joined and any(each.ready for each in processes(board).values()):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)  # the others are other processes: nobody here could set an event
