"""Servers that are up at the same time: started one after the other, asked, weighed and stopped."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from benchmarks.serving_cpu import tree
from benchmarks.serving_environments import Unavailable, environ_of, filled, installed, versions
from benchmarks.serving_peers import Body, Peer
from pipeline import inference_server, processes
from pipeline.settings import Settings

START_S = 120.0
STOP_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is up.

    Attributes:
        peer: what it is.
        version: of its packages.
        port: where it listens.
        process: the first of its processes.
        first_answer_s: seconds from the start of the process to its first answer to an image.
    """

    peer: Peer
    version: str
    port: int
    process: "subprocess.Popen[bytes]"
    first_answer_s: float

    @property
    def url(self) -> str:
        """Where images are sent."""
        return f"http://127.0.0.1:{self.port}{self.peer.path}"


def start_peer(peer: Peer, environments: Path, model: Path, home: Path, image: bytes) -> Server:
    """A peer that has answered.

    Raises:
        Unavailable: it could not be installed, or it did not answer.
    """
    python = installed(peer, environments)
    port = processes.free_port(8100)
    command = [str(python), *(filled(part, port, python) for part in peer.command)]
    environ = environ_of(peer, port, python, model, home)
    return started(peer, versions(peer, python), command, environ, port=port, image=image, home=home)


def started(
    peer: Peer,
    version: str,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    port: int,
    image: bytes,
    home: Path,
) -> Server:
    """A server that has answered; its log is in ``home``.

    Raises:
        Unavailable: it ended, or it did not answer.
    """
    log = home / f"{peer.name}.log"
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=dict(environ), cwd=home, stdout=file, stderr=file)
    server = Server(peer, version, port, process, 0.0)
    while time.monotonic() < begun + START_S and process.poll() is None:
        try:
            if ask(server, image)[0] == 200:
                return Server(peer, version, port, process, time.monotonic() - begun)
        except OSError:
            pass
        time.sleep(0.01)
    stop(server)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise Unavailable(f"{peer.name} did not answer: {said[-1] if said else 'it said nothing'} (see {log})")


def start_ours(peer: Peer, settings: Settings, model: str, home: Path, image: bytes) -> Server:
    """The product as a user starts it, with two processes unless the surroundings say otherwise.

    It starts three times: to fill its cache, to answer from the cache while its store is away (which is the time that
    is told), and to stay.

    Raises:
        Unavailable: it did not answer.
    """
    port = processes.free_port(8100)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    own = {"SAFELIGHT_SERVING_PROCESSES": "2", "SAFELIGHT_SERVING_CACHE": str(home / "cache")}
    environ = own | inference_server.environ(settings, model, port, surroundings)
    away = environ | {"SAFELIGHT_S3_ENDPOINT": f"http://127.0.0.1:{processes.free_port(9900)}"}
    version = versions(peer, Path(sys.executable))
    command = [sys.executable, *peer.command]
    start = partial(started, peer, version, command, port=port, image=image, home=home)
    stop(start(environ))
    cached = start(away)
    stop(cached)
    return replace(start(environ), first_answer_s=cached.first_answer_s)


def ask(server: Server, image: bytes, timeout: float = 30) -> tuple[int, Any]:
    """Status and JSON of the answer to one image.

    Raises:
        OSError: nobody answers.
    """
    body: Body = server.peer.body
    request = Request(server.url, body.of(image), {"Content-Type": body.content_type})  # noqa: S310
    try:
        with urlopen(request, timeout=timeout) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, None
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error


def labels(server: Server, images: Sequence[bytes]) -> list[str]:
    """The best class of each image.

    Raises:
        Unavailable: it does not answer them all.
    """
    found = []
    for image in images:
        status, answer = ask(server, image)
        if status != 200:
            raise Unavailable(f"{server.peer.name} answered {status} to an image")
        found.append(server.peer.label(answer))
    return found


def proportional_memory(server: Server) -> float:
    """MiB that all processes of a server hold, pages that several share divided among them (PSS)."""
    total = 0
    for process in tree(server.process.pid):
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:  # it ended meanwhile
            continue
        total += int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1024


def stop(server: Server) -> None:
    """End all its processes."""
    family = tree(server.process.pid)
    server.process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_S)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    server.process.wait()
