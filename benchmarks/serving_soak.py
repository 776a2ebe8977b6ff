"""The server for half an hour: ``python -m benchmarks.serving_soak [--minutes 30] [--load 0.8] [--swap 20] …``.

Clients with connections that stay open send small images at a fixed pace, which is a share of what the server answered
them when they did not wait; every few seconds another version goes live. Every answer is compared with what that very
version says of that very image. Told are answers that were wrong, refused (429) or missing, and what memory the
server's processes held in the first and in the last minutes.
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from benchmarks import serving_model
from benchmarks.own_store import own_store
from benchmarks.serving_cpu import tree
from benchmarks.serving_fleet import Server, start_ours, stop
from benchmarks.serving_peers import OURS
from pipeline import aliases, images
from pipeline.artifacts import DatasetVersion
from pipeline.onnx_model import OnnxModel
from pipeline.zones import Zones, open_zones
from tests import tiny_models

VERSIONS: Final = 3
CONNECTIONS: Final = 64
CALIBRATION_S: Final = 8.0
TOLERANCE: Final = 1e-4
SAMPLE_S: Final = 5.0
HEAD: Final = re.compile(rb"HTTP/1.1 (\d+) .*?content-length: (\d+)\r\n", re.DOTALL | re.IGNORECASE)

Expected = Mapping[str, Mapping[int, tuple[str, float]]]
"""By version and number of the image: its label and probability."""


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answered: with the right label and probability.
        seconds: that they took, of one in a hundred.
    """

    answered: int = 0
    wrong: int = 0
    refused: int = 0
    broken: int = 0
    behind_s: float = 0.0
    versions: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--load", type=float, default=0.8, help="share of what the server can answer")
    parser.add_argument("--swap", type=float, default=20, help="seconds between two versions")
    options = parser.parse_args()
    with own_store() as settings, tempfile.TemporaryDirectory(prefix="safelight-soak-") as home:
        zones, encoded = open_zones(settings), serving_model.encoded_images("small")
        expected = versions(zones, Path(home), encoded)
        point_at(zones, next(iter(expected)))
        server = start_ours(OURS[0], settings, serving_model.MODEL, Path(home), encoded[0])
        try:
            task = Task(server.port, encoded, expected, CALIBRATION_S)
            best = rate(run(task))
            print(f"{CONNECTIONS} connections that do not wait: {best:,.0f} answers/s; now {options.load:.0%} of it")
            memory: list[float] = []
            with swapping(zones, list(expected), options.swap) as swaps, sampling(server, memory):
                seen = run(replace(task, seconds=options.minutes * 60, pace=best * options.load))
        finally:
            stop(server)
        tell(seen, swaps, memory, options.minutes * 60)


def versions(zones: Zones, home: Path, encoded: Sequence[bytes]) -> Expected:
    """Registered versions, and what each says of each image."""
    serving_model.write_model(home, "small", encoded)
    spec = serving_model.ARCHITECTURES["small"][1]
    pixels = np.stack([images.decode(each, spec) for each in encoded])
    first = (home / "model.onnx").read_bytes()
    found = {}
    for number in range(VERSIONS):
        classes = serving_model.CLASSES[number:] + serving_model.CLASSES[:number]  # the same net by other names
        dataset = DatasetVersion(
            dataset="served",
            version=f"{number:016x}",
            classes=classes,
            pixels=spec,
            counts={"train": 1, "validation": 0, "test": 1},
        )
        version = tiny_models.register(
            zones.checkpoints, zones.models, serving_model.MODEL, number + 1, dataset=dataset, onnx_file=first
        )
        rows = OnnxModel(first).probabilities(pixels)
        found[version.version] = {at: (classes[int(row.argmax())], float(row.max())) for at, row in enumerate(rows)}
    return found


def point_at(zones: Zones, version: str) -> None:
    """Move the alias."""
    aliases.set_alias(zones.models, serving_model.MODEL, aliases.CHAMPION, version, reason="soak")


@contextmanager
def swapping(zones: Zones, names: Sequence[str], every_s: float) -> Iterator[list[float]]:
    """Meanwhile another version goes live every so many seconds; when each did."""
    done, moved = threading.Event(), list[float]()

    def swap() -> None:
        while not done.wait(every_s):
            point_at(zones, names[(len(moved) + 1) % len(names)])
            moved.append(time.monotonic())

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield moved
    finally:
        done.set()
        thread.join()


@contextmanager
def sampling(server: Server, memory: list[float]) -> Iterator[None]:
    """Meanwhile the resident memory of all processes of the server is noted every few seconds, in MiB."""
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            memory.append(sum(process.memory_info().rss for process in tree(server.process.pid)) / (1 << 20))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(task: "Task") -> Seen:
    """What clients in a process of their own see."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_clients, args=(theirs, task))
    process.start()
    seen: Seen = ours.recv()
    process.join()
    return seen


@dataclass(frozen=True)
class Task:
    """What clients do: send these images for so many seconds, at ``pace`` requests a second or without waiting."""

    port: int
    images: Sequence[bytes]
    expected: Expected
    seconds: float
    pace: float | None = None

    @property
    def every(self) -> float:
        """Seconds between two requests of a client."""
        return CONNECTIONS / self.pace if self.pace else 0.0

    def request(self, image: int) -> bytes:
        """The bytes that ask for an image."""
        body = self.images[image]
        return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _clients(pipe: Connection, task: Task) -> None:
    pipe.send(uvloop.run(_all(task)))


async def _all(task: Task) -> Seen:
    seen, end = Seen(), time.monotonic() + task.seconds
    await asyncio.gather(*(_client(task, number, end, seen) for number in range(CONNECTIONS)))
    return seen


async def _client(task: Task, number: int, end: float, seen: Seen) -> None:
    """One connection, opened anew where it breaks."""
    due, image = time.monotonic() + task.every * number / CONNECTIONS, number % len(task.images)
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", task.port)
            try:
                while time.monotonic() < end:
                    if (wait := due - time.monotonic()) > 0:
                        await asyncio.sleep(wait)
                    elif task.every:
                        seen.behind_s = max(seen.behind_s, -wait)
                    due, image = due + task.every, (image + 1) % len(task.images)
                    begun = time.monotonic()
                    writer.write(task.request(image))
                    _note(seen, task.expected, image, await _answer(reader), time.monotonic() - begun)
            finally:
                writer.close()
        except (OSError, EOFError) as error:
            seen.broken += 1
            seen.complaints.append(f"{type(error).__name__}: {error}"[:200])


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    found = HEAD.match(head)
    if not found:
        raise OSError(f"no answer: {head[:100]!r}")
    return int(found[1]), await reader.readexactly(int(found[2]))


def _note(seen: Seen, expected: Expected, image: int, answered: tuple[int, bytes], seconds: float) -> None:
    status, body = answered
    if status in (429, 503):
        seen.refused += 1
        return
    answer = json.loads(body)
    label, probability = expected.get(answer.get("model_version"), {}).get(image, ("", 0.0))
    if status != 200 or answer["label"] != label or abs(answer["probability"] - probability) > TOLERANCE:
        seen.wrong += 1
        seen.complaints.append(f"{status} for image {image}, {label} {probability:.6f} expected: {body[:200]!r}")
        return
    seen.answered += 1
    seen.versions.add(answer["model_version"])
    if seen.answered % 100 == 0:
        seen.seconds.append(seconds)


def rate(seen: Seen) -> float:
    """Answers a second, of the calibration."""
    if not seen.answered:
        raise SystemExit(f"The server answered nothing: {seen.complaints[:3]}")
    return seen.answered / CALIBRATION_S


def tell(seen: Seen, swaps: Sequence[float], memory: Sequence[float], seconds: float) -> None:
    """Print it."""
    tenth = max(1, len(memory) // 10)
    settled = memory[tenth : 2 * tenth] or memory
    first, last = statistics.median(settled), statistics.median(memory[-tenth:])
    ordered = sorted(seen.seconds)
    pace = seen.answered / seconds
    print(f"{seconds / 60:.1f} minutes, {len(swaps)} swaps: {seen.answered:,} right answers ({pace:,.0f}/s)")
    print(f"of {len(seen.versions)} versions; wrong {seen.wrong}, dropped {seen.broken}, refused {seen.refused}")
    middle, slow = _quantile(ordered, 0.5), _quantile(ordered, 0.99)
    print(f"latency p50 {middle:.2f} ms, p99 {slow:.2f} ms; clients were behind by {seen.behind_s:.2f} s at most")
    print(
        f"resident memory: {first:.1f} MiB in the second tenth, {last:.1f} in the last ({last / first - 1:+.1%}); "
        f"between {min(memory):.1f} and {max(memory):.1f}"
    )
    for complaint in sorted(set(seen.complaints))[:5]:
        print(f"  {complaint}")


def _quantile(ordered: Sequence[float], share: float) -> float:
    return 1000 * ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


if __name__ == "__main__":
    main()
