"""Load on a server: wrk for throughput and latency, h2load where each request's fate counts.

Both come from the system's packages (``apt-get install wrk nghttp2-client``).
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_fleet import Server, cpu_seconds, tree
from benchmarks.serving_peers import HERE, Body

TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Visit:
    """What a client saw: good answers per second, latencies in ms, refusals (4xx, 5xx) and broken connections.

    ``per_cpu_second`` is what the server did with a second of one core: it tells servers apart on a busy machine too.
    """

    per_second: float
    per_cpu_second: float
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
    """Ask a server on so many connections, each with one request at a time."""
    body = server.peer.body
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", "-s"]
    command += [str(HERE / "visit.lua"), server.url, "--", str(bodies / body.kind), body.content_type]
    before = cpu_seconds(tree(server.process.pid))
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    spent = cpu_seconds(tree(server.process.pid)) - before
    seen = json.loads(said.splitlines()[-1])
    good = seen["answers"] - seen["refused"]
    latencies = seen["p50_ms"], seen["p99_ms"]
    return Visit(good / seen["seconds"], good / spent, *latencies, seen["refused"], seen["broken"])
