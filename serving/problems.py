"""Everything that goes wrong, as RFC 9457 problem JSON: our errors, FastAPI's own, and what nobody foresaw.

====  =====================================================================================================
400   no body, broken multipart, no file among the parts, too many parts, a client that left while sending;
      no inference request: not JSON, a wrong name, shape, datatype or size
401   no API key, or one that is not good; with WWW-Authenticate
404   another model than the one served, an unknown version, an unknown path
408   a head or a body that does not come, or too slowly
413   a body over the limit
415   a multipart type other than form-data, or a compressed body
422   bytes that are not an image we read: text, truncated, too many pixels, an unsupported format
429   more work than can be answered in time; with Retry-After
431   a head of too many bytes or headers
499   the client has left; nobody reads it
500   the model raised on this image
502   the store holds something else than it should, or refuses the server
503   no model yet, or the store does not answer; with Retry-After
504   the request's own deadline has passed
====  =====================================================================================================
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.errors import InvalidImage, InvalidInput, NotFound, SafelightError, StoreError, StoreUnavailable
from serving.errors import ClientGone, DeadlineExceeded, NothingLive, Overloaded, Unauthorized
from serving.schemas import Problem

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PROBLEM_CONTENT = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
"""How OpenAPI describes the body of each problem."""
RETRY_AFTER_S = 2
TITLES = {413: "Content Too Large", 422: "Unprocessable Content", 499: "Client Closed Request"}
"""The names of RFC 9110, which Python's own table has since 3.13."""


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A response that says what was wrong."""
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return Response(_body(status, detail), status, media_type=MEDIA_TYPE, headers={**retry, **(headers or {})})


def problem_of(error: SafelightError) -> Response:
    """The response to one of our errors."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = error.challenge
    return problem(_status(error), str(error), headers)


def _body(status: int, detail: str) -> str:
    title = TITLES.get(status) or HTTPStatus(status).phrase
    return Problem(title=title, status=status, detail=detail, error=detail).model_dump_json()


def answer_problems(app: FastAPI) -> None:
    """Make every error of ``app`` a problem."""
    app.add_exception_handler(SafelightError, _ours)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _unforeseen)


def _status(error: Exception) -> int:
    statuses: dict[type[Exception], int] = {
        InvalidImage: 422,
        NotFound: 404,
        InvalidInput: 400,
        StoreUnavailable: 503,
        StoreError: 502,
        NothingLive: 503,
        Overloaded: 429,
        DeadlineExceeded: 504,
        ClientGone: 499,
        Unauthorized: 401,
    }
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 500)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, SafelightError)  # noqa: S101 - it is registered for nothing else
    if isinstance(error, StoreError):
        log.warning("%s %s: %s", request.method, request.url.path, error)
    return problem_of(error)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for nothing else
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = f"{request.method} {request.url.path} is not served here; /docs tells what is."
    return problem(error.status_code, detail, error.headers)


async def _of_validation(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for nothing else
    first = error.errors()[0]
    return problem(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}.")


async def _left(request: Request, error: Exception) -> Response:
    del request, error
    return problem(400, "The client left before its request was complete.")


async def _unforeseen(request: Request, error: Exception) -> Response:
    del request, error  # Starlette raises it again after the answer, and the server logs it with its traceback
    return unforeseen()


def unforeseen() -> Response:
    """The response to what nobody foresaw."""
    return problem(500, "Something went wrong on the server; its log has the details.")
