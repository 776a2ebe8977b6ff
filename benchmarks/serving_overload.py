"""Servers at more connections than they can answer: each sends its next request as soon as it has any answer.

h2load (``apt-get install nghttp2-client``) logs the fate of each request. Goodput is accepted requests per second, and
latencies are those of accepted requests.
"""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_cpu import settle
from benchmarks.serving_fleet import Server, ask, proportional_memory

CONNECTIONS = (32, 64, 512)
"""The last is the storm; its latencies are compared with those of the one before, its goodput with the best."""
GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """At so many connections: accepted, refused (by a status that is no 2xx) and broken requests per second."""

    connections: int
    accepted: float
    refused: float
    broken: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Storm:
    """A server under ``CONNECTIONS``, its PSS in MiB before and after, and the first answer after the storm."""

    name: str
    pressures: Sequence[Pressure]
    before_mb: float
    after_mb: float
    next_answer_ms: float
    next_status: int


def storm(server: Server, bodies: Path, image: bytes, seconds: int) -> Storm:
    """Ask it on more and more connections, then once more."""
    before = proportional_memory(server)
    pressures = [pressure(server, bodies, count, seconds) for count in CONNECTIONS]
    begun = time.perf_counter()
    try:
        status = ask(server, image, GIVE_UP_S)[0]
    except OSError:
        status = 0
    waited = 1000 * (time.perf_counter() - begun)
    settle(server.process.pid)
    return Storm(server.peer.name, pressures, before, proportional_memory(server), waited, status)


def pressure(server: Server, bodies: Path, connections: int, seconds: int) -> Pressure:
    """One visit of h2load; not counted are its first second, in which all comes at once, and what it does after."""
    body, log = server.peer.body, bodies / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "--h1", "-t1", f"-c{connections}", f"-D{seconds + 1}", f"--log-file={log}"]
    command += ["-d", str(bodies / body.kind / "000"), "-H", f"content-type: {body.content_type}", server.url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            process.wait(seconds + 2)
        except subprocess.TimeoutExpired:  # as long as a server closes connections, it opens new ones
            process.kill()
    rows = [line.split() for line in log.read_text(encoding="ascii").splitlines()]
    start = int(rows[0][0]) + 1_000_000 if rows else 0
    ended = range(start, start + 1_000_000 * seconds + 1)
    counted = [(status[0], int(took) / 1000) for begun, status, took in rows if int(begun) + int(took) in ended]
    accepted = sorted(took for status, took in counted if status == "2")
    refused = sum(status in "345" for status, _ in counted)
    broken = len(counted) - len(accepted) - refused
    per_second = [count / seconds for count in (len(accepted), refused, broken)]
    return Pressure(connections, *per_second, quantile(accepted, 0.5), quantile(accepted, 0.99))


def quantile(ordered: Sequence[float], share: float) -> float:
    """0 where there is nothing."""
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


def print_storms(storms: Sequence[Storm]) -> None:
    """In Markdown."""
    *_, reference, most = CONNECTIONS
    heads = ["server", *(f"accepted/s at {count}" for count in CONNECTIONS), f"{most}: of the best"]
    heads += [f"refused/s at {most}", f"broken/s at {most}"]
    heads += [f"p99 ms at {reference}", f"p50 / p99 ms at {most}", "p99 times", "PSS MiB", "next answer ms"]
    print("\n| " + " | ".join(heads) + " |\n|---|" + "---:|" * (len(heads) - 1))
    for each in storms:
        print("| " + " | ".join(cells(each)) + " |")


def cells(each: Storm) -> list[str]:
    """Of one line."""
    *_, reference, most = each.pressures
    best = max(pressure.accepted for pressure in each.pressures)
    return [
        f"**{each.name}**",
        *(f"{pressure.accepted:,.0f}" for pressure in each.pressures),
        f"{most.accepted / best:.0%}" if best else "",
        f"{most.refused:,.0f}",
        f"{most.broken:,.0f}",
        f"{reference.p99_ms:.1f}",
        f"{most.p50_ms:.1f} / {most.p99_ms:.1f}",
        f"{most.p99_ms / reference.p99_ms:.1f}" if reference.p99_ms else "",
        f"{each.before_mb:,.0f} → {each.after_mb:,.0f}",
        f"{each.next_answer_ms:.1f}" + ("" if each.next_status == 200 else f" (status {each.next_status})"),
    ]
