import asyncio

import httpx
import pytest
import tiny_models
from live_server import Registry, ReplicaByHand, Serve, wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from scraping import samples
from starlette.types import Message, Receive, Scope, Send

from pipeline import images
from serving.api_keys import ApiKeys
from serving.counts import SECONDS, Counts
from serving.front import Front
from serving.metrics import exposition

PNG = images.encode_png(tiny_models.picture(5))


def value(text: str, name: str, **labels: str) -> float:
    """Of the one sample with exactly these labels; 0 if there is none."""
    return samples(text).get((name, frozenset(labels.items())), 0.0)


def scraped(replica: ReplicaByHand, seat: int = 0) -> str:
    """What the process on a seat answers to a scrape."""
    return exposition(replica.participants[seat], "shapes")("")[0].decode()


def test_every_request_is_counted_by_its_status(models: Registry, serve: Serve) -> None:
    """What was answered, refused and not found stands in the counters, and in the histogram's count."""
    models.point_at(models.register(1))
    client = serve()
    wait_until(lambda: client.get("/v2/health/ready").is_success)
    for content in (PNG, PNG, b"text", b""):
        client.post("/predict", content=content)
    client.get("/nothing")
    text = client.get("/metrics").text
    for status, count in (("200", 2), ("422", 1), ("400", 1)):
        assert value(text, "safelight_requests_total", route="predict", status=status) == count
    assert value(text, "safelight_requests_total", route="other", status="404") == 1
    assert value(text, "safelight_request_seconds_count", route="predict") == 4
    assert value(text, "safelight_request_seconds_bucket", route="predict", le="+Inf") == 4
    assert value(text, "safelight_request_seconds_sum", route="predict") > 0


def test_every_process_is_told_of_by_any(models: Registry) -> None:
    """Versions, generations and the sums of what all processes counted."""
    replica = ReplicaByHand(models.models, 3)
    version = models.register(1)
    models.point_at(version)
    replica.look()
    for seat in range(3):
        own = Counts(replica.board.counts(seat))
        for _ in range(seat):
            own.answered("predict", 200, 0.1)
        own.waiting(seat)
    text = scraped(replica, 1)
    trained_on = {"dataset": "shapes", "dataset_version": tiny_models.DATASET.version}
    info = {"model": "shapes", "role": "champion", "version": version.version, **trained_on}
    assert value(text, "safelight_model_info", **info) == 1
    assert value(text, "safelight_model_live", model="shapes") == 1
    for seat in ("0", "1", "2"):
        pid = str(100 + int(seat))
        held = {"version": version.version, "challenger": ""}
        assert value(text, "safelight_process_info", process=seat, pid=pid, **held) == 1
        assert value(text, "safelight_queue_images", process=seat) == int(seat)
        assert value(text, "safelight_process_ready", process=seat) == 1
        assert value(text, "safelight_process_generation", process=seat) == 1
    assert value(text, "safelight_requests_total", route="predict", status="200") == 3
    assert value(text, "safelight_model_swaps_total", model="shapes") == 1


def test_a_challenger_is_told_of(models: Registry) -> None:
    """Version and dataset beside the champion's, share and step; and that there is none where one cannot be loaded."""
    replica = ReplicaByHand(models.models, 2)
    champion, challenger = models.register(1), models.register(2)
    models.point_at(champion)
    models.challenge(challenger, share=0.1, step=2)
    replica.look()
    text = scraped(replica)
    named = {
        (dict(labels)["role"], dict(labels)["version"])
        for name, labels in samples(text)
        if name == "safelight_model_info"
    }
    assert named == {("champion", champion.version), ("challenger", challenger.version)}
    assert value(text, "safelight_canary_share", model="shapes") == 0.1
    assert value(text, "safelight_canary_step", model="shapes") == 2
    assert value(text, "safelight_canary_failing", model="shapes") == 0
    models.challenge(models.register(3, onnx_file=b"not a model"))
    replica.look()
    assert value(scraped(replica), "safelight_canary_failing", model="shapes") == 1


def test_what_a_dead_process_was_vanishes_and_what_it_counted_stays(models: Registry) -> None:
    """Its gauges go, the other's stay under the label that they had; its counts are the seat's."""
    replica = ReplicaByHand(models.models, 2)
    models.point_at(models.register(1))
    replica.look()
    dead = Counts(replica.board.counts(0))
    dead.answered("predict", 200, 0.1)
    dead.waiting(3)
    replica.board.vacate(0)
    text = scraped(replica, 1)
    of_processes = {dict(labels)["process"] for name, labels in samples(text) if "process" in dict(labels)}
    assert of_processes == {"1"}
    assert value(text, "safelight_requests_total", route="predict", status="200") == 1
    assert value(text, "safelight_process_deaths_total") == 1


def test_a_failed_swap_is_counted(models: Registry) -> None:
    """Each try that failed, and that something is wrong now."""
    replica = ReplicaByHand(models.models, 2)
    models.point_at(models.register(1, onnx_file=b"not a model"))
    replica.look()
    text = scraped(replica)
    assert value(text, "safelight_model_swap_failures_total", model="shapes") == 1
    assert value(text, "safelight_model_swap_failing", model="shapes") == 1


def test_openmetrics_is_spoken_to_who_asks_for_it(client: httpx.Client) -> None:
    """The media type follows the Accept header; its strict parser finds the same families in it."""
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    asked = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    named = {family.name + "_info" * (family.type == "info") for family in openmetrics(asked.text)}
    assert named == {family.name for family in text_string_to_metric_families(plain.text)}


@pytest.mark.parametrize(("status", "number"), [(200, "200"), (503, "503"), (418, "other")])
def test_a_request_lands_in_its_bucket(models: Registry, status: int, number: str) -> None:
    """The buckets are cumulative, and a status that nobody foresaw is not lost."""
    replica = ReplicaByHand(models.models)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await asyncio.sleep(0.02)
        await send({"type": "http.response.start", "status": status})

    asyncio.run(asked(Front(app, Counts(replica.board.counts(0)), ApiKeys(None))))
    text = scraped(replica)
    assert value(text, "safelight_requests_total", route="predict", status=number) == 1
    assert value(text, "safelight_request_seconds_bucket", route="predict", le="0.01") == 0
    assert value(text, "safelight_request_seconds_bucket", route="predict", le=str(SECONDS[-1])) == 1


def test_an_error_that_nobody_answered_counts_as_a_500(models: Registry) -> None:
    """The server will answer so."""
    replica = ReplicaByHand(models.models)

    async def app(*_: object) -> None:
        raise RuntimeError("unforeseen")

    with pytest.raises(RuntimeError):
        asyncio.run(asked(Front(app, Counts(replica.board.counts(0)), ApiKeys(None))))
    text = scraped(replica)
    assert value(text, "safelight_requests_total", route="predict", status="500") == 1


async def asked(app: Front) -> None:
    """One request."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        del message

    await app({"type": "http", "path": "/predict", "headers": []}, receive, send)
