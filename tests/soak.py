"""The whole route under SIGKILL: stages as processes, killed while they work, and what must hold after each kill.

- A stage is a command of the product in a process of its own, and its store is reached through a proxy, which sees when
  the stage begins to work and counts its writes. Half of the kills come at a random moment of that work, the other half
  at a random write: before the store gets it, or when it has answered and the process does not know.
- Half of the kills hit the process alone (what it had started lives on), the other half it and all its descendants.
- After each kill everything stored is read and verified, what had been written once must be there unchanged, and the
  inference server, where it lives, must answer with a complete version.
- In each round there are new images and another seed, so that there is work. It is repeated in one process of its own
  that nobody kills, in zones of its own: versions, weights and model must be the same.
"""

import hashlib
import json
import random
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from counting_proxy import listening
from environs import on_one_core
from watched_proxy import Observer, Plan, WatchedProxy

from pipeline import aliases, checkpoints, datasets, images, prefect_server, processes, registry, training_runs
from pipeline.settings import ZONES, Settings
from pipeline.verification import verify
from pipeline.zones import Zones

NAME = "pets"
"""Of the dataset and of the model."""
CLASSES = ("cat", "dog", "owl")
FIRST_IMAGES, MORE_IMAGES = 90, 12
STAGE_TIMEOUT_S = 300
INFERENCE_PORT, PREFECT_PORT = 18080, 14200
STAGES = ("import", "prepare", "train", "evaluate", "register", "promote", "deploy")
CHANGING = re.compile(
    r".*/(latest|lease|preparing|deploying|deployment)\.json|[^/]+/(aliases|work|checkpoints|leases?)/.*|store-check/.*|.*\.tmp"
)
"""Keys of what may be replaced or removed; all other objects are written once and stay."""
ANSWER_S = 30.0
"""How long a server that lives, and has a champion, may take to answer."""

REFERENCE = """
import hashlib, json, os, sys
from pipeline import checkpoints, evaluate, export, registry, train
from pipeline.artifacts import PrepareConfig, TrainConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.zones import open_zones

zones = open_zones(Settings.from_environ(os.environ))
version = prepare(zones, "pets", PrepareConfig()).version
run = train.train(zones, version, TrainConfig.model_validate_json(sys.argv[1]), device="cpu")
made = registry.register(
    zones.checkpoints, zones.models, "pets", export.export(zones, run), evaluate.evaluate(zones, run, device="cpu")
)
weights = checkpoints.load_weights(zones.checkpoints, run)
digest = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()
print(json.dumps([version.version, run.id, digest, made.version[-8:]]))
"""


@dataclass(frozen=True)
class Work:
    """What an undisturbed stage takes: seconds from its first request on, and writes."""

    seconds: float = 0.0
    writes: int = 0


@dataclass
class Soak:
    """One store, one home, and a number of rounds."""

    settings: Settings
    zones: Zones
    random: random.Random
    folder: Path
    observer: Observer = field(default_factory=Observer)
    endpoint: str = ""
    work: defaultdict[str, Work] = field(default_factory=lambda: defaultdict(Work))
    kills: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    kept: dict[tuple[str, str], str] = field(default_factory=dict)
    images: int = 0
    round: int = 0
    survivors: list[psutil.Process] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Kills so far."""
        return self.kills.total()

    def begin_round(self) -> None:
        """New images in the person's folder, and another seed."""
        self.round += 1
        first, self.images = self.images, self.images + (MORE_IMAGES if self.images else FIRST_IMAGES)
        write_pictures(self.folder, range(first, self.images))

    def commands(self) -> dict[str, list[str]]:
        """The stages of the route, and ``run``, which is all but the first as one flow."""
        training = ["--epochs", "3", "--batch-size", "16", "--seed", str(self.round)]
        gate = ["--minimum-accuracy", "0", "--margin=-1", "--allow", "seen_test_images"]
        return {
            "import": ["import", str(self.folder), "--dataset", NAME],
            "prepare": ["prepare", NAME],
            "train": ["train", NAME, *training],
            "evaluate": ["evaluate", NAME],
            "register": ["register", NAME],
            "promote": ["promote", NAME, *gate],
            "deploy": ["deploy", NAME],
            "run": ["run", NAME, *training, *gate],
        }

    def finish(self, stage: str) -> None:
        """Run a stage to its end."""
        self.observer.expect()
        process = self._start(stage)
        self._wait_for_work(process)
        began = time.monotonic()
        try:
            said, _ = process.communicate(timeout=STAGE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"{stage} did not end in {STAGE_TIMEOUT_S} s: {process.communicate()[0]}"
        assert process.returncode == 0, f"round {self.round}: {stage}: {said}"
        self.work[stage] = Work(time.monotonic() - began, max(self.observer.writes, self.work[stage].writes))

    def strike(self, stage: str) -> bool:
        """Start a stage and kill it; whether it was killed before it had ended by itself."""
        whole_family = self.random.random() < 0.5
        work = self.work[stage]
        number = self.random.randint(1, work.writes) if work.writes and self.random.random() < 0.5 else 0
        at_answer = self.random.random() < 0.5
        process: subprocess.Popen[str] | None = None
        started = threading.Event()

        def kill() -> bool:
            started.wait()
            assert process is not None
            self._kill(process, whole_family=whole_family)
            return False

        self.observer.expect(Plan(number, at_answer, kill) if number else None)
        process = self._start(stage)
        started.set()
        if not number:
            self._wait_for_work(process)
            try:
                process.wait(self.random.uniform(0, work.seconds))
            except subprocess.TimeoutExpired:
                kill()
        try:
            said, _ = process.communicate(timeout=STAGE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill(process, whole_family=True)
            raise
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, f"round {self.round}: {stage}: {said}"
            return False
        self.kills[stage] += 1
        self.kinds[f"at a write, {'answered' if at_answer else 'not sent'}" if number else "at a moment"] += 1
        self.kinds["with its family" if whole_family else "alone"] += 1
        self.verify(f"{stage} was killed ({'write ' + str(number) if number else 'at a moment'})")
        return True

    def verify(self, what: str) -> None:
        """All that must hold at any moment."""
        found = verify(self.zones)
        assert not found.broken, f"round {self.round}, {what}: {[each.model_dump() for each in found.broken]}"
        now: dict[tuple[str, str], str] = {
            (zone, each.key): each.etag
            for zone in ZONES
            for each in getattr(self.zones, zone).listing()
            if not CHANGING.fullmatch(each.key)
        }
        lost = {place for place, etag in self.kept.items() if now.get(place) != etag}
        assert not lost, f"round {self.round}, {what}: lost or changed: {lost}"
        self.kept = now
        self._verify_server(what)

    def verify_round(self) -> None:
        """All that must hold when the round's route has been gone to its end."""
        stored = {each.key for each in self.zones.images.listing(NAME)}
        files = {f"{NAME}/{path.relative_to(self.folder).as_posix()}" for path in self.folder.rglob("*.png")}
        assert stored == files
        version, run, weights, suffix = self._reference()
        assert datasets.latest(self.zones.datasets, NAME).version == version
        finished = training_runs.find(self.zones.checkpoints, run)
        assert finished.exact
        assert digest_of_weights(self.zones, finished.checkpoint) == weights
        made = [each for each in registry.versions(self.zones.models, NAME) if each.training_run == run]
        assert [each.version[-8:] for each in made] == [suffix]
        assert aliases.resolve(self.zones.models, NAME, aliases.CHAMPION).version == made[0].version
        assert self.answering() == made[0].version
        self.verify("the round is over")

    def answering(self) -> str | None:
        """The version that the inference server answers with; None where none is running."""
        champion = aliases.read_alias(self.zones.models, NAME, aliases.CHAMPION)
        deadline = time.monotonic() + ANSWER_S
        while (server := processes.find(self.settings.home, f"serving-{NAME}")) is not None:
            with suppress(httpx.TransportError):  # it is starting, or was killed between the look and the question
                url = f"http://127.0.0.1:{server.ports['http']}/predict"
                answer = httpx.post(url, content=picture(1), timeout=10, trust_env=False)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:  # it loads
                    assert answer.is_success, answer.text
                    return str(answer.json()["model_version"])
            if champion is None or champion[0].version is None:
                return None
            assert time.monotonic() < deadline, f"round {self.round}: a live server does not answer"
            time.sleep(0.1)
        return None

    def end(self) -> None:
        """Stop what the stages have left running."""
        for each in self.survivors:
            if each.is_running():
                each.kill()
        for service in processes.running(self.settings.home):
            processes.stop(self.settings.home, service.name)

    def _verify_server(self, what: str) -> None:
        version = self.answering()
        known = registry.version_ids(self.zones.models, NAME)
        assert version is None or version in known, f"round {self.round}, {what}: {version} answers"

    def _wait_for_work(self, process: subprocess.Popen[str]) -> None:
        """Return when the process has sent its first request, or has ended."""
        while not self.observer.begun.wait(0.2) and process.poll() is None:
            pass

    def _start(self, stage: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline", *self.commands()[stage]]
        behind = self.settings.model_copy(update={"s3_endpoint": self.endpoint})
        process = subprocess.Popen(
            command,
            env=on_one_core(behind, SAFELIGHT_INFERENCE_PORT=str(INFERENCE_PORT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.survivors.append(psutil.Process(process.pid))
        return process

    def _kill(self, process: subprocess.Popen[str], *, whole_family: bool) -> None:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        process.kill()
        services = {each.pid for each in processes.running(self.settings.home)}
        for each in family:
            if whole_family:
                each.kill()
            elif each.pid not in services:
                self.survivors.append(each)

    def _reference(self) -> list[str]:
        config = json.dumps({"epochs": 3, "batch_size": 16, "seed": self.round})
        apart = f"{self.settings.store_url}-reference-{secrets.token_hex(4)}"
        environ = on_one_core(
            self.settings, SAFELIGHT_STORE_URL=apart, SAFELIGHT_IMAGES_URL=f"{self.settings.store_url}/images"
        )
        command = [sys.executable, "-c", REFERENCE, config]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, check=False, timeout=STAGE_TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found


def picture(number: int) -> bytes:
    """A noisy grey PNG, as bright as its class is high."""
    noise = np.random.default_rng(number).integers(0, 100, (28, 28, 1))
    return images.encode_png((noise + 70 * (number % 3)).astype(np.uint8))


def write_pictures(folder: Path, numbers: Iterable[int]) -> None:
    """A folder per class, of whose pictures each has its number."""
    for number in numbers:
        path = folder / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def digest_of_weights(zones: Zones, checkpoint: str) -> str:
    """SHA-256 of all weights of a checkpoint, in the order of their names."""
    weights = checkpoints.load(zones.checkpoints, checkpoint)[1][checkpoints.WEIGHTS]
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


@contextmanager
def soaking(settings: Settings, zones: Zones, folder: Path, seed: int) -> Iterator[Soak]:
    """A soak whose stages reach the store through the proxy, and leave nothing running."""
    soak = Soak(settings, zones, random.Random(seed), folder)
    proxy = WatchedProxy(settings.s3_endpoint or "", soak.observer)
    soak.endpoint = proxy.url
    with listening(proxy):
        try:
            yield soak
        finally:
            soak.end()


def run(soak: Soak, kills: int) -> None:
    """Go the route round after round, until there were so many kills, and at least one of each stage.

    The first round is undisturbed and measures what each stage takes. Of the later ones every third goes the route as
    one flow, the others stage by stage; whatever is started is struck two or three times before it may finish.
    """
    soak.begin_round()
    for stage in STAGES:
        soak.finish(stage)
    soak.verify_round()
    flow = [soak.work[stage] for stage in STAGES[1:]]
    soak.work["run"] = Work(sum(work.seconds for work in flow), sum(work.writes for work in flow))
    prefect_server.up(soak.settings.home, PREFECT_PORT)
    while soak.total < kills or not all(soak.kills[stage] for stage in (*STAGES, "run")):
        soak.begin_round()
        for stage in ("import", "run") if soak.round % 3 == 2 else STAGES:
            for _ in range(soak.random.choice((2, 3))):
                soak.strike(stage)
            soak.finish(stage)
        soak.verify_round()
        print(f"soak: round {soak.round} is over, {soak.total} kills", flush=True)  # noqa: T201 - hours may pass
