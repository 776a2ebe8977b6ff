"""The routes of the Open Inference Protocol (KServe's V2), as Triton's and KServe's clients speak it.

- The model has one live version: it answers under the model's name and under its own. Other versions are listed, not
  asked; what a client pinned is answered by that version or refused, whatever goes live meanwhile.
- An error is problem JSON that also has the protocol's member ``error``.
"""

from importlib import metadata
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Query

from pipeline import registry
from pipeline.registry import ModelManifest
from serving.open_inference_infer import TAG, no_model, refuse_other_version
from serving.open_inference_schemas import ModelReady, RegisteredVersion, RegisteredVersions, ServerMetadata
from serving.routes import FromServer, Server, problems, refuse_other_model
from serving.schemas import Live, ModelStatus, Ready
from serving.status import model_status, report_path

SHOWN_VERSIONS: Final = 50
MOST_VERSIONS: Final = 200

router = APIRouter(prefix="/v2", tags=[TAG])

_OTHER_MODEL = problems({404: "Another model is served here."})
_NOT_LIVE = problems({404: "Another model is served here, or another version is live."})
_NOT_READY = problems({503: "No model is live, or the server is about to end."})


@router.get("", summary="What this server is")
@router.get("/", include_in_schema=False)
async def server_metadata() -> ServerMetadata:
    """Its name, its version and the protocol's extensions that it speaks."""
    return ServerMetadata(version=metadata.version("safelight"))


@router.get("/health/live", summary="The process answers")
async def health_live() -> Live:
    """Always, as long as it answers at all."""
    return Live()


@router.get("/health/ready", summary="A model is loaded", responses=_NOT_READY)
async def health_ready(server: FromServer) -> Ready:
    """Whether images sent now would be classified; no more from the moment on when the server is told to end."""
    _refuse_not_ready(server)
    return Ready()


@router.get("/models/{name}", summary="What is live", responses=_OTHER_MODEL)
async def status(name: str, server: FromServer) -> ModelStatus:
    """The protocol's metadata; the live version, where it comes from, and why nothing newer is live; each process."""
    refuse_other_model(name, server)
    seat = server.participant
    return model_status(server.settings, seat.board, seat.live_now(), draining=seat.draining)


@router.get("/models/{name}/ready", summary="The model is loaded", responses=_OTHER_MODEL | _NOT_READY)
async def ready(name: str, server: FromServer) -> ModelReady:
    """Whether images sent now would be classified."""
    refuse_other_model(name, server)
    _refuse_not_ready(server)
    return ModelReady(name=name)


@router.get(
    "/models/{name}/versions",
    summary="The registered versions",
    responses=_OTHER_MODEL | problems({503: "The object store does not answer."}),
)
def versions(
    name: str, server: FromServer, limit: Annotated[int, Query(ge=1, le=MOST_VERSIONS)] = SHOWN_VERSIONS
) -> RegisteredVersions:
    """The newest versions in the registry, newest first: their metrics, where they come from, which one is live."""
    refuse_other_model(name, server)
    live = server.participant.live_now()
    number = live.manifest.version if live else None
    found = registry.versions(server.models, name, limit)
    return RegisteredVersions(name=name, live=number, versions=tuple(_registered(each, number) for each in found))


@router.get("/models/{name}/versions/{version}", summary="The live version, by its name", responses=_NOT_LIVE)
async def version_status(name: str, version: str, server: FromServer) -> ModelStatus:
    """The same as without the version, as long as that one is live."""
    refuse_other_model(name, server)
    refuse_other_version(version, server, server.participant.live_now())
    return await status(name, server)


@router.get("/models/{name}/versions/{version}/ready", summary="The version is live", responses=_NOT_LIVE | _NOT_READY)
async def version_ready(name: str, version: str, server: FromServer) -> ModelReady:
    """Whether images sent now would be classified by that version."""
    refuse_other_model(name, server)
    refuse_other_version(version, server, server.participant.live_now())
    return await ready(name, server)


def _registered(manifest: ModelManifest, live: str | None) -> RegisteredVersion:
    return RegisteredVersion(
        version=manifest.version,
        live=manifest.version == live,
        created_at=manifest.created_at,
        metrics=manifest.metrics,
        dataset=manifest.dataset.dataset,
        dataset_version=manifest.dataset.version,
        training_run=manifest.training_run,
        code_revision=manifest.code_revision,
        report=report_path(manifest),
    )


def _refuse_not_ready(server: Server) -> None:
    if server.participant.draining:
        raise HTTPException(503, "This server is about to end.")
    if server.participant.live_now() is None:
        raise no_model(server)
