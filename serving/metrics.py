"""What the server counts, as Prometheus reads it: whichever process answers a scrape tells of all of them.

Each process counts on the board, which the others can read; no files, no locks, and a process that was killed leaves
its counts to the one that takes its place. A count is made on the event loop's thread alone.
"""

import bisect
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.board import Board
from serving.status import processes

PREDICT: Final = "/predict"
ROUTES: Final = (PREDICT, "other")
STATUSES: Final = ("200", "304", "400", "404", "405", "413", "415", "422", "429", "500", "502", "503", "other")
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets, in seconds; the last bucket has none."""
NUMBERS: Final = {int(status): number for number, status in enumerate(STATUSES[:-1])}
DURATIONS: Final = len(STATUSES)
SECONDS: Final = DURATIONS + len(BOUNDS) + 1
PER_ROUTE: Final = SECONDS + 1
"""Of a route's counts: the statuses come first, then the buckets, then the sum of all durations."""


class CountedRequests:
    """ASGI middleware that counts each request by its status, and how long it took."""

    def __init__(self, app: ASGIApp, counts: "memoryview[float]") -> None:
        """``counts`` are this process's on the board."""
        self.app = app
        self.counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begun = time.perf_counter()
        try:
            await self.app(scope, receive, noted)
        finally:
            self._count(scope["path"], status, time.perf_counter() - begun)

    def _count(self, path: str, status: int, seconds: float) -> None:
        start = 0 if path == PREDICT else PER_ROUTE
        counts = self.counts
        counts[start + NUMBERS.get(status, DURATIONS - 1)] += 1
        counts[start + DURATIONS + bisect.bisect_left(BOUNDS, seconds)] += 1
        counts[start + SECONDS] += seconds


class Replica(Collector):
    """All processes of a replica, as metrics."""

    def __init__(self, board: Board, model: str) -> None:
        """``model`` is the name of the one that is served."""
        self._board = board
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Everything as it is at this moment."""
        yield from self._swaps()
        yield from self._processes()
        yield from self._requests()

    def _swaps(self) -> Iterator[Metric]:
        agreement = self._board.agreement()
        name = [self._model]
        for metric, value in (
            (
                CounterMetricFamily("safelight_model_swaps", "Versions that went live.", labels=["model"]),
                agreement.swaps,
            ),
            (
                CounterMetricFamily("safelight_model_swap_failures", "Tries that failed.", labels=["model"]),
                agreement.swap_failures,
            ),
            (
                GaugeMetricFamily("safelight_model_swap_failing", "1: not what the alias says.", labels=["model"]),
                agreement.error is not None,
            ),
            (
                GaugeMetricFamily("safelight_model_generation", "Which one answers.", labels=["model"]),
                self._board.generation,
            ),
        ):
            metric.add_metric(name, value)
            yield metric

    def _processes(self) -> Iterator[Metric]:
        info = InfoMetricFamily("safelight_model", "What each process answers with.", labels=["model", "process"])
        ready = GaugeMetricFamily("safelight_process_ready", "1: it answers as all do.", labels=["process"])
        generation = GaugeMetricFamily("safelight_process_generation", "What it answers with.", labels=["process"])
        for seat, held in processes(self._board).items():
            info.add_metric([self._model, str(seat)], {"version": held.version or "", "pid": str(held.pid)})
            ready.add_metric([str(seat)], held.ready)
            generation.add_metric([str(seat)], held.generation)
        yield from (info, ready, generation)

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("safelight_requests", "Answered, by status.", labels=["route", "status"])
        seconds = HistogramMetricFamily("safelight_request_seconds", "From header to answer.", labels=["route"])
        all_counts = [self._board.counts(seat) for seat in range(self._board.seats)]
        sums = [sum(numbers) for numbers in zip(*all_counts, strict=True)]
        for number, route in enumerate(ROUTES):
            own = sums[number * PER_ROUTE : (number + 1) * PER_ROUTE]
            for status, count in zip(STATUSES, own, strict=False):
                if count:
                    requests.add_metric([route, status], count)
            below = accumulate(own[DURATIONS:SECONDS])
            buckets = list(zip([str(bound) for bound in BOUNDS] + ["+Inf"], below, strict=True))
            seconds.add_metric([route], buckets, own[SECONDS])
        yield from (requests, seconds)


def exposition(board: Board, model: str) -> Callable[[str], tuple[bytes, str]]:
    """What answers a scrape: from its Accept header to the text and its media type."""
    registry = CollectorRegistry()
    registry.register(Replica(board, model))

    def scraped(accept: str) -> tuple[bytes, str]:
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type

    return scraped
