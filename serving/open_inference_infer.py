"""The protocol's one busy route: inference requests, as JSON or in binary form, read, answered and described."""

import asyncio
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from pipeline.errors import NotFound
from serving.calls import Call
from serving.errors import NothingLive
from serving.front import call_in
from serving.live_model import LiveModel
from serving.open_inference_request import SHOWN_CHARS, read_request
from serving.open_inference_response import Encoded, write_response
from serving.open_inference_schemas import RequestObject, ResponseObject
from serving.routes import Direct, Server, bounded_body, problems, refuse_compressed, refuse_other_model
from serving.status import nothing_live

TAG: Final = "Open Inference Protocol"
JSON_LENGTH: Final = "Inference-Header-Content-Length"
JSON, BINARY = "application/json", "application/octet-stream"
PATHS: Final = {
    "/v2/models/{name}/versions/{version}/infer": "Classify images with the live version, by its name",
    "/v2/models/{name}/infer": "Classify images",
}

_BYTES: Mapping[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY: Mapping[str, Any] = {
    "required": True,
    "description": "JSON, or JSON followed by binary data: then the header tells how long the JSON is.",
    "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{RequestObject.__name__}"}}, BINARY: _BYTES},
}
_JSON_LENGTH: Mapping[str, Any] = {
    "name": JSON_LENGTH,
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "Bytes of JSON at the body's beginning, which binary data follow; without it, all of the body is "
    "JSON. 0: the body is one image as it is.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs: JSON, followed by binary data where such were asked for.",
        "model": ResponseObject,
        "content": {BINARY: _BYTES},
        "headers": {JSON_LENGTH: {"description": "Bytes of JSON before binary data.", "schema": {"type": "integer"}}},
    },
    **problems(
        {
            400: "Not an inference request: a wrong shape, datatype, size or name.",
            404: "Another model is served here, or another version is live.",
            413: "The body is over the limit.",
            415: "A compressed body.",
            422: "Bytes that are not an image we read.",
            429: "More is waiting than can be answered in time.",
            503: "No model is live yet.",
            504: "The request's own deadline has passed.",
        }
    ),
}


def add_infer(app: FastAPI) -> None:
    """The routes under the model's and the version's name: the app's own, and the first that are tried."""
    for path, summary in PATHS.items():
        names = re.findall(r"{(\w+)}", path)
        in_path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
        app.router.add_api_route(
            path,
            infer,
            methods=["POST"],
            route_class_override=Direct,
            tags=[TAG],
            summary=summary,
            response_class=Response,
            responses=_RESPONSES,
            openapi_extra={"parameters": [*in_path, _JSON_LENGTH], "requestBody": _BODY},
        )
        app.router.routes.insert(0, app.router.routes.pop())


async def infer(request: Request) -> Response:
    """Send images, encoded or as pixels; get probabilities, labels, or both, as JSON or in binary form.

    - `image`, BYTES `[n]`: encoded images (PNG, JPEG, WebP, BMP, TIFF, GIF); in JSON as base64 strings, in binary form
      each with its length in four bytes, little-endian, before it.
    - `pixels`, UINT8 `[n, height, width, channels]`: of the size that the model's metadata name.
    - outputs: `probabilities`, FP32 `[n, classes]`; `label`, BYTES `[n]`; `probability`, FP32 `[n]`; all, where the
      request names none.

    Under a version's name that version answers, or nobody does.
    """
    server: Server = request.app.state.server
    refuse_other_model(request.path_params["name"], server)
    version = request.path_params.get("version")
    # What the others answer with already may have to be waited for: seldom, and not on the event loop.
    live = server.participant.live_now() or await asyncio.to_thread(server.participant.live)
    if live is None:
        raise no_model(server)
    refuse_other_version(version, server, live)
    refuse_compressed(request)
    body = await bounded_body(request, server.settings.max_body_mb << 20)
    asked = read_request(body, request.headers.get(JSON_LENGTH), live.manifest.pixels)
    call = dataclasses.replace(_within(call_in(request.scope), asked.timeout_s), version=version)
    answers = await server.predictor.answer(call, asked.images)
    refuse_other_version(version, server, answers.live)
    return _response(
        write_response(
            asked.id or call.request_id, answers.live.manifest, answers.probabilities, asked.outputs, answers.role
        )
    )


def no_model(server: Server) -> NothingLive:
    """Why nobody gets an answer."""
    return NothingLive(nothing_live(server.participant.board, server.settings.model))


def refuse_other_version(version: str | None, server: Server, live: LiveModel | None) -> None:
    """Answer for the live version alone; None stands for whichever it is.

    Raises:
        NotFound: it is another one.
    """
    if version is None or (live and live.manifest.version == version):
        return
    is_live = f"{live.manifest.version!r} is" if live else "none is"
    raise NotFound(f"Version {version[:SHOWN_CHARS]!r} of model {server.settings.model!r} is not live; {is_live}.")


def _within(call: Call, timeout_s: float | None) -> Call:
    """The call with the request's own time limit, if that one comes first."""
    if timeout_s is None:
        return call
    deadline = math.inf if call.deadline is None else call.deadline
    return dataclasses.replace(call, deadline=min(call.begun + timeout_s, deadline))


def _response(answer: Encoded) -> Response:
    if answer.json_length is None:
        return Response(answer.body, media_type=JSON)
    return Response(answer.body, media_type=BINARY, headers={JSON_LENGTH: str(answer.json_length)})
