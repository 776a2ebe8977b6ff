"""What the prediction log costs the inference server: ``python -m benchmarks.prediction_log [--rounds N]``.

Two servers on one store with the same small model, one with the log and one without, visited in turn by ``wrk`` with
single images as plain bodies on 32 connections, while files of 50,000 rows are made and stored. Told is what the log
leaves of the answers per second, and per second of processor time: the mean over the quickest quarter of the rounds
with it, divided by the same without it, since other programs on the machine only ever make a round slower.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import serving_model
from benchmarks.own_store import own_store
from benchmarks.serving_fleet import Server, started, stop
from benchmarks.serving_load import Visit, visit, write_bodies
from benchmarks.serving_peers import OURS
from pipeline import inference_server, processes
from pipeline.settings import Settings
from pipeline.zones import open_zones

RAW = OURS[-1]
CONNECTIONS = 32
KINDS = ("off", "on")


def main() -> None:
    """Print each round and the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=int, default=1, help="that a server is asked for in a round")
    parser.add_argument("--processes", type=int, default=1, help="of each server")
    options = parser.parse_args()
    rounds: list[dict[str, Visit]] = []
    with pair(options.processes) as (servers, bodies):
        for number in range(options.rounds + 1):
            order = KINDS if number % 2 else KINDS[::-1]
            rounds.append({kind: visit(servers[kind], bodies, CONNECTIONS, options.seconds) for kind in order})
            print(
                "  ".join(
                    f"{kind} {told.per_second:9,.0f}/s {told.per_cpu_second:9,.0f}/CPU s {told.p99_ms:6.1f} ms"
                    for kind, told in sorted(rounds[-1].items())
                )
            )
    del rounds[0]  # it warmed up
    for what in ("per_second", "per_cpu_second"):
        print(f"{what}, on : off  {quickest(rounds, 'on', what) / quickest(rounds, 'off', what):.3f}")


def quickest(rounds: Sequence[Mapping[str, Visit]], kind: str, what: str) -> float:
    """The mean over the quickest quarter."""
    figures = sorted((getattr(each[kind], what) for each in rounds), reverse=True)
    return statistics.mean(figures[: max(1, len(figures) // 4)])


@contextmanager
def pair(count: int) -> Iterator[tuple[dict[str, Server], Path]]:
    """A server without and one with the log, and where bodies for them are."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = stack.enter_context(own_store())
        encoded = serving_model.encoded_images("small")
        serving_model.write_model(home, "small", encoded)
        serving_model.register(open_zones(settings), home, "small")
        write_bodies(home, RAW.body, encoded)
        servers = {kind: server(settings, kind, count, home, encoded[0]) for kind in KINDS}
        for each in servers.values():
            stack.callback(partial(stop, each))
        yield servers, home


def server(settings: Settings, log: str, count: int, home: Path, image: bytes) -> Server:
    """One that has answered."""
    (home / log).mkdir()
    port = processes.free_port(8100)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    environ = inference_server.environ(settings, serving_model.MODEL, port, surroundings)
    environ |= {"SAFELIGHT_SERVING_LOG": log, "SAFELIGHT_SERVING_PROCESSES": str(count)}
    command = [sys.executable, "-m", "serving"]
    return started(RAW, "", command, environ, port=port, image=image, home=home / log)


if __name__ == "__main__":
    main()
