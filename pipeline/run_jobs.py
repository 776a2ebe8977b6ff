"""The Kubernetes Job of a flow run: its template, what its worker adds, and whether it still does anything.

The template is Prefect's base job template (``templates/base-job-template.json``): a manifest with places, and the form
whose values fill them. Prefect fills them; what only the worker that sends the Job can know is added here.

- **A Job has the image of the worker that sends it**, unless somebody chose another one: after an upgrade both are new.
- **Nothing secret is in it.** Prefect hands all of its worker's settings on, the password for its server among them;
  the pod reads that one from its mounted Secret.
- **A strict API server takes it.** Prefect insists on two fields in the pod that belong to the Job.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from pipeline.errors import InvalidSettings

TEMPLATE = Path(__file__).parent / "templates" / "base-job-template.json"
RUN_LABEL = "prefect.io/flow-run-id"
IMAGE_OF_THE_WORKER = "worker"
SECRETS = frozenset({"PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"})
MISPLACED = ("parallelism", "completions")

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is.

    Attributes:
        namespace: its own, in which alone it may do anything.
        image: of its own container; None where it is no pod.
    """

    namespace: str
    image: str | None


@dataclass(frozen=True, slots=True)
class RunJob:
    """A Job as the cluster has it.

    Attributes:
        run: of Prefect.
        ended: it completed or failed.
        alive: it has a pod that waits or works, or will have one.
        begun: a pod of it works, or has worked.
    """

    name: str
    run: UUID
    ended: bool
    alive: bool
    begun: bool


def base_job_template() -> dict[str, Any]:
    """What the work pool on the Prefect server must know."""
    found: dict[str, Any] = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    return found


def completed(manifest: Manifest, place: Place) -> Manifest:
    """The manifest that Prefect made, as it is sent.

    Raises:
        InvalidSettings: it is to have the worker's image, and the worker is no pod.
    """
    pod = manifest["spec"]["template"]["spec"]
    container, *beside = pod["containers"]  # Prefect fills the first; a person's own template may have others
    wanted = container["image"]
    image = place.image if wanted == IMAGE_OF_THE_WORKER else wanted
    if image is None:
        raise InvalidSettings(
            f"The Jobs of flow runs have the image of their worker, but this worker is no pod of namespace "
            f"{place.namespace}: set the image in the work pool or in the deployment."
        )
    own = [each for each in container.get("env", []) if each["name"] not in SECRETS]
    kept = {name: value for name, value in pod.items() if name not in MISPLACED}
    spec = {**kept, "containers": [{**container, "image": image, "env": own}, *beside]}
    return {
        **manifest,
        "metadata": {**manifest["metadata"], "namespace": place.namespace},
        "spec": {**manifest["spec"], "template": {**manifest["spec"]["template"], "spec": spec}},
    }


def run_jobs(jobs: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> list[RunJob]:
    """What Jobs of flow runs there are, given Jobs and pods as the API writes them."""
    of_job: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        for owner in pod["metadata"].get("ownerReferences") or []:
            of_job.setdefault(owner["uid"], []).append(pod)
    found = []
    for job in jobs:
        metadata, own = job["metadata"], of_job.get(job["metadata"]["uid"], [])
        ended = any(_is_true(job, kind) for kind in ("Complete", "Failed"))
        alive = not ended and (not own or any(map(_lives, own)))
        begun = ended or any(_phase(pod) != "Pending" for pod in own)
        found.append(RunJob(metadata["name"], UUID(metadata["labels"][RUN_LABEL]), ended, alive, begun))
    return found


def _lives(pod: Mapping[str, Any]) -> bool:
    """Whether a pod waits or works; that of a node which is gone is said to run for ever, but not to be ready."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    unready = any(each["type"] == "Ready" and each["status"] != "True" for each in conditions)
    return _phase(pod) == "Pending" or (_phase(pod) == "Running" and not unready)


def _phase(pod: Mapping[str, Any]) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def _is_true(job: Mapping[str, Any], kind: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)
