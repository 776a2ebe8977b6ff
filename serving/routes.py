"""The routes. Each takes its one reference to the live model and keeps to it until it has answered."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from pipeline import registry
from pipeline.artifacts import ModelVersion
from pipeline.errors import NotFound
from pipeline.store import Store
from serving.api_keys import ApiKeys
from serving.canary_report import canary_report
from serving.counts import Counts
from serving.encode import json_of
from serving.front import PREDICT, call_in
from serving.participant import Participant
from serving.predictor import Predictor
from serving.problems import PROBLEM_CONTENT
from serving.schemas import CanaryReport, Prediction, Predictions
from serving.settings import ServingSettings
from serving.uploads import MAX_PARTS, is_multipart, uploads

REPORT = "report.html"
REPORT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "sandbox allow-scripts",
    )
)
"""The report shows and runs what is in it (its own policy narrows the scripts down to one digest), fetches and sends
nothing, and has an origin of its own, apart from this server's."""

router = APIRouter()

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "An encoded image: PNG, JPEG, WebP, BMP, TIFF or GIF, whatever the Content-Type says; or one "
        "or several of them as the file parts of multipart/form-data, under any field name.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": MAX_PARTS,
                        }
                    },
                },
                "encoding": {"image": {"contentType": "image/png, image/jpeg, application/octet-stream"}},
            },
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}


@dataclass(frozen=True, slots=True)
class Server:
    """What the routes work with; built by the composition root."""

    settings: ServingSettings
    models: Store
    participant: Participant
    predictor: Predictor
    counts: Counts
    keys: ApiKeys
    scraped: Callable[[str], tuple[bytes, str]]


async def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


FromServer = Annotated[Server, Depends(_server)]


def problems(details: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of problems, by their status."""
    return {status: {"description": text, "content": PROBLEM_CONTENT} for status, text in details.items()}


async def predict(request: Request) -> Response:
    """Send an image, get its classes.

    - one, as it is: `curl --data-binary @boot.png http://127.0.0.1:8080/predict`
    - one or several, as a form: `curl -F image=@boot.png -F image=@shirt.jpg http://127.0.0.1:8080/predict`
    """
    server: Server = request.app.state.server
    content_type = _image_type(request)
    body = await bounded_body(request, server.settings.max_body_mb << 20)
    call = call_in(request.scope)
    answers = await server.predictor.answer(call, uploads(content_type, body))
    return Response(json_of(answers, call.request_id), media_type="application/json")


class Direct(APIRoute):
    """A route whose function takes the request and nothing else, as long as nobody gave it dependencies.

    FastAPI would solve those that are not there for longer than it takes to decode an image.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        if self.dependant.dependencies:
            return super().get_route_handler()
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def add_predict(app: FastAPI) -> None:
    """The busiest route: the app's own, and the first that is tried. An included router costs each request more."""
    app.router.add_api_route(
        PREDICT,
        predict,
        methods=["POST"],
        route_class_override=Direct,
        summary="Classify images",
        response_model=Prediction | Predictions,
        response_description="A prediction for one image; a list of them, in order, for several.",
        openapi_extra=_BODY,
        responses=problems(
            {
                400: "There is no image in the body.",
                413: "The body is over the limit.",
                415: "A multipart type other than form-data, or a compressed body.",
                422: "Bytes that are not an image we read.",
                429: "More is waiting than can be answered in time.",
                503: "No model is live yet.",
                504: "The request's own deadline has passed.",
            }
        ),
    )
    app.router.routes.insert(0, app.router.routes.pop())


@router.get(
    "/v2/models/{name}/canary",
    summary="How the challenger does",
    responses=problems({404: "Another model is served here."}),
)
async def canary(name: str, server: FromServer) -> CanaryReport:
    """What all processes of this server counted of champion and challenger since the latter went live here."""
    refuse_other_model(name, server)
    return canary_report(server.participant.board)


@router.get("/metrics", summary="For Prometheus", response_class=Response)
async def metrics(request: Request, server: FromServer) -> Response:
    """Requests, durations and versions of all processes of this server, whichever of them answers."""
    text, media_type = server.scraped(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type})


@router.get(
    "/v2/models/{name}/versions/{version}/report",
    summary="The evaluation report of a version",
    response_class=Response,
    responses={
        200: {"description": "A self-contained page.", "content": {"text/html": {}}},
        **problems(
            {
                404: "No such version of that model.",
                502: "The stored report is not the one that was registered.",
                503: "The object store does not answer.",
            }
        ),
    },
)
def report(name: str, version: str, server: FromServer) -> Response:
    """The page that was stored beside the model, its SHA-256 verified; of any model, not only the served one."""
    try:
        wanted = ModelVersion(model=name, version=version)
    except ValidationError as error:
        raise NotFound(f"{version!r} is not a version of a model.") from error
    manifest = registry.read_manifest(server.models, wanted.model, wanted.version)
    page = registry.load_file(server.models, manifest, REPORT)
    return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})


def refuse_other_model(name: str, server: Server) -> None:
    """Answer for the served model alone.

    Raises:
        HTTPException: 404, it is another one.
    """
    if name != server.settings.model:
        raise HTTPException(404, f"This server serves model {server.settings.model!r}, not {name[:80]!r}.")


def _image_type(request: Request) -> str:
    """The Content-Type of a body that may hold an image; of what is not certainly none, the decoder judges the bytes.

    Raises:
        HTTPException: 415, it certainly does not.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.lower().lstrip().startswith("multipart/") and not is_multipart(content_type):
        raise HTTPException(415, f"{content_type.partition(';')[0]} is not read: send multipart/form-data.")
    refuse_compressed(request)
    return content_type


def refuse_compressed(request: Request) -> None:
    """Images are compressed already, and nothing here may grow beyond what was sent.

    Raises:
        HTTPException: 415, the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPException(415, f"Content-Encoding {encoding[:80]} is not read: send the body as it is.")


async def bounded_body(request: Request, limit: int) -> bytes:
    """The request's body, never more of it than ``limit`` bytes in memory.

    What a refused client goes on sending is thrown away by the server, so that it gets to read the answer.

    Raises:
        HTTPException: 413, the body is declared or found to be over ``limit`` bytes.
    """
    excess = HTTPException(413, f"The body is over the limit of {limit >> 20} MiB.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise excess
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise excess
        body += chunk
    return bytes(body)
