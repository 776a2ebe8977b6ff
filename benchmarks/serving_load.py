"""Load on a server: wrk for throughput and latency, h2load where each request's fate counts.

Both come from the system's packages (``apt-get install wrk nghttp2-client``).
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_cpu import cores_in_use, settle, watched
from benchmarks.serving_environments import HERE
from benchmarks.serving_fleet import Server
from benchmarks.serving_peers import Body

TIMEOUT_S = 30
GLANCE_S = 1.0
QUIET = 0.25
"""Cores that other programs may have before a visit counts as disturbed; the idle servers are among them."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What a client saw: good answers per second, latencies in ms, refusals (4xx, 5xx) and broken connections.

    ``per_cpu_second`` is what the server did with a second of one core: it tells servers apart on a busy machine too.
    ``strangers`` are the cores that other programs had meanwhile.
    """

    per_second: float
    per_cpu_second: float
    strangers: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    refused: int = 0
    broken: int = 0


def write_bodies(folder: Path, body: Body, images: Sequence[bytes]) -> None:
    """A file for each image, as the body of a request."""
    (folder / body.kind).mkdir(exist_ok=True)
    for number, image in enumerate(images):
        (folder / body.kind / f"{number:03d}").write_bytes(body.of(image))


def visit(server: Server, bodies: Path, connections: int, seconds: int) -> Visit:
    """Ask a server on so many connections, each with one request at a time; it has done all its work afterwards."""
    body = server.peer.body
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", "-s"]
    command += [str(HERE / "visit.lua"), server.url, "--", str(bodies / body.kind), body.content_type]
    with watched(server.process.pid) as use:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    settle(server.process.pid)
    if done.returncode:  # it cannot be connected to any more
        return Visit(0, 0, use.strangers, broken=connections)
    seen = json.loads(done.stdout.splitlines()[-1])
    good = seen["answers"] - seen["refused"]
    failed = seen["refused"], seen["broken"]
    return Visit(good / seen["seconds"], good / use.seconds, use.strangers, seen["p50_ms"], seen["p99_ms"], *failed)


def quietest(visits: Callable[[], Visit], patience_s: float) -> Visit:
    """A visit that waits for a moment without strangers, and again while they disturb it, for so long; the best one."""
    end, best = time.monotonic() + patience_s, None
    while best is None or (best.strangers > QUIET and time.monotonic() < end):
        while time.monotonic() < end and cores_in_use(GLANCE_S) > QUIET:
            pass
        seen = visits()
        best = seen if best is None else min(best, seen, key=lambda each: each.strangers)
    return best
