"""The routes of the Open Inference Protocol (KServe's V2), as Triton's and KServe's clients speak it.

- The model has one live version: it answers under the model's name and under its own. Other versions are listed, not
  asked; what a client pinned is answered by that version or refused, whatever goes live meanwhile.
- An error is problem JSON that also has the protocol's member ``error``.
"""

import asyncio
import dataclasses
from importlib import metadata
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response

from pipeline import registry
from pipeline.errors import NotFound
from serving.calls import Call
from serving.errors import NothingLive
from serving.front import call_in
from serving.live_model import LiveModel
from serving.open_inference_request import read_request
from serving.open_inference_response import Encoded, write_response
from serving.open_inference_schemas import (
    ModelReady,
    RegisteredVersion,
    RegisteredVersions,
    RequestObject,
    ResponseObject,
    ServerMetadata,
)
from serving.routes import (
    FromServer,
    Server,
    bounded_body,
    problems,
    refuse_compressed,
    refuse_other_model,
)
from serving.schemas import Live, ModelStatus, Ready
from serving.status import model_status, nothing_live, report_path

JSON_LENGTH: Final = "Inference-Header-Content-Length"
BINARY: Final = "application/octet-stream"
SHOWN_VERSIONS: Final = 50
MOST_VERSIONS: Final = 200

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

_OTHER_MODEL = problems({404: "Another model is served here."})
_NOT_LIVE = problems({404: "Another model is served here, or another version is live."})
_NOT_READY = problems({503: "No model is live, or the server is about to end."})
_JSON_OR_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_INFERENCE: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {
            "description": "The outputs: JSON, followed by binary data where such were asked for.",
            "model": ResponseObject,
            "content": {BINARY: _JSON_OR_BINARY},
            "headers": {
                JSON_LENGTH: {"description": "Bytes of JSON before binary data.", "schema": {"type": "integer"}}
            },
        },
        **problems(
            {
                400: "Not an inference request: a wrong shape, datatype, size or name.",
                404: "Another model is served here, or another version is live.",
                413: "The body is over the limit.",
                415: "A compressed body.",
                422: "Bytes that are not an image we read.",
                503: "No model is live yet, or more is waiting than can be answered in time.",
                504: "The request's own deadline has passed.",
            }
        ),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "JSON, or JSON followed by binary data: then the header tells how long the JSON is.",
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{RequestObject.__name__}"}},
                BINARY: _JSON_OR_BINARY,
            },
        }
    },
}
JsonLength = Annotated[
    str | None,
    Header(
        alias=JSON_LENGTH,
        description="Bytes of JSON at the body's beginning; binary data follow. 0: the body is one image as it is.",
    ),
]


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


@router.post("/models/{name}/infer", summary="Classify images", **_INFERENCE)
async def infer(name: str, request: Request, server: FromServer, json_length: JsonLength = None) -> Response:
    """Send images, encoded or as pixels; get probabilities, labels, or both, as JSON or in binary form.

    - `image`, BYTES `[n]`: encoded images (PNG, JPEG, WebP, BMP, TIFF, GIF); in JSON as base64 strings, in binary form
      each with its length in four bytes, little-endian, before it.
    - `pixels`, UINT8 `[n, height, width, channels]`: of the size that the model's metadata name.
    - outputs: `probabilities`, FP32 `[n, classes]`; `label`, BYTES `[n]`; `probability`, FP32 `[n]`; all, where the
      request names none.
    """
    refuse_other_model(name, server)
    return await _inferred(request, server, json_length)


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
    return RegisteredVersions(
        name=name,
        live=number,
        versions=tuple(
            RegisteredVersion(
                version=each.version,
                live=each.version == number,
                created_at=each.created_at,
                metrics=each.metrics,
                dataset=each.dataset.dataset,
                dataset_version=each.dataset.version,
                training_run=each.training_run,
                code_revision=each.code_revision,
                report=report_path(each),
            )
            for each in registry.versions(server.models, name, limit)
        ),
    )


@router.get("/models/{name}/versions/{version}", summary="The live version, by its name", responses=_NOT_LIVE)
async def version_status(name: str, version: str, server: FromServer) -> ModelStatus:
    """The same as without the version, as long as that one is live."""
    refuse_other_model(name, server)
    _refuse_other_version(version, server, server.participant.live_now())
    return await status(name, server)


@router.get("/models/{name}/versions/{version}/ready", summary="The version is live", responses=_NOT_LIVE | _NOT_READY)
async def version_ready(name: str, version: str, server: FromServer) -> ModelReady:
    """Whether images sent now would be classified by that version."""
    refuse_other_model(name, server)
    _refuse_other_version(version, server, server.participant.live_now())
    return await ready(name, server)


@router.post("/models/{name}/versions/{version}/infer", summary="Classify images with the live version", **_INFERENCE)
async def version_infer(
    name: str, version: str, request: Request, server: FromServer, json_length: JsonLength = None
) -> Response:
    """The same as without the version, by that version or not at all."""
    refuse_other_model(name, server)
    return await _inferred(request, server, json_length, version)


async def _inferred(request: Request, server: Server, json_length: str | None, version: str | None = None) -> Response:
    # The process waits for what the others answer with already: seldom, and not on the event loop.
    live = server.participant.live_now() or await asyncio.to_thread(server.participant.live)
    if live is None:
        raise _nothing_live(server)
    _refuse_other_version(version, server, live)
    refuse_compressed(request)
    body = await bounded_body(request, server.settings.max_body_mb << 20)
    asked = read_request(body, json_length, live.manifest.pixels)
    call = _within(call_in(request.scope), asked.timeout_s)
    answers = await server.predictor.answer(call, asked.images)
    _refuse_other_version(version, server, answers.live)
    return _response(
        write_response(asked.id or call.request_id, answers.live.manifest, answers.probabilities, asked.outputs)
    )


def _within(call: Call, timeout_s: float | None) -> Call:
    """The call with the request's own time limit, if that one comes first."""
    if timeout_s is None:
        return call
    return dataclasses.replace(call, deadline=min(call.begun + timeout_s, call.deadline or float("inf")))


def _response(answer: Encoded) -> Response:
    if answer.json_length is None:
        return Response(answer.body, media_type="application/json")
    return Response(answer.body, media_type=BINARY, headers={JSON_LENGTH: str(answer.json_length)})


def _refuse_not_ready(server: Server) -> None:
    if server.participant.draining:
        raise HTTPException(503, "This server is about to end.")
    if server.participant.live_now() is None:
        raise _nothing_live(server)


def _nothing_live(server: Server) -> NothingLive:
    return NothingLive(nothing_live(server.participant.board, server.settings.model))


def _refuse_other_version(version: str | None, server: Server, live: LiveModel | None) -> None:
    if version is None or (live and live.manifest.version == version):
        return
    is_live = f"{live.manifest.version!r} is" if live else "none is"
    raise NotFound(f"Version {version[:80]!r} of model {server.settings.model!r} is not live; {is_live}.")
