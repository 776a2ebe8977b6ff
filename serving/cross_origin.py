"""Which web pages of other origins may ask from a browser: none, unless a setting names them.

Starlette's middleware, but that its refusals are problems. Cookies are none of it, for there are none.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from serving.problems import problem

EXPOSED = ("X-Request-Id", "Traceparent", "Retry-After", "Inference-Header-Content-Length")
"""Headers of an answer that such a page may read."""


class CrossOrigin(CORSMiddleware):
    """ASGI middleware; stands before whatever asks for a key, since a browser asks for leave without one."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """``origins`` as ``https://host``, or ``*`` for all of them."""
        super().__init__(
            app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=EXPOSED
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Whether a page may ask."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        return problem(answer.status_code, f"{bytes(answer.body).decode()}.", {"Vary": "Origin"})
