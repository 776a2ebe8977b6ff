"""The object store goes away for 20 s while bytes are in flight, frozen or killed, under every stage at once.

In ``make test`` each stage meets one of the two, by lot. With ``SAFELIGHT_SOAK_OUTAGES=N`` there are N rounds in which
every stage meets both. The seed that is printed, as ``SAFELIGHT_SOAK_SEED``, repeats who meets what, and when.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import outages
import pytest
import tiny_models
import torch
from counting_proxy import counting
from environs import credentials
from outages import Stage
from soak import digest_of_weights, write_pictures

from pipeline import (
    aliases,
    buckets,
    datasets,
    deploy,
    embedded_store,
    evaluate,
    export,
    inference_server,
    prefect_server,
    prepare,
    processes,
    promote,
    registry,
    sources,
    train,
    training_runs,
)
from pipeline.artifacts import GateConfig, PrepareConfig, TrainConfig
from pipeline.images import encode_png
from pipeline.settings import ZONES, Settings
from pipeline.verification import verify
from pipeline.zones import Zones, open_zones, reachable

NAME, SERVED, BUCKET = "pets", "shapes", "outages"
STAGES = ("import", "prepare", "train", "evaluate", "register", "promote", "deploy")
ALL = (*STAGES, "run")
AWAY_S = 20.0
AFTER_S = 180
"""What a stage may still take when the store is back, beside all others and on a busy machine."""
WORDLESS_S = 8.0
"""The longest silence: a line every 5 s, looked for once a second, on a busy machine."""
SOAK = "SAFELIGHT_SOAK_OUTAGES"
ROUNDS = int(os.environ.get(SOAK, "1"))
SEED = int(os.environ.get("SAFELIGHT_SOAK_SEED", random.SystemRandom().randrange(2**32)))
TRAINING = TrainConfig(epochs=3, batch_size=16)
GATE = GateConfig(minimum_accuracy=0.0)
PNG = encode_png(tiny_models.picture(5))

pytestmark = pytest.mark.timeout(600 * ROUNDS)


@dataclass
class Route:
    """The undisturbed route: what is stored before each stage, how many requests it takes, and what it makes."""

    settings: Settings
    folder: Path
    prefect: str = ""
    before: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    zones: list[Zones] = field(default_factory=list)

    def command(self, stage: str) -> list[str]:
        """The product's command for a stage."""
        training = ["--epochs", str(TRAINING.epochs), "--batch-size", str(TRAINING.batch_size)]
        gate = ["--minimum-accuracy", str(GATE.minimum_accuracy)]
        more = {
            "import": [str(self.folder), "--dataset", NAME],
            "train": [NAME, *training],
            "promote": [NAME, *gate],
            "run": [NAME, *training, *gate],
        }
        return ["pipeline.cli", stage, *more.get(stage, [NAME])]

    def own(self, stage: str, patience_s: float) -> tuple[Settings, Zones]:
        """Zones and home of a stage's own, which hold what it needs."""
        prefix = f"s3://{BUCKET}/{stage}-{random.randrange(2**40):x}"
        home = self.settings.home.parent / prefix.rpartition("/")[2]
        settings = self.settings.model_copy(
            update={"store_url": prefix, "home": home, "store_patience_s": patience_s, "inference_port": 18080}
        )
        zones = open_zones(settings)
        for zone in ZONES:
            source: Any = getattr(self.zones[0], zone)
            keys = {key for name, key in self.before[stage] if name == zone}
            objects = [each for each in source.listing() if each.key in keys]
            pairs = ((each.key, data) for each, data in source.read_many(objects))
            list(getattr(zones, zone).write_many(pairs))
        return settings, zones


@pytest.fixture(scope="module")
def route(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Route]:
    """A store that may be stopped, with one undisturbed route in it."""
    home = tmp_path_factory.mktemp("outage") / "home"
    settings = reachable(Settings(home=home, store_port=processes.free_port(8460)))
    buckets.create_buckets(settings.s3_endpoint or "", *credentials(settings), settings.s3_region, [BUCKET])
    pool = ThreadPoolExecutor(1)
    try:
        starting = pool.submit(prefect_server.up, home, 14300)
        route = Route(settings, home.parent / "images")
        write_pictures(route.folder, range(120))
        walk(route)
        route.prefect = starting.result()
        yield route
    finally:
        pool.shutdown()
        for service in processes.running(home):
            processes.stop(home, service.name)
        embedded_store.down(home)


def walk(route: Route) -> None:
    """Go the route undisturbed, in this process, and note what each stage takes."""
    with in_one_thread(), counting(route.settings.s3_endpoint or "") as (url, counts):
        behind = {"s3_endpoint": url, "store_url": f"s3://{BUCKET}/undisturbed", "inference_port": 18080}
        settings = route.settings.model_copy(update=behind)
        zones = open_zones(settings)
        route.zones.append(zones)
        made: dict[str, Any] = {}
        work: dict[str, Callable[[], Any]] = {
            "import": lambda: sources.import_folder(zones, route.folder, NAME),
            "prepare": lambda: prepare.prepare(zones, NAME, PrepareConfig()).version,
            "train": lambda: train.train(zones, made["prepare"], TRAINING, device="cpu"),
            "evaluate": lambda: evaluate.evaluate(zones, made["train"], device="cpu"),
            "register": lambda: registry.register(
                zones.checkpoints, zones.models, NAME, export.export(zones, made["train"]), made["evaluate"]
            ),
            "promote": lambda: promote.promote(zones, made["register"], GATE),
            "deploy": lambda: deploy.deploy(zones, settings, made["register"]),
        }
        for stage in STAGES:
            route.before[stage] = [(zone, each.key) for zone in ZONES for each in getattr(zones, zone).listing()]
            counts.clear()
            made[stage] = work[stage]()
            route.requests[stage] = counts.requests.total()
        inference_server.down(settings)
    route.before["run"] = route.before["prepare"]
    route.requests["run"] = sum(route.requests[stage] for stage in STAGES[1:])
    route.zones[0] = open_zones(settings.model_copy(update={"s3_endpoint": route.settings.s3_endpoint}))


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Compute as the stages' own processes do: the last bit of the weights depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def outcome(stage: str, zones: Zones) -> list[Any]:
    """What a stage was for, as it is stored: the same wherever and however often it ran."""
    if stage == "import":
        return [[each.key, each.etag] for each in sorted(zones.images.listing(NAME), key=lambda each: each.key)]
    version = datasets.latest(zones.datasets, NAME).version
    if stage == "prepare":
        return [version]
    run = training_runs.latest(zones.checkpoints, NAME)
    trained = [version, run.id, run.exact, digest_of_weights(zones, run.checkpoint)]
    if stage == "train":
        return trained
    judged = json.loads(zones.checkpoints.get(f"{run.id}/evaluation/evaluation.json"))
    if stage == "evaluate":
        return [*trained, judged["accuracy"], judged["classes"]]
    registered = [each.version for each in registry.versions(zones.models, NAME)]
    if stage == "register":
        return [*trained, judged["accuracy"], *(name[-8:] for name in registered)]
    found = aliases.read_alias(zones.models, NAME, aliases.CHAMPION)
    return [*trained, judged["accuracy"], found and found[0].version == registered[0], len(registered)]


def by_lot(number: int, away: Callable[[Route], Any]) -> tuple[str, ...]:
    """The stages that meet this kind of outage: all of them in a soak, else those that do not meet the other one."""
    if SOAK in os.environ:
        return ALL
    lots = random.Random(f"{SEED} {number}").sample(ALL, len(ALL))
    return tuple(lots[: len(ALL) // 2] if away is frozen else lots[len(ALL) // 2 :])


@contextmanager
def all_caught(
    route: Route, moments: random.Random, names: tuple[str, ...], patience_s: float
) -> Iterator[list[Stage]]:
    """Stages under way side by side, each amid one of its requests; what they start is stopped at the end."""
    with ExitStack() as running:
        stages = []
        for name in names:
            settings, _ = route.own(name, patience_s)
            number = moments.randint(1, route.requests[name])
            print(f"{name}: request {number} of {route.requests[name]}")  # noqa: T201 - shown when it fails
            running.callback(inference_server.down, settings)
            more = {"PREFECT_API_URL": f"{route.prefect}/api"}
            stages.append(running.enter_context(outages.started(name, settings, route.command(name), number, **more)))
        for stage in stages:
            stage.wait_for(stage.proxy.up)
        for stage in stages:
            stage.proxy.go.set()
        for stage in stages:
            stage.wait_for(stage.proxy.caught)
        yield stages


def let_loose(stages: list[Stage]) -> float:
    """Send what was held back; the moment."""
    for stage in stages:
        stage.proxy.loose.set()
    return time.monotonic()


def pid_of(route: Route) -> int:
    """The store's process."""
    service = processes.find(route.settings.home, embedded_store.NAME)
    assert service
    return service.pid


@contextmanager
def frozen(route: Route) -> Iterator[None]:
    """Stop the store's process, and let it go on; meanwhile it keeps its connections and answers nothing."""
    pid = pid_of(route)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def killed(route: Route) -> Iterator[None]:
    """Kill the store, and start it again; it comes back where it was."""
    os.kill(pid_of(route), signal.SIGKILL)
    try:
        yield
    finally:
        connection = embedded_store.up(route.settings.home)
    assert connection.endpoint == route.settings.s3_endpoint


@contextmanager
def serving(route: Route) -> Iterator[tuple[Stage, Zones, list[str]]]:
    """An inference server that answers with the first of two versions."""
    settings, zones = route.own("import", 60)
    versions = [tiny_models.register(zones.checkpoints, zones.models, SERVED, seed).version for seed in (1, 2)]
    aliases.set_alias(zones.models, SERVED, aliases.CHAMPION, versions[0], reason="test")
    more = {"SAFELIGHT_SERVING_MODEL": SERVED, "SAFELIGHT_SERVING_PORT": "0", "SAFELIGHT_SERVING_POLL_S": "0.2"}
    with outages.started("serving", settings, ["serving"], 10**9, **more) as stage:
        stage.proxy.go.set()
        deadline = time.monotonic() + 60
        while f"is at version {versions[0]}" not in stage.log:
            assert time.monotonic() < deadline, stage.log
            time.sleep(0.05)
        yield stage, zones, versions


def address(server: Stage) -> str:
    """Where an inference server answers."""
    return server.log.partition(" answers at ")[2].split()[0]


def ask_for(server: Stage, seconds: float) -> set[str]:
    """Ask for predictions all the time, each of which must come within two seconds; the versions that answered."""
    until, versions = time.monotonic() + seconds, set()
    with httpx.Client(base_url=address(server), trust_env=False, timeout=2) as client:
        while time.monotonic() < until:
            answer = client.post("/predict", content=PNG)
            assert answer.status_code == 200, answer.text
            versions.add(answer.json()["model_version"])
            time.sleep(0.1)
    return versions


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("away", [frozen, killed])
def test_twenty_seconds_without_the_store_cost_time_only(
    route: Route, away: Callable[[Route], Any], number: int
) -> None:
    """Every stage, a flow and a server, all amid a transfer, end as undisturbed ones, and say what they wait for."""
    print(f"seed {SEED}, round {number}")  # noqa: T201 - shown when it fails
    moments = random.Random(f"{SEED} {number} {away.__name__}")
    with (
        all_caught(route, moments, by_lot(number, away), 120) as stages,
        serving(route) as (server, served, versions),
    ):
        server.proxy.number = server.proxy.seen + moments.randint(1, 3)
        aliases.set_alias(served.models, SERVED, aliases.CHAMPION, versions[1], reason="test")
        server.wait_for(server.proxy.caught)
        with away(route):
            began = let_loose([*stages, server])
            # What the store had answered before it froze may have been all of the second version.
            assert ask_for(server, AWAY_S) <= set(versions)
        back = time.monotonic()
        for stage in stages:
            assert stage.end(AFTER_S) == 0, f"{stage.name}: {stage.log}"
        assert ask_for(server, 1) == {versions[1]}, server.log
        for stage in stages:
            assert stage.silence(began, began + AWAY_S) < WORDLESS_S, f"{stage.name}: {stage.log}"
        # The server does not wait: it answers. It says when the store goes, and what becomes of it when it is back.
        assert server.silence(began, back) < back - began, server.log
        print(f"ended {time.monotonic() - back:.0f} s after the store was back")  # noqa: T201
        for stage in stages:
            zones = open_zones(stage.settings)
            assert outcome(stage.name, zones) == outcome(stage.name, route.zones[0]), stage.name
            assert verify(zones).broken == (), stage.name
            if stage.name == "run":
                assert any(outages.SPEAKS.search(line) for line in told_by_prefect(route))


def told_by_prefect(route: Route) -> list[str]:
    """What the logs of all runs say in Prefect."""
    answer = httpx.post(f"{route.prefect}/api/logs/filter", json={"limit": 200, "sort": "TIMESTAMP_DESC"}, timeout=30)
    return [str(line["message"]) for line in answer.json()]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_store_that_stays_away_ends_every_stage(route: Route, number: int) -> None:
    """After the patience each stage ends with status 1, a sentence that says what to do, and nothing half-written."""
    print(f"seed {SEED}, round {number}")  # noqa: T201 - shown when it fails
    moments = random.Random(f"{SEED} {number} stays away")
    patience_s = 6
    names = STAGES if SOAK in os.environ else tuple(moments.sample(STAGES, 3))
    with all_caught(route, moments, names, patience_s) as stages:
        with killed(route):
            began = let_loose(stages)
            for stage in stages:
                assert stage.end(patience_s + 30) == 1, f"{stage.name}: {stage.log}"
                assert time.monotonic() - began < patience_s + 15, f"{stage.name}: {stage.log}"
        for stage in stages:
            assert "Traceback" not in stage.log, stage.log
            last = stage.log.splitlines()[-1]
            assert last.startswith("safelight: "), stage.log
            assert "see that it is running" in last or "start it" in last, stage.log
            assert verify(open_zones(stage.settings)).broken == (), stage.name
