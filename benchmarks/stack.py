"""The stack in containers: ``python -m benchmarks.stack [--swaps N] [--clients N]``; the images must be there.

A stack of its own, on free ports and gone afterwards. Told are: seconds from `make up` to all healthy, the first time
and again after `make down`; what each service holds in memory while nobody asks for anything; seconds from the moment
at which the alias had moved to the first answer of the new version that came through the gateway; and how many requests
of clients failed meanwhile.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.own_store import small_png
from pipeline import aliases
from tests.e2e.stack import MODEL, Stack, open_stack, wait_until
from tests.e2e.stored import Stored
from tests.e2e.traffic import Traffic, traffic

IDLE_S = 60.0
"""From all healthy to the moment at which memory is looked at."""
SETTLE_S = 2.0
PER_CLASS = 400


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    with own_stack() as stack:
        print(f"make up, nothing stored yet: all healthy after {stack.seconds['up']:.0f} s")
        stack.run("make", "down")
        stack.up()
        print(f"make up again:               all healthy after {stack.seconds['up']:.0f} s")
        time.sleep(IDLE_S)
        for service, memory in sorted(idle_memory(stack).items()):
            print(f"  {service:16} {memory:6.0f} MiB idle")
        versions = trained(stack)
        seconds, seen = swapped(stack, versions, options.swaps, options.clients)
        print(
            f"{len(seconds)} swaps, {options.clients} clients: alias moved → first answer of the new version after "
            f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s; "
            f"{len(seen.answers):,} answers, {len(seen.failures)} failed"
        )
        for failure in seen.failures[:5]:
            print(f"  {failure}")


@contextmanager
def own_stack() -> Iterator[Stack]:
    """A stack that is up, and nothing of it is left afterwards."""
    stack = open_stack("safelight-benchmark")
    stack.down()
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def idle_memory(stack: Stack) -> dict[str, float]:
    """MiB that each service holds, without the cache of the files that it has read, by its name."""
    ids = [each for service in stack.services() for each in stack.containers(service)]
    lines = stack.run("docker", "stats", "--no-stream", "--format", "{{json .}}", *ids).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    prefix = f"{stack.project}-"
    return {each["Name"].removeprefix(prefix): mebibytes(each["MemUsage"].split(" / ")[0]) for each in found}


def mebibytes(text: str) -> float:
    """The number in `214.5MiB`, `1.2GiB` or `800KiB`."""
    units = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
    unit = next(unit for unit in units if text.endswith(unit))
    return float(text.removesuffix(unit)) * units[unit]


def trained(stack: Stack) -> Sequence[str]:
    """Two versions of the model, of which one is live."""
    stack.runs.completed(stack.runs.start("import", per_class=PER_CLASS), 600)
    for seed in (0, 1):
        stack.runs.completed(stack.runs.start("pipeline", training={"epochs": 4, "seed": seed}), 600)
    return stack.stored.versions()[-2:]


def swapped(stack: Stack, versions: Sequence[str], swaps: int, clients: int) -> tuple[list[float], Traffic]:
    """Seconds of each swap, and what the clients saw; the alias goes to and fro between the versions."""
    models = Stored(stack.store, *stack.credentials("worker"), MODEL).zone("models")
    images: Mapping[str, bytes] = {f"{number}": small_png(number) for number in range(16)}
    seconds = []
    with traffic(stack.gateway, images, clients=clients, pause_s=0.0) as seen:
        time.sleep(SETTLE_S)
        for _ in range(swaps):
            version = next(each for each in versions if each != stack.version())
            aliases.set_alias(models, MODEL, aliases.CHAMPION, version, reason="benchmark")
            moved = time.monotonic()
            seconds.append(first_answer(seen, version, moved) - moved)
            time.sleep(SETTLE_S)
    return seconds, seen


def first_answer(seen: Traffic, version: str, moved: float) -> float:
    """When the version answered first after the alias had moved (monotonic clock)."""

    def moments() -> list[float]:
        return [each.received for each in seen.answers if each.version == version and each.received > moved]

    wait_until(lambda: bool(moments()), 30, "the new version did not answer")
    return min(moments())


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as late:
        raise SystemExit(f"{late.cmd[0]} took more than {late.timeout:.0f} s.") from late
