"""Files that exhaust other servers: each is refused or answered, in bounded time, and nobody else waits for it."""

import asyncio
import threading

import hostile_images
import httpx
import pytest
import tiny_models
from PIL import Image

from pipeline import images
from serving.batch import Done, Job
from serving.calls import call_of
from serving.decoders import Decoders
from serving.errors import Overloaded
from serving.uploads import Upload

LARGE = hostile_images.png(5000, 4000)
USUAL = hostile_images.png(400, 400)
PNG = images.encode_png(tiny_models.picture(5))
BOMBS = {
    "13,000 x 13,000 PNG": hostile_images.png(13_000, 13_000, rows=50),
    "20,000 x 20,000 PNG": hostile_images.png(20_000, 20_000, rows=50),
    "JPEG": hostile_images.promising("JPEG", 60_000, 60_000),
    "GIF": hostile_images.promising("GIF", 60_000, 60_000),
    "BMP": hostile_images.promising("BMP", 60_000, 60_000),
    "TIFF": hostile_images.promising("TIFF", 60_000, 60_000),
    "WebP": hostile_images.webp(16_000, 16_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(client: httpx.Client, name: str) -> None:
    """Raw and in a form: no decoder sees it, and the problem says how many pixels there would be."""
    for sent in ({"content": BOMBS[name]}, {"files": {"f": ("a", BOMBS[name])}}):
        answer = client.post("/predict", **sent)  # type: ignore[arg-type]
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        assert "pixels, the limit is 50 million" in answer.json()["detail"]


@pytest.mark.parametrize("name", hostile_images.small())
def test_what_contradicts_itself_is_answered_or_refused(client: httpx.Client, name: str) -> None:
    """200 or 422, never anything else, and the server goes on."""
    assert client.post("/predict", content=hostile_images.small()[name]).status_code in {200, 422}
    assert client.post("/predict", content=PNG).status_code == 200


def test_twenty_megabytes_of_noise_are_refused(client: httpx.Client) -> None:
    """By their first bytes."""
    answer = client.post("/predict", content=bytes(range(1, 256)) * (20 << 12))
    assert answer.status_code == 422


def test_a_frame_larger_than_its_canvas_is_not_taken_for_a_small_image(client: httpx.Client) -> None:
    """A GIF of 1 x 1 pixels with a frame of 8,000 x 8,000 is refused by what it would decode to."""
    data = hostile_images.saved(Image.new("P", (16, 16)), "GIF")
    at = data.index(b"\x2c") + 5
    frame = data[:6] + b"\x01\0\x01\0" + data[10:at] + b"\x40\x1f\x40\x1f" + data[at + 4 :]
    answer = client.post("/predict", content=frame)
    assert answer.status_code == 422
    assert "8000 x 8000 pixels" in answer.json()["detail"]


def test_more_pixels_than_a_request_may_have_are_refused(client: httpx.Client) -> None:
    """Each image is below the limit, and all of them together are not."""
    large = hostile_images.png(7000, 7000, rows=10)
    answer = client.post("/predict", files=[("f", ("a", large))] * 5)
    assert (answer.status_code, "more than 200 million pixels" in answer.json()["detail"]) == (422, True)


def job(data: bytes, done: Done) -> Job:
    """A call with one image."""
    return Job(call_of([], 0.0), [Upload("", data)], done, 0.0, size=len(data))


def test_large_images_take_turns_and_nobody_else_waits_for_them() -> None:
    """One is decoded at a time, three wait, the others are refused; an image of a usual size is decoded meanwhile."""
    decoding: list[Job] = []
    most = 0
    go_on = threading.Event()

    def decode(each: Job) -> None:
        nonlocal most
        if each.is_large:
            decoding.append(each)
            most = max(most, len(decoding))
            assert go_on.wait(30)
            decoding.remove(each)

    async def ask() -> tuple[list[Exception | None], list[int]]:
        outcomes: list[Exception | None] = []
        sizes: list[int] = []
        ended = asyncio.Event()

        def done(each: Job, error: Exception | None) -> None:
            outcomes.append(error)
            sizes.append(each.size)
            if len(outcomes) == 7:  # two refused, five of a usual size
                go_on.set()
            if len(outcomes) == 11:
                ended.set()

        decoders = Decoders(2, decode, done)
        for data in [LARGE] * 6 + [USUAL] * 5:
            decoders.put(job(data, lambda _: None))
        await asyncio.wait_for(ended.wait(), 30)
        decoders.close()
        return outcomes, sizes

    outcomes, sizes = asyncio.run(ask())
    assert most == 1
    assert sizes[7:] == [len(LARGE)] * 4
    refused = [error for error in outcomes[:7] if error]
    assert len(refused) == 2
    assert all(isinstance(error, Overloaded) and error.retry_after_s for error in refused)


def test_a_large_image_is_answered(client: httpx.Client) -> None:
    """When its turn has come."""
    assert client.post("/predict", content=LARGE).status_code == 200
