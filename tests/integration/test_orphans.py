"""Processes that are put to sleep while they write, and wake up when the world has gone on without them."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor as ThreadPool
from contextlib import ExitStack, contextmanager
from threading import Barrier

import synthetic
import tiny_models
from counting_proxy import listening
from racing import Process, at_the_line, release
from watched_proxy import Observer, Plan, WatchedProxy

from pipeline import aliases, datasets, images
from pipeline.aliases import CHAMPION
from pipeline.artifacts import ModelVersion, PrepareConfig
from pipeline.errors import Conflict
from pipeline.evaluate import to_parquet
from pipeline.onnx_model import OnnxModel
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.verification import verify
from pipeline.zones import Zones

MODEL = "shapes"
PREPARATIONS = 3
WRITERS, TURNS = 4, 20

OPENED = """
import logging, os, sys
from pipeline.artifacts import GateConfig, ModelVersion, PrepareConfig
from pipeline.errors import LeaseLost
from pipeline.settings import Settings
from pipeline.zones import open_zones

logging.basicConfig(stream=sys.stdout)
zones = open_zones(Settings.from_environ(os.environ))
print("ready", flush=True)
sys.stdin.readline()
"""
PREPARE = f"""{OPENED}
from pipeline.prepare import prepare

try:
    print(prepare(zones, "cats", PrepareConfig()).version.version)
except LeaseLost as error:
    print("LeaseLost", error)
"""
PROMOTE = f"""{OPENED}
from pipeline.promote import promote

gate = GateConfig(minimum_accuracy=0, margin=-1)
print(promote(zones, ModelVersion(model="shapes", version=sys.argv[1]), gate).promoted)
"""


class Sleeper:
    """A process behind a proxy, which is stopped at one of its writes; that request is held until it may wake up."""

    def __init__(self, process: Process, observer: Observer) -> None:
        self.process = process
        self.asleep = threading.Event()
        self._observer = observer
        self._may_wake = threading.Event()

    def run_until_write(self, number: int) -> bool:
        """Let it go on until the write of that number, which is not sent yet; False where there were fewer."""
        self._observer.expect(Plan(number, at_answer=False, act=self._sleep))
        release(self.process)
        while not self.asleep.wait(0.05):
            if self.process.poll() is not None:
                return False
        return True

    def wake(self) -> list[str]:
        """Let it go on to its end, with the write that it had begun; what it said."""
        self.process.send_signal(signal.SIGCONT)
        self._may_wake.set()
        said, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, said
        return said.splitlines()

    def _sleep(self) -> bool:
        self.process.send_signal(signal.SIGSTOP)
        self.asleep.set()
        return self._may_wake.wait(timeout=120)


@contextmanager
def sleeper(script: str, settings: Settings, *arguments: str) -> Iterator[Sleeper]:
    """One process of ``script`` that waits to be let go."""
    observer = Observer()
    proxy = WatchedProxy(settings.s3_endpoint or "", observer)
    with ExitStack() as stack:
        stack.enter_context(listening(proxy))
        behind = settings.model_copy(update={"s3_endpoint": proxy.url})
        (process,) = stack.enter_context(at_the_line(script, behind, arguments))
        yield Sleeper(process, observer)


def some_seed() -> int:
    """A seed of this run, or the one to repeat: SAFELIGHT_SOAK_SEED."""
    seed = int(os.environ.get("SAFELIGHT_SOAK_SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed {seed}", flush=True)  # noqa: T201 - to repeat a failure
    return seed


def versions(zones: Zones, count: int) -> list[ModelVersion]:
    """Versions of one model that the gate can judge: their predictions are those of their weights."""
    for number in range(36):
        label = tiny_models.DATASET.classes[number % 3]
        zones.images.put(f"{MODEL}/{label}/{number}.png", images.encode_png(tiny_models.picture(number, 16, 16)))
    dataset = prepare(zones, MODEL, PrepareConfig(size=16, test_share=0.5)).version
    test = datasets.load_split(zones.datasets, dataset, "test")
    made = []
    for seed in range(1, count + 1):
        answers = OnnxModel(tiny_models.linear_onnx(dataset, seed)).probabilities(test.pixels)
        evaluation = {"predictions.parquet": to_parquet(test, answers)}
        made.append(
            tiny_models.register(zones.checkpoints, zones.models, MODEL, seed, dataset=dataset, evaluation=evaluation)
        )
    return made


def history(zones: Zones) -> list[aliases.AliasChange]:
    """All changes of the champion alias."""
    found = aliases.read_alias(zones.models, MODEL, CHAMPION)
    assert found is not None
    return list(found[0].history)


def test_a_promotion_that_slept_through_others_is_refused_and_judges_again(
    zones: Zones, zone_settings: Settings
) -> None:
    """Asleep with its write on the way while the alias goes A, B, A, it changes nothing before it has judged anew."""
    a, b, c = versions(zones, 3)
    aliases.set_alias(zones.models, MODEL, CHAMPION, a.version, reason="before")
    with sleeper(PROMOTE, zone_settings, c.version) as late:
        assert late.run_until_write(1)
        for version in (b, a):
            aliases.set_alias(zones.models, MODEL, CHAMPION, version.version, reason="meanwhile")
        said = late.wake()
    assert "moved meanwhile; judging again" in "\n".join(said)
    assert said[-1] == "True"
    assert [change.version for change in history(zones)] == [each.version for each in (a, b, a, c)]
    assert [change.reason for change in history(zones)[:3]] == ["before", "meanwhile", "meanwhile"]
    assert not verify(zones).broken


def test_a_preparation_that_slept_changes_nothing(zones: Zones, zone_settings: Settings) -> None:
    """Stopped at any of its writes while another one finishes, it ends with the same version, or without writing."""
    chance = random.Random(some_seed())
    for turn in range(PREPARATIONS):
        synthetic.put_classes(zones, "cats", 10, start=30 * turn)
        with sleeper(PREPARE, zone_settings) as orphan:
            # A lease, a shard, a segment, a manifest, a pointer, and the lease again.
            assert orphan.run_until_write(chance.randint(1, 6))
            version = prepare(zones, "cats", PrepareConfig()).version
            before = {each.key: each.etag for each in zones.datasets.listing("cats") if "lease" not in each.key}
            said = orphan.wake()[-1]
        assert said == version.version or said.startswith("LeaseLost"), said
        assert datasets.latest(zones.datasets, "cats") == version
        after = {each.key: each.etag for each in zones.datasets.listing("cats")}
        assert {key: after.get(key) for key in before if key != "cats/latest.json"} == {
            key: etag for key, etag in before.items() if key != "cats/latest.json"
        }
        assert {key for key in after if key.endswith("manifest.json")} == {
            key for key in before if key.endswith("manifest.json")
        }
        assert not verify(zones).broken


def test_every_change_that_was_believed_happened_to_the_state_that_was_judged(zones: Zones) -> None:
    """Of writers that swap an alias between two versions again and again, each win follows what its writer had read."""
    chance = random.Random(some_seed())
    made = [version.version for version in versions(zones, 2)]
    aliases.set_alias(zones.models, MODEL, CHAMPION, made[0], reason="0")
    barrier = Barrier(WRITERS)
    seeds = [chance.random() for _ in range(WRITERS)]

    def write(writer: int) -> dict[str, int]:
        """The reasons of this writer's wins, with the generation that each was judged by."""
        own, won = random.Random(seeds[writer]), {}
        barrier.wait()
        for turn in range(TURNS):
            found = aliases.read_alias(zones.models, MODEL, CHAMPION)
            assert found is not None
            threading.Event().wait(own.uniform(0, 0.02))
            other = made[found[0].version == made[0]]
            try:
                aliases.set_alias(zones.models, MODEL, CHAMPION, other, reason=f"{writer}.{turn}", expected=found[1])
            except Conflict:
                continue
            won[f"{writer}.{turn}"] = found[0].generation
        return won

    with ThreadPool(WRITERS) as pool:
        believed = {reason: generation for won in pool.map(write, range(WRITERS)) for reason, generation in won.items()}
    happened = {change.reason: change.generation for change in history(zones)[1:]}
    assert happened == {reason: judged + 1 for reason, judged in believed.items()}
    assert len(happened) >= TURNS
    assert not verify(zones).broken
