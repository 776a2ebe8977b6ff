"""Two inference servers behind the gateway replaced under load: ``python -m benchmarks.rollout [--rounds N] …``.

Real containers, of images that must be there, in a stack of its own on free ports. A rollout goes as Kubernetes goes by
the Deployment's ``maxSurge: 1`` and ``maxUnavailable: 0``: a new container is started; once it says that it is ready an
old one is told to end, and drains; and so on until no old one is left. Half of the clients keep their connection, the
others open one for each request; nothing is tried again, so one refused connection, one status other than 200 or one
cut answer counts as lost. Told are what was lost, and the latency in calm and while containers come and go.
"""

import argparse
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import httpx

from benchmarks.own_store import small_png
from pipeline import aliases
from tests import tiny_models
from tests.e2e.stack import MODEL, Stack, open_stack, wait_until
from tests.e2e.stored import Stored
from tests.e2e.traffic import Answer, traffic

REPLICAS = 2
CALM_S = 5.0
GRACE_S = "40"
"""As long as the stack gives an inference server to end."""
IMAGES: Mapping[str, bytes] = {f"{number}": small_png(number) for number in range(16)}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    with own_stack() as stack:
        make_live(stack)
        spans = []
        with traffic(stack.gateway, IMAGES, clients=options.clients, pause_s=0.0) as seen:
            time.sleep(CALM_S)
            for _ in range(options.rounds):
                spans.append(rolled_out(stack))
                time.sleep(CALM_S)
        for when, wanted in (("in calm", False), ("while replaced", True)):
            tell(when, [each for each in seen.answers if is_within(each, spans) is wanted])
        took = statistics.median(ended - begun for begun, ended in spans)
        print(
            f"{options.rounds} rollouts of {REPLICAS} replicas, {options.clients} clients, {took:.0f} s each: "
            f"{len(seen.failures)} of {len(seen.answers) + len(seen.failures):,} requests lost"
        )
        for failure in seen.failures[:5]:
            print(f"  {failure}")


@contextmanager
def own_stack() -> Iterator[Stack]:
    """Store, two inference servers and the gateway, of which nothing is left afterwards."""
    stack = open_stack("safelight-rollout")
    stack.down()
    try:
        stack.compose("up", "--detach", "--no-build", "--wait", "--scale", f"serving={REPLICAS}", "serving", "gateway")
        yield stack
    finally:
        stack.down()


def make_live(stack: Stack) -> None:
    """A model, and wait until the gateway answers with it."""
    stored = Stored(stack.store, *stack.credentials("worker"), MODEL)
    models = stored.zone("models")
    made = tiny_models.register(stored.zone("checkpoints"), models, MODEL, 1)
    aliases.set_alias(models, MODEL, aliases.CHAMPION, made.version, reason="benchmark")
    for container in stack.containers("serving"):
        wait_until(lambda: is_ready(stack.address(container)), 60, "a replica is not ready")  # noqa: B023 - called at once
    wait_until(lambda: stack.answers(IMAGES), 30, "the gateway does not answer")


def rolled_out(stack: Stack) -> tuple[float, float]:
    """Replace every replica; when that began and ended."""
    begun = time.monotonic()
    for old in stack.containers("serving"):
        before = set(stack.containers("serving"))
        stack.compose(
            *("up", "--detach", "--no-build", "--no-recreate", "--no-deps"),
            *("--scale", f"serving={REPLICAS + 1}", "serving"),
        )
        (new,) = set(stack.containers("serving")) - before
        wait_until(lambda: is_ready(stack.address(new)), 60, "the new replica is not ready")  # noqa: B023 - called at once
        stack.run("docker", "stop", "--time", GRACE_S, old)
        stack.run("docker", "rm", old)
    return begun, time.monotonic()


def is_ready(address: str) -> bool:
    """Whether a replica says so."""
    try:
        return httpx.get(f"http://{address}:8080/v2/health/ready", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def is_within(answer: Answer, spans: Sequence[tuple[float, float]]) -> bool:
    """Whether it came while containers were replaced."""
    return any(begun < answer.received < ended for begun, ended in spans)


def tell(when: str, answers: Sequence[Answer]) -> None:
    """Print how long answers took."""
    ms = sorted((each.received - each.sent) * 1000 for each in answers)
    p50, p99 = ms[len(ms) // 2], ms[len(ms) * 99 // 100]
    print(f"{when:15} {len(ms):8,} answers, {p50:.0f} ms in the median, p99 {p99:.0f} ms, at most {ms[-1]:.0f} ms")


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as late:
        raise SystemExit(f"{late.cmd[0]} took more than {late.timeout:.0f} s.") from late
