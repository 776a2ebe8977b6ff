"""New versions under load: ``python -m benchmarks.swap [--swaps N] [--clients N] [--processes N …]``.

A server follows an alias in an object store of its own, with default settings. Clients that keep their connections open
send one image after the other while the alias moves to and fro between versions. Told are: seconds from the moment at
which the alias had moved to the first answer of the new version, and to the last one of the old version; and how many
requests failed.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.own_store import own_store
from pipeline import aliases, images, inference_server, processes
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones
from tests import tiny_models

MODEL = "swapped"
SETTLE_S = 1.5
LONGEST_S = 20.0


@dataclass
class Seen:
    """What the clients saw: when each version answered first and last, how many answers there were, and failures."""

    answered: dict[str, tuple[float, float]] = field(default_factory=dict)
    count: int = 0
    failed: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Swap:
    """Seconds from the alias's move to the first answer by the new version, and to the last one by the old."""

    first: float
    last: float


def main() -> None:
    """Print a line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with own_store() as settings:
        zones = open_zones(settings)
        versions = [tiny_models.register(zones.checkpoints, zones.models, MODEL, seed).version for seed in (1, 2)]
        for count in options.processes:
            point_at(zones, versions[1])
            with server(settings, count) as port:
                seen, swaps = asyncio.run(under_load(zones, versions, port, options.swaps, options.clients))
            tell(count, options.clients, seen, swaps)


def tell(count: int, clients: int, seen: Seen, swaps: Sequence[Swap]) -> None:
    """Print what was seen."""
    print(
        f"{count} process(es), {clients} clients, {len(swaps)} swaps: {seen.count:,} answers, {len(seen.failed)} failed"
    )
    for what, seconds in (
        ("first answer of the new version", [swap.first for swap in swaps]),
        ("last answer of the old version", [swap.last for swap in swaps]),
    ):
        print(f"  {what:34} after {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s")
    print(f"  latency: p50 {quantile(seen.latencies, 0.5):.1f} ms, p99 {quantile(seen.latencies, 0.99):.1f} ms")
    for reason in sorted(set(seen.failed))[:5]:
        print(f"  failed: {reason}")


def quantile(seconds: Sequence[float], share: float) -> float:
    """In milliseconds."""
    return 1000 * sorted(seconds)[int(share * (len(seconds) - 1))]


def point_at(zones: Zones, version: str) -> None:
    """Move the alias."""
    aliases.set_alias(zones.models, MODEL, aliases.CHAMPION, version, reason="benchmark")


@contextmanager
def server(settings: Settings, count: int) -> Iterator[int]:
    """The port of a server with so many processes, all of them ready."""
    port = processes.free_port(8080)
    environ = inference_server.environ(settings, MODEL, port, os.environ)
    environ["SAFELIGHT_SERVING_PROCESSES"] = str(count)
    process = subprocess.Popen([sys.executable, "-m", "serving"], env=environ, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, count)
        yield port
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int, count: int) -> None:
    """Return when so many processes are ready."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{MODEL}", timeout=2) as answer:
                if sum(each["ready"] for each in json.load(answer)["processes"]) == count:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("The server did not get ready.")


async def under_load(
    zones: Zones, versions: Sequence[str], port: int, swaps: int, clients: int
) -> tuple[Seen, list[Swap]]:
    """What the clients saw during so many swaps, and how long each took."""
    seen, stop = Seen(), asyncio.Event()
    asking = [asyncio.create_task(client(port, seen, stop)) for _ in range(clients)]
    await asyncio.sleep(SETTLE_S)
    found = [await swapped(zones, versions[number % 2], seen) for number in range(swaps)]
    stop.set()
    await asyncio.gather(*asking)
    return seen, found


async def swapped(zones: Zones, version: str, seen: Seen) -> Swap:
    """Move the alias, and wait until the new version answers everybody."""
    seen.answered.clear()
    await asyncio.to_thread(point_at, zones, version)
    moved = time.monotonic()
    while version not in seen.answered:
        if time.monotonic() > moved + LONGEST_S:
            raise SystemExit("The new version did not answer.")
        await asyncio.sleep(0.01)
    await asyncio.sleep(SETTLE_S)
    old = [last for name, (_, last) in seen.answered.items() if name != version]
    return Swap(seen.answered[version][0] - moved, max([*old, moved]) - moved)


async def client(port: int, seen: Seen, stop: asyncio.Event) -> None:
    """One connection, one request after the other; opened anew where it broke."""
    png = images.encode_png(tiny_models.picture(5))
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(png) + png
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while not stop.is_set():
                    await ask(reader, writer, request, seen)
            finally:
                writer.close()
        except (OSError, EOFError) as error:
            seen.failed.append(f"{type(error).__name__}: {error}")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, seen: Seen) -> None:
    """Send one request, and note its answer."""
    begun = time.monotonic()
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    now = time.monotonic()
    seen.count += 1
    seen.latencies.append(now - begun)
    if not head.startswith(b"http/1.1 200 "):
        seen.failed.append(body.decode(errors="replace"))
        return
    version = json.loads(body)["model_version"]
    first, _ = seen.answered.get(version, (now, now))
    seen.answered[version] = first, now


if __name__ == "__main__":
    main()
