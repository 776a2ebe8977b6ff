"""The composition root of the inference server."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from pipeline.store import Store
from serving.model_watch import ModelWatch
from serving.predictor import Predictor
from serving.problems import PROBLEM_CONTENT, answer_problems
from serving.routes import Server, router
from serving.schemas import Problem
from serving.settings import ServingSettings

DESCRIPTION = """\
Classifies images with the model version that an alias of the registry points at, and says with each answer which
version that was. Everything that goes wrong comes back as problem JSON (RFC 9457).
"""


def create_app(settings: ServingSettings, models: Store) -> FastAPI:
    """The server as an ASGI application; it follows the alias between its start-up and its shutdown.

    ``/docs`` needs no internet: fastapi-offline brings Swagger UI's files, which FastAPI's own page loads from a CDN.

    Args:
        settings: of this server.
        models: the models zone; opened without patience, since the watch looks again anyway.
    """
    app = FastAPIOffline(
        redoc_url=None,
        title=f"Safelight: {settings.model}",
        description=DESCRIPTION,
        version="1",
        lifespan=_lifespan(settings, models),
        # In place of FastAPI's own description of a 422, which we never send.
        responses={"4XX": {"description": "Any other problem with the request.", "content": PROBLEM_CONTENT}},
    )
    app.include_router(router)
    answer_problems(app)
    app.openapi()["components"]["schemas"][Problem.__name__] = Problem.model_json_schema()
    return app


def _lifespan(settings: ServingSettings, models: Store) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch = ModelWatch(models, settings)
        predictor = Predictor(settings.threads, settings.top_k)
        app.state.server = Server(settings, models, watch, predictor)
        watch.start()
        try:
            yield
        finally:
            watch.stop()
            predictor.close()

    return lifespan
