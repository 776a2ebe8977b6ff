import asyncio

import httpx
import pytest
from fastapi import FastAPI

from pipeline.errors import Corrupted, InvalidImage, InvalidInput, NotFound, SafelightError, StoreUnavailable
from serving.problems import answer_problems


def answered(error: Exception | None, path: str = "/fails") -> httpx.Response:
    """What a client gets from a route that raises ``error``, or takes a number."""
    app = FastAPI()
    answer_problems(app)

    @app.get("/fails")
    async def fails(number: int = 0) -> int:
        if error is not None:
            raise error
        return number

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidImage("it is no image"), 422),
        (NotFound("it is not there"), 404),
        (InvalidInput("it is empty"), 400),
        (StoreUnavailable("the store is away"), 503),
        (Corrupted("it was altered"), 502),
        (SafelightError("something else"), 500),
    ],
)
def test_our_errors_have_their_status_and_their_sentence(error: Exception, status: int) -> None:
    """Each kind of error is a problem of one status, with the error's own sentence as detail."""
    answer = answered(error)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == str(error)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_what_nobody_foresaw_tells_nothing() -> None:
    """A mistake of the program is a 500 whose detail does not give away what happened."""
    answer = answered(RuntimeError("secret detail"))
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text


def test_a_bad_parameter_is_named() -> None:
    """FastAPI's own validation answers as a problem, naming the parameter."""
    answer = answered(None, "/fails?number=x")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["detail"].startswith("query.number: ")
