"""``make demo``: everything at once on one machine, once to look at and again to go on from.

The object store, the Prefect server, the process that runs flows, and the inference server are processes of their own,
kept by name in the home folder; what is found running is used. Without ``detach`` the demo stays until Ctrl-C and then
stops them all; what is stored remains, so that the next demo does no work twice.
"""

import logging
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from pipeline import console, datasets, embedded_store, fashion_mnist, prefect_server, processes, sources
from pipeline.artifacts import DatasetVersion, GateConfig
from pipeline.errors import DeployFailed, InvalidInput
from pipeline.settings import Settings
from pipeline.zones import Zones, open_zones, reachable

if TYPE_CHECKING:
    from pipeline.flows import PipelineResult

QUESTIONS = 100
"""About how many images of the test split the finished server is asked."""
FOLDERS = ("cache", "demo", "downloads", "logs", "prefect", "run", "store")
"""All that Safelight makes in its home; the home itself may be a folder with other things in it."""


@dataclass(frozen=True)
class Answers:
    """What the server said to real images over HTTP; one of them is kept as a file for the person's own curl."""

    asked: int
    right: int
    sample: Path
    sample_label: str


def demo(settings: Settings, images: Path | None, *, detach: bool, limit: int | None = None) -> None:
    """Run the whole route, and say where everything is.

    Raises:
        SafelightError: in one sentence, what went wrong; everything is stopped again then.
        KeyboardInterrupt: Ctrl-C or SIGTERM came before the end; everything is stopped.
    """
    begun = time.monotonic()
    images = images and images.expanduser()
    if images is not None and not images.is_dir():
        raise InvalidInput(f"{images} is not a folder: give one that holds a folder of images per class.")
    finished = False
    try:
        with stopping_at_the_end(settings):
            _run_and_show(settings, images, limit, begun)
            if not detach:
                finished = True
                console.out("Everything stays up until Ctrl-C. What is stored stays for the next time.")
                threading.Event().wait()
    except KeyboardInterrupt:
        if not finished:
            raise


def stop(settings: Settings) -> None:
    """Stop every process of this home; what is stored stays."""
    # In the order of who needs whom: the store goes last.
    names = sorted((service.name for service in processes.running(settings.home)), key=_stopping_order)
    stopped = [name for name in names if _stopped(settings.home, name)]
    console.say(f"safelight: stopped {', '.join(stopped)}." if stopped else "safelight: nothing was running.")


def clean(settings: Settings, confirm: Callable[[str], bool]) -> None:
    """Stop everything and remove the home folder with all that is stored in it, if the person agrees."""
    if not settings.home.exists():
        console.say(f"safelight: there is nothing at {settings.home}.")
        return
    if confirm(f"Remove {settings.home} with every image, dataset and model stored in it?"):
        stop(settings)
        for name in FOLDERS:
            shutil.rmtree(settings.home / name, ignore_errors=True)
        with suppress(OSError):  # what a person keeps there beside ours stays
            settings.home.rmdir()
        console.say(f"safelight: removed {settings.home}.")


@contextmanager
def stopping_at_the_end(settings: Settings) -> Iterator[None]:
    """Stop every process on Ctrl-C, on SIGTERM, and on failure unless they ran before."""
    before = {service.name for service in processes.running(settings.home)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.say("\nsafelight: stopping …")
        stop(settings)
        raise
    except BaseException:
        if not before:
            stop(settings)
        raise


def ask(settings: Settings, zones: Zones, version: DatasetVersion, url: str, count: int) -> Answers:
    """Send about ``count`` raw images of the test split to the live server at ``url``, as a person would.

    Raises:
        DeployFailed: it refused one.
    """
    truth = datasets.labels_of(zones.datasets, version, "test")
    chosen = sorted(truth)[:: max(1, len(truth) // count)]
    right = 0
    sample, sample_label = b"", ""
    with httpx.Client(base_url=url, headers=settings.inference_headers, timeout=30) as client:
        for digest, encoded in datasets.encoded_images(zones.images, zones.datasets, version, chosen):
            answer = client.post("/predict", content=encoded)
            if not answer.is_success:
                raise DeployFailed(f"the server answered a real image with {answer.status_code}: {answer.text}")
            is_right = answer.json()["label"] == truth[digest]
            right += is_right
            if is_right or not sample:
                sample, sample_label = encoded, truth[digest]
    path = settings.home / "demo" / "sample-image"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sample)
    return Answers(len(chosen), right, path, sample_label)


def _run_and_show(settings: Settings, images: Path | None, limit: int | None, begun: float) -> None:
    """The whole route, with its result on standard output; ``begun`` is when the demo began (monotonic seconds)."""
    settings, zones, prefect = _start(settings)
    started_s = time.monotonic() - begun
    dataset, imported_s = _import(settings, zones, images, limit)
    result = _run_flow(settings, prefect, dataset, strangers=images is not None)
    _show_result(result, {"start": started_s, "import": imported_s} | result.seconds)
    _show_addresses(result, prefect, settings)
    if result.deployment is not None:
        url = result.deployment.url
        _show_answers(ask(settings, zones, result.dataset_version, url, QUESTIONS), url)
    console.out(f"\nDone in {time.monotonic() - begun:.0f} s.")


def _start(settings: Settings) -> tuple[Settings, Zones, str]:
    """The object store, the Prefect server and the process that runs flows; started together, they are up sooner."""
    console.say("safelight: starting the object store and the Prefect server …")
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(prefect_server.up, settings.home, settings.prefect_port)
        settings = reachable(settings)
        zones = open_zones(settings)
        url = server.result()
    os.environ["SAFELIGHT_HOME"] = str(settings.home)
    prefect_server.runner_up(settings.home, url, os.environ)
    return settings, zones, url


def _import(settings: Settings, zones: Zones, images: Path | None, limit: int | None) -> tuple[str, float]:
    begun = time.monotonic()
    with console.progress() as on_progress:
        if images is None:
            cache = settings.home / "downloads"
            result = sources.import_fashion_mnist(
                zones, fashion_mnist.NAME, limit=limit, cache_dir=cache, on_progress=on_progress
            )
        else:
            # The folder is what the person sees: what left it must not go on counting, or be mixed with another's.
            name = sources.dataset_name(images)
            result = sources.import_folder(zones, images, name, exact=True, on_progress=on_progress)
    for line in sources.summary(result):
        console.say(f"safelight: {line}")
    return result.dataset, time.monotonic() - begun


def _run_flow(settings: Settings, prefect: str, dataset: str, *, strangers: bool) -> "PipelineResult":
    prefect_server.use(settings.home, prefect)
    from pipeline import flows, prefect_runs  # noqa: PLC0415 - Prefect reads its environment when it is imported

    # Whatever a stranger's first model is worth, it should be seen answering; the report says how good it is.
    gate = GateConfig(minimum_accuracy=0.0) if strangers else GateConfig()
    try:
        result = prefect_runs.run_here(flows.pipeline(dataset, gate=gate))
    finally:
        # A demo that failed stops the server at once; the runs' last lines should have reached it by then.
        for handler in logging.getLogger("prefect.flow_runs").handlers:
            handler.flush()
    return result


def _show_result(result: "PipelineResult", seconds: dict[str, float]) -> None:
    report, decision = result.report, result.decision
    console.out(f"\naccuracy         {report.accuracy:.4f} on {report.images:,} test images")
    if decision.champion_accuracy is not None and decision.champion != decision.challenger:
        console.out(f"champion before  {decision.champion_accuracy:.4f} on the same images")
    console.out(f"model version    {result.model_version.model} {result.model_version.version}")
    console.out(f"dataset version  {result.dataset_version.dataset} {result.dataset_version.version}")
    console.out(f"training run     {result.training_run.id}")
    console.out("seconds          " + ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items()))
    console.out(f"gate             {'promoted' if decision.promoted else 'NOT promoted'}: {decision.reasons[0]}")


def _show_addresses(result: "PipelineResult", prefect: str, settings: Settings) -> None:
    console.out(f"\nPrefect UI       {prefect}")
    console.out(f"object store     {settings.s3_endpoint} (credentials: {settings.home / 'store'})")
    if result.deployment is not None:
        url, version = result.deployment.url, result.model_version
        console.out(f"server           {url}  (API: {url}/docs)")
        console.out(f"report           {url}/v2/models/{version.model}/versions/{version.version}/report")


def _show_answers(answers: Answers, url: str) -> None:
    console.out(f"over HTTP        {answers.right} of {answers.asked} test images answered right")
    near = answers.sample.is_relative_to(Path.cwd())
    sample = shlex.quote(str(answers.sample.relative_to(Path.cwd()) if near else answers.sample))
    console.out(f"\nTry it (this one is {answers.sample_label!r}):")
    console.out(f"  curl --data-binary @{sample} {url}/predict")


def _stopped(home: Path, name: str) -> bool:
    return embedded_store.down(home) if name == embedded_store.NAME else processes.stop(home, name)


def _stopping_order(name: str) -> int:
    order = [prefect_server.RUNNER, prefect_server.SERVER, embedded_store.NAME]
    return order.index(name) + 1 if name in order else 0
