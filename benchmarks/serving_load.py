"""Load on a server: wrk for throughput and latency, h2load where each request's fate counts.

Both come from the system's packages (``apt-get install wrk nghttp2-client``).
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_fleet import Server
from benchmarks.serving_peers import HERE, Body

TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Visit:
    """What a client saw: good answers per second, latencies in ms, refusals (4xx, 5xx) and broken connections."""

    per_second: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    refused: int = 0
    broken: int = 0


def write_bodies(folder: Path, body: Body, images: Sequence[bytes]) -> None:
    """A file for each image, as the body of a request."""
    (folder / body.kind).mkdir(exist_ok=True)
    for number, image in enumerate(images):
        (folder / body.kind / f"{number:03d}").write_bytes(body.of(image))


def visit(server: Server, bodies: Path, connections: int, seconds: float) -> Visit:
    """Ask a server on so many connections, each with one request at a time."""
    body = server.peer.body
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", f"--timeout={TIMEOUT_S}s", "-s"]
    command += [str(HERE / "visit.lua"), server.url, "--", str(bodies / body.kind), body.content_type]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seen = json.loads(said.splitlines()[-1])
    good = seen["answers"] - seen["refused"]
    return Visit(good / seen["seconds"], seen["p50_ms"], seen["p99_ms"], seen["refused"], seen["broken"])
