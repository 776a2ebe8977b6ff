"""Challengers of all kinds before real servers: how far each gets, and what clients notice of it (nothing)."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import httpx
import pytest
import tiny_models
from at_work import at_work
from deployable import register
from live_server import wait_until
from serving_process import MODEL, Serving, started

from pipeline import aliases, deploy, images, inference_server, processes
from pipeline.aliases import CHAMPION, AliasState, Canary
from pipeline.artifacts import (
    CanaryConfig,
    CanaryStep,
    DatasetVersion,
    Deployment,
    ModelVersion,
    PrepareConfig,
    utc_now,
)
from pipeline.errors import CanaryHeld, Conflict, DeployFailed
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones

ADDRESSES = ("127.0.0.1", "127.0.0.2")
QUICK = CanaryConfig(steps=(0.1, 0.5), minimum_requests=30, step_s=0, hold_s=60)
UNHURRIED = QUICK.model_copy(update={"slower_ms": 5000.0})
"""For challengers that are to get through: that one of two equal models was slower is the machine's doing."""


@dataclass
class Shop:
    """Two replicas of one server, behind one name; the first has two processes. Versions are numbered in turn."""

    settings: Settings
    zones: Zones
    dataset: DatasetVersion
    servers: Sequence[Serving]
    made: int = 0
    steps: list[CanaryStep] = field(default_factory=list)

    def register(self, *, evaluated_as: int | None = None, onnx_file: bytes | None = None) -> ModelVersion:
        """The next version."""
        self.made += 1
        return register(self.zones, self.dataset, self.made, evaluated_as=evaluated_as, onnx_file=onnx_file)

    def deployed(self, version: ModelVersion, ramp: CanaryConfig | None = UNHURRIED, **options: object) -> Deployment:
        """The version live, by a canary unless told otherwise."""
        self.steps.clear()
        return deploy.deploy(
            self.zones,
            self.settings,
            version,
            ramp=ramp,
            on_step=self.steps.append,
            **{"resolve": lambda _: ADDRESSES, **options},  # type: ignore[arg-type]
        )

    def state(self) -> AliasState:
        """What the alias says."""
        found = aliases.read_alias(self.zones.models, MODEL, CHAMPION)
        assert found
        return found[0]

    def live(self) -> set[str | None]:
        """The versions that the replicas say are live."""
        return {server.version() for server in self.servers}

    def canary(self, challenger: ModelVersion, share: float, step: int = 0) -> None:
        """Set a share as a ramp, or a person, does."""
        found = Canary(challenger=challenger.version, share=share, step=step, started_at=utc_now())
        aliases.set_canary(self.zones.models, MODEL, CHAMPION, found, reason="test")


@pytest.fixture(scope="module")
def shop(store_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One for all tests here; dark images among the others, on which some models crash."""
    logs = tmp_path_factory.mktemp("shop")
    port = processes.free_port(0)
    settings = store_settings.model_copy(
        update={
            "store_url": f"s3://safelight-tests/{logs.name}-{os.getpid()}",
            "home": logs / "home",
            "inference_url": f"http://serving:{port}",
        }
    )
    zones = open_zones(settings)
    for number in range(60):
        pixels = tiny_models.picture(number, 20, 24) // (20 if number % 2 else 1)
        zones.images.put(f"{MODEL}/{('circle', 'line', 'square')[number % 3]}/{number}.png", images.encode_png(pixels))
    dataset = prepare(zones, MODEL, PrepareConfig(size=16, test_share=0.5)).version
    with ExitStack() as running:
        own = [
            {"HOST": at, "PORT": str(port), "PROCESSES": str(count)}
            for at, count in zip(ADDRESSES, (2, 1), strict=True)
        ]
        servers = [running.enter_context(started(settings, logs / f"{each['HOST']}.log", each)) for each in own]
        made = Shop(settings, zones, dataset, servers)
        made.deployed(made.register(), None)
        yield made


@pytest.fixture(autouse=True)
def _as_before(shop: Shop) -> Iterator[None]:
    """Each test ends without a canary, and with the first version live."""
    yield
    first = min(each.version for each in shop.state().history if each.version)
    aliases.set_canary(shop.zones.models, MODEL, CHAMPION, None, reason="end of test")
    aliases.set_alias(shop.zones.models, MODEL, CHAMPION, first, reason="end of test")
    wait_until(lambda: all(each.status()["canary"] is None and each.version() == first for each in shop.servers))


@dataclass
class Clients:
    """What clients were answered: versions, and whatever was no prediction."""

    versions: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    answered: int = 0


@contextmanager
def clients(shop: Shop, callers: int = 40) -> Iterator[Clients]:
    """One thread for each replica that asks about pictures, dark ones among them, in the name of many callers."""
    seen = Clients()
    pictures = [images.encode_png(tiny_models.picture(each, 20, 24) // (20 if each % 2 else 1)) for each in range(20)]

    def send(server: Serving, stop: threading.Event) -> None:
        with httpx.Client(base_url=server.client.base_url, trust_env=False, timeout=30) as client:
            number = 0
            while not stop.is_set():
                number += 1
                name = {"X-Caller-Key": f"caller {number % callers}"}
                answer = client.post("/predict", content=pictures[number % len(pictures)], headers=name)
                seen.answered += 1
                if answer.is_success:
                    seen.versions.add(answer.json()["model_version"])
                else:
                    seen.wrong.append(f"{answer.status_code} {answer.text}")

    with at_work([partial(send, server) for server in shop.servers]):
        yield seen


def test_a_good_challenger_gets_all(shop: Shop) -> None:
    """Without clients test images are sent; the steps count over all processes and replicas, and then it is live."""
    version = shop.register()
    done = shop.deployed(version)
    assert [(step.share, step.outcome) for step in done.canary] == [(0.1, "go on"), (0.5, "go on")]
    assert all(step.requests >= 30 <= step.champion_requests and not step.errors for step in done.canary)
    assert all(step.requests + step.champion_requests == step.replayed for step in done.canary)
    assert (done.model_version, done.replicas) == (version, 2)
    assert shop.live() == {version.version}
    assert (shop.state().version, shop.state().canary) == (version.version, None)


@pytest.mark.parametrize("kind", ["slow", "crashing", "wrong"])
@pytest.mark.parametrize("asked_by", ["test images", "clients"])
def test_a_bad_challenger_goes_back(shop: Shop, kind: str, asked_by: str) -> None:
    """It had a share for a moment, goes back with the numbers, and no client got an error; the champion never left."""
    made = {
        "slow": partial(tiny_models.slow_onnx, ms=50),
        "crashing": tiny_models.crashing_onnx,
        "wrong": tiny_models.wrong_onnx,
    }
    bad = shop.register(evaluated_as=1, onnx_file=made[kind](shop.dataset, 1))
    before = shop.state()
    ramp = QUICK if asked_by == "test images" else QUICK.model_copy(update={"step_s": 600.0, "steps": (0.5,)})
    with ExitStack() as around:
        seen = around.enter_context(clients(shop)) if asked_by == "clients" else Clients()
        with pytest.raises(DeployFailed, match="and went back to none: ") as caught:
            shop.deployed(bad, ramp)
    step = shop.steps[-1]
    reason = {
        "slow": "took longer than",
        "crashing": "requests to the challenger failed",
        "wrong": "to the server" if asked_by == "test images" else "champion and challenger disagree on",
    }
    assert reason[kind] in step.reason in str(caught.value)
    assert all(each.status()["canary"] is None for each in shop.servers)
    assert (step.outcome, step.replayed > 0) == ("back", asked_by == "test images")
    after = shop.state()
    assert (after.version, after.canary) == (before.version, None)
    assert {change.version for change in after.history[len(before.history) :]} == {before.version}
    assert not seen.wrong


def test_a_shadow_answers_nobody(shop: Shop) -> None:
    """Clients hear of the champion alone, and yet a wrong challenger is found out."""
    ramp = QUICK.model_copy(update={"step_s": 600.0, "shadow_first": True})
    with clients(shop) as seen, pytest.raises(DeployFailed, match=r"had a copy of 100 % .* disagree on"):
        shop.deployed(shop.register(evaluated_as=1, onnx_file=tiny_models.wrong_onnx(shop.dataset, 1)), ramp)
    assert seen.versions == {shop.state().version}
    assert not seen.wrong


def test_a_challenger_that_does_not_load_goes_back(shop: Shop) -> None:
    """Altered in the store: each replica says why, and keeps the champion."""
    bad = shop.register()
    shop.zones.models.put(f"{MODEL}/{bad.version}/model.onnx", b"other bytes")
    before = shop.live()
    with pytest.raises(DeployFailed, match=r"did not load the version; it says: .* was altered"):
        shop.deployed(bad, timeout_s=1)
    assert shop.live() == before
    assert shop.state().canary is None


def test_a_killed_ramp_goes_on_at_its_step(shop: Shop) -> None:
    """SIGKILL in the second step: the alias keeps the share, and the same deployment again begins there."""
    version = shop.register()
    code = (
        "import os, signal, sys\n"
        "from pipeline import deploy\n"
        "from pipeline.artifacts import CanaryConfig, ModelVersion\n"
        "from pipeline.settings import Settings\n"
        "from pipeline.zones import open_zones\n"
        "settings = Settings.from_environ(os.environ)\n"
        "def die(progress): '50 %' in progress.stage and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"version = ModelVersion(model={MODEL!r}, version=sys.argv[1])\n"
        "ramp = CanaryConfig.model_validate_json(sys.argv[2])\n"
        f"deploy.deploy(open_zones(settings), settings, version, ramp=ramp, on_progress=die,"
        f" resolve=lambda _: {ADDRESSES!r})\n"
    )
    environ = inference_server.environ(shop.settings, MODEL, 0, os.environ)
    arguments = [sys.executable, "-c", code, version.version, UNHURRIED.model_dump_json()]
    killed = subprocess.run(arguments, env=environ, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = shop.state().canary
    assert left
    assert (left.challenger, left.step, left.share) == (version.version, 1, 0.5)
    done = shop.deployed(version)
    assert [step.share for step in done.canary] == [0.5]
    assert shop.live() == {version.version}


def test_of_two_ramps_one_waits_and_finds_it_done(shop: Shop) -> None:
    """They take turns; the second one begins where the first one ended, and proves what is live."""
    version, done = shop.register(), list[Deployment]()
    waited = threading.Event()

    def second(progress: Progress) -> None:
        if "waiting for" in progress.stage:
            waited.set()

    other = threading.Thread(target=lambda: done.append(shop.deployed(version, on_progress=second)))

    def first(progress: Progress) -> None:
        if progress.stage.startswith("canary") and not other.ident:
            other.start()
            assert waited.wait(30)

    done.append(shop.deployed(version, on_progress=first))
    other.join()
    assert sorted(len(each.canary) for each in done) == [0, 2]
    assert shop.live() == {version.version}


def test_a_champion_that_moves_meanwhile_is_left_alone(shop: Shop) -> None:
    """Somebody makes a third version live: the ramp ends without touching anything."""
    version, third = shop.register(), shop.register()

    def interfere(progress: Progress) -> None:
        if progress.stage.startswith("canary"):
            aliases.set_alias(shop.zones.models, MODEL, CHAMPION, third.version, reason="somebody else")

    with pytest.raises(Conflict, match="was changed by somebody else"):
        shop.deployed(version, on_progress=interfere)
    assert (shop.state().version, shop.state().reason) == (third.version, "somebody else")


def test_without_clients_it_holds_where_they_are_wanted(shop: Shop) -> None:
    """Test images find nothing wrong, and do not do: the share stays, and repeated with clients the ramp goes on."""
    version = shop.register(evaluated_as=1, onnx_file=tiny_models.linear_onnx(shop.dataset, 1))
    ramp = UNHURRIED.model_copy(update={"real_traffic": True, "steps": (0.5,)})
    with pytest.raises(CanaryHeld, match="keeps 50 % of the requests"):
        shop.deployed(version, ramp.model_copy(update={"hold_s": 0.0}))
    assert shop.state().canary
    with clients(shop) as seen:
        done = shop.deployed(version, ramp)
    assert shop.live() == {version.version} <= seen.versions
    assert done.canary[0].outcome == "go on"
    assert not seen.wrong


def test_the_champion_is_deployed_beside_a_canary(shop: Shop) -> None:
    """A deployment of what is live already proves it, although half of the callers reach the other version."""
    champion = ModelVersion(model=MODEL, version=str(shop.state().version))
    challenger = shop.register()
    shop.canary(challenger, 0.5)
    assert shop.deployed(champion, None).replicas == 2
    found = shop.state().canary
    assert found
    assert found.challenger == challenger.version
