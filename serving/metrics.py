"""What the server counts, as Prometheus reads it: whichever process answers a scrape tells of all of them.

- Counters and histograms are sums over all processes, those that died included, so they never fall. Gauges stand for
  each process that is there, by its place (``process``), and go with it.
- Which model answers is one series per role, so that everything else can be joined with it.
- A counter stands at 0 before its first event: Prometheus sees an increase only where there was a value before. Classes
  alone appear with their first image; how many there may be is bounded by ``counts``.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate

import psutil
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from serving import counts
from serving.counts import Totals
from serving.participant import Participant
from serving.status import processes

COUNTERS = (
    ("safelight_rejections", "Requests that were not, or not to their end, worked on.", "reason", counts.REJECTIONS),
    ("safelight_model_failures", "Requests at which a model raised.", "role", counts.FAILURES),
    ("safelight_comparisons", "Images that champion and challenger both saw.", "result", counts.COMPARED),
)
HISTOGRAMS = (
    (
        "safelight_request_seconds",
        "From a request's header to its answer.",
        "route",
        counts.REQUEST_SECONDS,
        counts.SECONDS,
    ),
    (
        "safelight_stage_seconds",
        "What a request waited, was decoded and was predicted for.",
        "stage",
        counts.STAGE_SECONDS,
        counts.SECONDS,
    ),
    (
        "safelight_prediction_seconds",
        "From a request's header to its prediction.",
        "role",
        counts.PREDICTION_SECONDS,
        counts.SECONDS,
    ),
    (
        "safelight_prediction_confidence",
        "Probability of the class that was named, per image.",
        "role",
        counts.CONFIDENCE,
        counts.CONFIDENCES,
    ),
)


class Replica(Collector):
    """All processes of a replica, as metrics."""

    def __init__(self, participant: Participant, model: str) -> None:
        """``model`` is the name of the one that is served; ``participant`` is the process's that answers the scrape."""
        self._participant = participant
        self._board = participant.board
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Everything as it is at this moment."""
        yield from self._live()
        yield from self._swaps()
        yield from self._processes()
        yield from _counted(Totals([self._board.counts(seat) for seat in range(self._board.seats)]))

    def _live(self) -> Iterator[Metric]:
        info = InfoMetricFamily(
            "safelight_model", "What answers, and what it was trained on.", labels=["model", "role"]
        )
        lineup = self._participant.lineup_now()
        for role, live in (("champion", lineup.champion), ("challenger", lineup.challenger)) if lineup else ():
            if live:
                trained_on = live.manifest.dataset
                dataset = {"dataset": trained_on.dataset, "dataset_version": trained_on.version}
                info.add_metric([self._model, role], {"version": live.manifest.version, **dataset})
        yield info

    def _swaps(self) -> Iterator[Metric]:
        said = self._board.agreement()
        asked = said.live.asked
        for family, name, text, value in (
            (GaugeMetricFamily, "model_live", "1: a version answers.", said.live.version is not None),
            (GaugeMetricFamily, "model_generation", "Grows with each swap.", self._board.generation),
            (GaugeMetricFamily, "model_swap_failing", "1: not what the alias says.", said.error is not None),
            (CounterMetricFamily, "model_swaps", "Versions that went live.", said.swaps),
            (CounterMetricFamily, "model_swap_failures", "Tries that failed.", said.swap_failures),
            (GaugeMetricFamily, "canary_share", "Of the callers, for the challenger.", asked.share if asked else 0),
            (GaugeMetricFamily, "canary_step", "Of the ramp.", asked.step if asked else 0),
            (GaugeMetricFamily, "canary_failing", "1: no challenger as the alias says.", said.canary_error is not None),
        ):
            metric = family(f"safelight_{name}", text, labels=["model"])
            metric.add_metric([self._model], value)
            yield metric

    def _processes(self) -> Iterator[Metric]:
        info = InfoMetricFamily("safelight_process", "What each process answers with.", labels=["process"])
        gauges = {
            name: GaugeMetricFamily(f"safelight_{name}", text, labels=["process"])
            for name, text in (
                ("process_ready", "1: it answers as all do."),
                ("process_generation", "What it answers with."),
                ("process_silent_seconds", "Since its last sign of life."),
                ("process_resident_memory_bytes", "What it holds of the machine's memory."),
                ("queue_images", "Images that wait at this moment."),
            )
        }
        for seat, held in processes(self._board).items():
            process = [str(seat)]
            answers_with = {"version": held.version or "", "challenger": held.challenger or ""}
            info.add_metric(process, {**answers_with, "pid": str(held.pid)})
            for name, value in (
                ("process_ready", held.ready),
                ("process_generation", held.generation),
                ("process_silent_seconds", self._board.silent_s(seat)),
                ("process_resident_memory_bytes", _resident_bytes(held.pid)),
                ("queue_images", counts.waiting(self._board.counts(seat))),
            ):
                if value is not None:
                    gauges[name].add_metric(process, value)
        yield info
        yield from gauges.values()
        yield CounterMetricFamily(
            "safelight_process_deaths", "Processes that ended and were replaced.", self._board.deaths
        )


def exposition(participant: Participant, model: str) -> Callable[[str], tuple[bytes, str]]:
    """What answers a scrape: from its Accept header to the text and its media type."""
    registry = CollectorRegistry()
    registry.register(Replica(participant, model))

    def scraped(accept: str) -> tuple[bytes, str]:
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type

    return scraped


def _counted(totals: Totals) -> Iterator[Metric]:
    requests = CounterMetricFamily("safelight_requests", "Answered, by status.", labels=["route", "status"])
    for route, start in counts.REQUESTS.items():
        for status, count in totals.counts(start, counts.STATUSES).items():
            requests.add_metric([route, status], count)
    yield requests
    for name, text, label, places in COUNTERS:
        counter = CounterMetricFamily(name, text, labels=[label])
        for group, at in places.items():
            counter.add_metric([group], totals.count(at))
        yield counter
    for name, text, label, places, bounds in HISTOGRAMS:
        histogram = HistogramMetricFamily(name, text, labels=[label])
        for group, start in places.items():
            histogram.add_metric([group], *_buckets(totals.histogram(start, bounds)))
        yield histogram
    batches = HistogramMetricFamily("safelight_batch_images", "Images that were classified together.")
    batches.add_metric([], *_buckets(totals.histogram(counts.BATCHES, counts.SIZES)))
    yield batches
    yield CounterMetricFamily(
        "safelight_prediction_log_dropped_rows", "Of the prediction log.", totals.count(counts.LOG_DROPPED)
    )
    yield _classes(totals)


def _classes(totals: Totals) -> Metric:
    predictions = CounterMetricFamily("safelight_predictions", "Images, by the class named.", labels=["role", "class"])
    for role in counts.ROLES:
        for label, count in totals.classes(role).items():
            predictions.add_metric([role, label], count)
    return predictions


def _buckets(histogram: counts.Histogram) -> tuple[list[tuple[str, float]], float]:
    """As Prometheus wants them: each bucket counts what the smaller ones do as well."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True)), histogram.sum


def _resident_bytes(pid: int) -> int | None:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
