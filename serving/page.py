"""The page ``/``, where one drops an image; its files lie in ``static/`` and fetch nothing from anywhere else.

Its policy lets it run and style itself by its own files alone, show pictures that the browser itself holds, and talk to
this server. It works without a model, and says so.
"""

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Final

from fastapi import APIRouter, Response

PAGE: Final = "page.html"
SCRIPTS: Final = ("page.js", "cards.js", "files.js", "key.js", "origin.js", "server.js", "words.js")
MEDIA_TYPES: Final = {
    PAGE: "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8"),
    "icon.svg": "image/svg+xml",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
}


def page_router(model: str) -> APIRouter:
    """Routes of the page of ``model`` and of its files, which are read once, here."""
    folder = resources.files("serving") / "static"
    router = APIRouter(include_in_schema=False)
    for name, media_type in MEDIA_TYPES.items():
        # A model's name needs no escaping: it is made of a-z, 0-9, "-" and "_".
        data = (folder / name).read_bytes().replace(b"{{ model }}", model.encode())
        path = "/" if name == PAGE else f"/static/{name}"
        router.add_api_route(path, _answering(data, media_type), methods=["GET", "HEAD"], response_class=Response)
    return router


def _answering(data: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(data, media_type=media_type, headers=HEADERS)

    return answer
