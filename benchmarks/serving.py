"""Image servers against each other: ``python -m benchmarks.serving [--model resnet18] [--servers NAME …] …``.

All servers are up at once, with the same exported weights, and are visited in turn by wrk, which sends them one encoded
image per request, a hundred different ones over and over. Before that each must give every image the same class. A
visit's figure is compared with that of the naive server (FastAPI + torch) in the same round; the table shows the median
of these ratios, and the medians of the rest. ``--overload`` adds a second table (``serving_overload``).

The other servers come from the package registry at first use, each into an environment of its own
(``--environments``); one that cannot be had is named, and the rest goes on. wrk and h2load must be there
(``apt-get install wrk nghttp2-client``). Nothing is refused on a busy machine: its load is told, and how many cores
other programs had. Ratios to the naive server mean something only where that is next to none: torch's threads wait for
each other in a busy loop, and whoever takes one of their cores makes them up to a hundred times slower. There
``--patience`` waits for a quiet moment, and ``--reference fastapi-onnx`` compares with a server that bears it.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import serving_model
from benchmarks.own_store import own_store, rounds
from benchmarks.serving_alone import alone
from benchmarks.serving_environments import Unavailable
from benchmarks.serving_fleet import Server, labels, proportional_memory, start_ours, start_peer, stop
from benchmarks.serving_load import Visit, quietest, visit, write_bodies
from benchmarks.serving_overload import print_storms, storm
from benchmarks.serving_peers import OURS, PEERS
from benchmarks.serving_table import Row, print_table
from pipeline.settings import Settings
from pipeline.zones import open_zones

ALONE = "alone"
CONNECTIONS = {"small": (1, 32), "resnet18": (1, 8, 64)}
WARM_UP_S = 1


def main() -> None:
    """Print the table."""
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    say_load("before")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safelight-serving-")))
        settings = stack.enter_context(own_store())
        images = serving_model.encoded_images(options.model)
        model = prepared(scratch, options.model, images)
        serving_model.register(open_zones(settings), model, options.model)
        fleet = stack.enter_context(up(options, settings, model, images))
        for server in fleet:
            write_bodies(scratch / "bodies", server.peer.body, images)
        bound = stack.enter_context(alone(model)) if ALONE in options.servers else None
        rows = measured(fleet, bound, scratch / "bodies", options)
        say_load("after")
        if options.json:
            options.json.write_text(json.dumps([row.as_json() for row in rows], indent=1), encoding="utf-8")
        print_table(rows, options.reference)
        if options.overload:
            print_storms([storm(server, scratch / "bodies", images[0], options.seconds) for server in fleet])


def parsed() -> argparse.Namespace:
    """The options; ``connections`` by the model."""
    names = [*(peer.name for peer in (*PEERS, *OURS)), ALONE]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--servers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--model", choices=list(CONNECTIONS), default="small")
    parser.add_argument("--reference", choices=names, default="naive", help="what the others are compared with")
    parser.add_argument("--connections", type=int, nargs="+")
    parser.add_argument("--seconds", type=int, default=4, help="of each visit")
    parser.add_argument("--patience", type=float, default=0, help="seconds for which a visit waits for idle cores")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is visited")
    parser.add_argument("--overload", action="store_true", help="also: what becomes of them at 512 connections")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "safelight-bench-serving")
    parser.add_argument("--json", type=Path, help="a file for the figures of every visit")
    options = parser.parse_args()
    options.connections = options.connections or CONNECTIONS[options.model]
    options.environments.mkdir(parents=True, exist_ok=True)
    return options


def say(what: str) -> None:
    """What goes on, beside the table."""
    print(what, file=sys.stderr, flush=True)


def say_load(when: str) -> None:
    """How many processes wanted a core in the last 1, 5 and 15 minutes, ours among them."""
    say(f"load of this machine {when}: {', '.join(f'{each:.2f}' for each in os.getloadavg())}")


def prepared(scratch: Path, choice: str, images: Sequence[bytes]) -> Path:
    """The folder with the model that all servers get, and the images for decode + model alone."""
    model = scratch / "model"
    (model / "images").mkdir(parents=True)
    (scratch / "bodies").mkdir()
    for number, image in enumerate(images):
        (model / "images" / f"{number:03d}").write_bytes(image)
    serving_model.write_model(model, choice, images)
    return model


@contextmanager
def up(options: argparse.Namespace, settings: Settings, model: Path, images: Sequence[bytes]) -> Iterator[list[Server]]:
    """The servers, all of which give each image the same class; says which are missing, and why."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safelight-peers-")))
        fleet: list[Server] = []
        expected: list[str] = []
        for start in starts(options, settings, model, home, images[0]):
            try:
                server = start()
                stack.callback(stop, server)
                for door in doors(server, options.servers):
                    found = labels(door, images)
                    expected = expected or found
                    refuse_other_answers(door, expected, found)
                    say(f"{door.peer.name}: {door.version}, first answer after {door.first_answer_s:.2f} s")
                    fleet.append(door)
            except Unavailable as reason:
                say(f"MISSING: {reason}")
        yield fleet


def starts(
    options: argparse.Namespace, settings: Settings, model: Path, home: Path, image: bytes
) -> list[Callable[[], Server]]:
    """How each server that was asked for is started; our one server only once."""
    chosen = [peer for peer in PEERS if peer.name in options.servers]
    found = [partial(start_peer, peer, options.environments, model, home, image) for peer in chosen]
    ours = [peer for peer in OURS if peer.name in options.servers][:1]
    return [*found, *(partial(start_ours, peer, settings, serving_model.MODEL, home, image) for peer in ours)]


def doors(server: Server, names: Sequence[str]) -> list[Server]:
    """The server once for each way to ask it."""
    if server.peer not in OURS:
        return [server]
    return [replace(server, peer=peer) for peer in OURS if peer.name in names]


def refuse_other_answers(server: Server, expected: Sequence[str], found: Sequence[str]) -> None:
    """Nobody is measured who computes something else."""
    same = sum(map(str.__eq__, expected, found))
    if same < len(expected):
        raise SystemExit(f"{server.peer.name} gives only {same} of {len(expected)} images the class that they have.")


def measured(
    fleet: Sequence[Server],
    bound: tuple[str, Callable[[float], Visit]] | None,
    bodies: Path,
    options: argparse.Namespace,
) -> list[Row]:
    """A row for each server, after all rounds, and one for decode + model alone."""
    contenders: dict[str, Callable[[], Mapping[int, Visit]]] = {}
    for server in fleet:
        contenders[server.peer.name] = partial(visits, server, bodies, options)
        visit(server, bodies, max(options.connections), WARM_UP_S)
    if bound:
        measure = partial(quietest, partial(bound[1], options.seconds), options.patience)
        contenders[ALONE] = lambda: dict.fromkeys(options.connections, measure())
    reached = rounds(contenders, options.rounds)
    rows = [
        Row(
            server.peer.name,
            server.peer.what,
            server.version,
            reached[server.peer.name],
            proportional_memory(server),
            server.first_answer_s,
        )
        for server in fleet
    ]
    return rows + ([Row(ALONE, f"decode + model, no HTTP: {bound[0]}", "", reached[ALONE])] if bound else [])


def visits(server: Server, bodies: Path, options: argparse.Namespace) -> dict[int, Visit]:
    """One for each number of connections."""
    return {
        count: quietest(partial(visit, server, bodies, count, options.seconds), options.patience)
        for count in options.connections
    }


if __name__ == "__main__":
    main()
