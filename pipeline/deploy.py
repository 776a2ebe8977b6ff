"""Make a model version live and prove it over HTTP; if it does not prove itself, make the old one live again.

- **Live means that the alias points at it.** Serving follows the alias by itself; this step moves it where promotion
  has not, waits until the server says that it has followed, and then asks what any client would ask.
- **The proof is the evaluation's own predictions.** Test images of all classes go through the whole server (HTTP,
  decoding, model) and must come back as the evaluation, in another process, said: that catches what the quality gate
  cannot see, namely a server that prepares its pixels, or orders its classes, in another way.
- **A version that fails is taken off the alias**, by compare and swap and only if it is still there. One that had
  proven itself before, and that this call did not put there, is left alone: the fault is then in the surroundings, and
  a wrong URL must not take a good model away from every other server. ``deployment.json`` beside the model remembers.
- Killed at any point and repeated, it goes on: each part looks first whether it is done.
- Which server is asked, and how one is started on this machine, is in ``inference_server``.
"""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import aliases, datasets, inference_server, registry
from pipeline.aliases import CHAMPION
from pipeline.artifacts import Deployment, ModelVersion
from pipeline.errors import DeployFailed, InvalidSettings, LocalServiceFailed, StoreError
from pipeline.inference_server import Server
from pipeline.progress import OnProgress, Progress, silent
from pipeline.registry import ModelManifest
from pipeline.settings import PREFIX, Settings
from pipeline.store import Store
from pipeline.zones import Zones

PREDICTIONS = "predictions.parquet"
PROOF = "deployment.json"
SMOKE_IMAGES = 32
LARGEST_IMAGE = 16 << 20
"""Bytes; larger ones are not sent, since what is proven has nothing to do with the server's limit on bodies."""
LARGEST_DIFFERENCE = 1e-4
"""Of a probability between the evaluation and the server."""
CLEAR_GAP = 2e-4
"""Between the evaluation's two most probable classes, above which the server's label must be the same."""
READY_TIMEOUT_S = 60.0
FAILURE_GRACE_S = 3.0
"""How long a server may say that it cannot load the version before that is believed; it tries again meanwhile."""
BACK_TIMEOUT_S = 5.0
"""How long a server may take to go back to the old version before a failed deployment says that it has not."""
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Question:
    """A test image as it was uploaded, and what the evaluation said of it: float (classes,)."""

    digest: str
    encoded: bytes
    probabilities: NDArray[np.float64]


def deploy(
    zones: Zones,
    settings: Settings,
    version: ModelVersion,
    *,
    timeout_s: float = READY_TIMEOUT_S,
    on_progress: OnProgress = silent,
) -> Deployment:
    """Make ``version`` the one that the inference server answers with.

    Args:
        zones: the opened zones.
        settings: say where the server is, or where to start one.
        version: to make live.
        timeout_s: how long the server may take to follow the alias, in seconds.
        on_progress: told of every smoke image.

    Raises:
        InvalidSettings: the server's URL is not one.
        NotFound: there is no such version.
        DeployFailed: the version did not prove itself; the alias is back where it was.
        Conflict: somebody else moved the alias at the same moment.
    """
    _refuse_bad_url(settings.inference_url)
    manifest = registry.read_manifest(zones.models, version.model, version.version)
    questions = smoke_set(zones, manifest)
    moved = _point_alias(zones.models, version)
    server = None
    try:
        server = inference_server.up(settings, version.model)
        with _asking(server) as client:
            _wait_for(client, version.model, version.version, timeout_s)
            _prove(client, questions, manifest, on_progress)
    except (DeployFailed, LocalServiceFailed) as error:
        raise DeployFailed(_undone(zones.models, manifest, server, error, moved=moved)) from error
    deployment = Deployment(model_version=version, url=server.url, smoke_images=len(questions))
    zones.models.put(_proof_key(manifest), deployment.to_json())
    return deployment


def smoke_set(zones: Zones, manifest: ModelManifest, count: int = SMOKE_IMAGES) -> list[Question]:
    """Up to ``count`` test images of all classes, the same ones each time, with the evaluation's predictions.

    Raises:
        Corrupted: the predictions beside the model were altered.
        NotFound: the dataset version is gone.
    """
    table = pq.read_table(io.BytesIO(registry.load_file(zones.models, manifest, PREDICTIONS)))
    rows = table.take(spread(table["label"].to_numpy().tolist(), count)).to_pylist()
    expected: dict[bytes, list[float]] = {row["image_digest"]: row["probabilities"] for row in rows}
    encoded = datasets.encoded_images(zones.images, zones.datasets, manifest.dataset, list(expected))
    return [
        Question(digest.hex(), data, np.asarray(expected[digest]))
        for digest, data in encoded
        if len(data) <= LARGEST_IMAGE
    ]


def spread(labels: Sequence[int], count: int) -> list[int]:
    """Up to ``count`` positions in ``labels``, as evenly over the labels as there are any, ascending.

    Takes the first of every label, then the second, and so on; where there are more labels than ``count``, labels at
    equal distances.
    """
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        positions.setdefault(label, []).append(position)
    classes = sorted(positions)
    if len(classes) > count:
        classes = [classes[number * len(classes) // count] for number in range(count)]
    turns = sorted((turn, label) for label in classes for turn in range(min(count, len(positions[label]))))
    return sorted(positions[label][turn] for turn, label in turns[:count])


def difference(question: Question, answer: Mapping[str, Any], manifest: ModelManifest) -> str | None:
    """What is wrong with the server's answer, as a clause; None if it is what the evaluation said."""
    image = f"test image {question.digest[:12]}"
    if answer["model_version"] != manifest.version:
        return f"{image} was answered by version {answer['model_version']}"
    expected = dict(zip(manifest.classes, question.probabilities.tolist(), strict=True))
    second, first = np.sort(question.probabilities)[-2:]
    best = max(expected, key=lambda label: expected[label])
    if answer["label"] != best and first - second > CLEAR_GAP:
        return f"{image} is {answer['label']!r} to the server and {best!r} to the evaluation"
    for each in answer["top"]:
        wanted = expected.get(each["label"], -1.0)
        if abs(each["probability"] - wanted) > LARGEST_DIFFERENCE:
            return f"{image} is {each['label']!r} with {each['probability']} to the server and {wanted:.6f} before"
    return None


def _refuse_bad_url(url: str | None) -> None:
    try:
        is_one = url is None or (httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host))
    except httpx.InvalidURL:
        is_one = False
    if not is_one:
        raise InvalidSettings(f"{PREFIX}INFERENCE_URL: {url!r} is not the URL of a server, as http://host:8080.")


def _point_alias(models: Store, version: ModelVersion) -> bool:
    """Make the champion alias point at ``version``; whether it pointed elsewhere."""
    found = aliases.read_alias(models, version.model, CHAMPION)
    if found and found[0].version == version.version:
        return False
    etag = found[1] if found else None
    aliases.set_alias(models, version.model, CHAMPION, version.version, reason="deployed", expected=etag)
    return True


@contextmanager
def _asking(server: Server) -> Iterator[httpx.Client]:
    """A client of ``server``; what goes wrong on the way is said with the URL and the place of the log.

    Proxies are never asked on the way to this machine.
    """
    is_here = httpx.URL(server.url).host in ("127.0.0.1", "localhost")
    try:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=not is_here) as client:
            yield client
    except httpx.HTTPError as error:
        raise DeployFailed(f"the server at {server.url} does not answer: {error or type(error).__name__}") from error


def _wait_for(client: httpx.Client, model: str, version: str | None, timeout_s: float) -> None:
    """Return once the server says that ``version`` of ``model`` (None: nothing) is live.

    Raises:
        DeployFailed: it is another server, cannot load the version, or did not follow in time.
    """
    deadline = time.monotonic() + timeout_s
    refused_since: float | None = None
    while True:
        status = _status(client, model)
        if status and status["version"] == version:
            return
        now = time.monotonic()
        refused_since = (refused_since or now) if _refuses(status, version) else None
        if now > deadline or (refused_since and now > refused_since + FAILURE_GRACE_S):
            raise DeployFailed(f"the server at {_url(client)} {_fault(status)}")
        time.sleep(POLL_S)


def _status(client: httpx.Client, model: str) -> dict[str, Any] | None:
    """What the server says of ``model``, at least ``version`` and ``swap_error``; None while it does not answer.

    Raises:
        DeployFailed: it does not serve that model, or is no inference server of ours.
    """
    try:
        answer = client.get(f"/v2/models/{model}")
    except httpx.TransportError:
        return None
    try:
        said = answer.json()
    except ValueError:
        said = None
    if not isinstance(said, dict) or not ({"version", "swap_error"} <= said.keys() or "detail" in said):
        raise DeployFailed(f"what answers at {_url(client)} is not a Safelight inference server")
    if not answer.is_success:
        raise DeployFailed(f"the server at {_url(client)} refuses: {said['detail']}")
    return said


def _refuses(status: Mapping[str, Any] | None, version: str | None) -> bool:
    """Whether the server says that it cannot load ``version``."""
    return bool(status and status["swap_error"] and status["swap_error"]["version"] == version)


def _fault(status: Mapping[str, Any] | None) -> str:
    """Why a server has not followed, as far as it says so."""
    if status is None:
        return "does not answer"
    if status["swap_error"]:
        return f"did not load the version; it says: {status['swap_error']['reason']}"
    return f"did not follow the alias in time; it is at {status['version'] or 'no version'}"


def _prove(
    client: httpx.Client, questions: Sequence[Question], manifest: ModelManifest, on_progress: OnProgress
) -> None:
    """Ask the server every question.

    Raises:
        DeployFailed: an answer is not what the evaluation said.
    """
    if not questions:
        raise DeployFailed("there is no test image to prove it with")
    for number, question in enumerate(questions, 1):
        answer = client.post("/predict", content=question.encoded)
        if not answer.is_success:
            raise DeployFailed(f"test image {question.digest[:12]} was refused: {answer.text[:300]}")
        wrong = difference(question, answer.json(), manifest)
        if wrong:
            raise DeployFailed(wrong)
        on_progress(Progress("asking the server", number, len(questions)))


def _undone(models: Store, manifest: ModelManifest, server: Server | None, error: Exception, *, moved: bool) -> str:
    """Take the version off the alias unless it is known to be good; what happened, as a sentence."""
    failed = f"Version {manifest.version} of model {manifest.model!r} did not go live: {str(error).rstrip('.')}"
    log = f" (log: {server.log})" if server else ""
    if not moved and models.head(_proof_key(manifest)) is not None:
        return f"{failed}{log}; alias {CHAMPION!r} stays, because this version had proven itself before."
    try:
        state = aliases.withdraw(models, manifest.model, CHAMPION, manifest.version, f"deployment failed: {error}")
    except StoreError as lost:
        return f"{failed}{log}; and alias {CHAMPION!r} could not be moved back: {lost}"
    now = state.version if state else None
    taken_back = state is not None and state.history[-1].rolled_back == manifest.version
    where = f"{now or 'nothing'} {'again' if taken_back else 'by now, which somebody else decided'}"
    return f"{failed}{log}; alias {CHAMPION!r} points at {where}{_followed(server, manifest.model, now)}."


def _followed(server: Server | None, model: str, version: str | None) -> str:
    """Wait until the server has the old version again; a clause that says so if it has not."""
    if server is None:
        return ""
    try:
        with _asking(server) as client:
            _wait_for(client, model, version, BACK_TIMEOUT_S)
    except DeployFailed as error:
        return f", but {error}"
    return ", and so does the server"


def _url(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def _proof_key(manifest: ModelManifest) -> str:
    """Beside the model's files."""
    return str(PurePosixPath(manifest.files[PREDICTIONS].key).with_name(PROOF))
