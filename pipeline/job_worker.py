"""``python -m pipeline.job_worker``: Prefect's Kubernetes worker, which also brings back runs whose pod died.

Prefect's worker makes a Job for each run, and its observer marks a run crashed whose Job failed; there Prefect leaves
it. What is added is what ``flow_worker`` adds to processes, by the same rules (``run_watch``), and:

- **Of one run there is one Job.** Before one is made, those that the run had are deleted: after a node was lost for a
  while, an attempt that was given up must not wake up beside its successor. Where it does, the training run's lease
  keeps the two apart.
- **The cluster's word counts before silence does**: a run whose pod waits (for a GPU, for its image) or works is alive,
  however quiet. What is quiet has no Job, or a Job whose pod ended or whose node is gone.
- **A run that is cancelled while its pod waits loses its Job.** A pod that works hears of it by itself, and leaves a
  checkpoint; Prefect's worker sees to the others only while it makes their Job.
- **A run that has ended leaves no Job at work** for longer than a pod takes to stop.
- A worker that ends leaves its Jobs alone; the next one goes on where it was.

Everything happens in the worker's own namespace, where its Role is.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import aiohttp
import anyio.abc
from kubernetes_asyncio import config
from kubernetes_asyncio.client import ApiClient, BatchV1Api, CoreV1Api
from kubernetes_asyncio.client.exceptions import ApiException
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled
from prefect_kubernetes.settings import KubernetesSettings
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration, KubernetesWorkerResult

from pipeline import console, run_jobs, run_rescue
from pipeline.errors import InvalidSettings
from pipeline.prefect_deployments import POOL
from pipeline.run_jobs import RUN_LABEL, Place, RunJob
from pipeline.run_rescue import AT_ONCE
from pipeline.run_watch import ENDED, Silence

SUBMITTED_S = 15.0
"""How long a Job that is being made may take until a worker that ends waits no more, in seconds."""
STOPPED_AFTER = timedelta(seconds=90)
"""How long a pod may be at work after its run ended, or was cancelled: the template gives it 60 s to stop."""
CONTAINER = "prefect-worker"
NAMESPACES = "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"


def main() -> int:
    """Run flows of the pool until stopped; the status to exit with."""
    try:
        asyncio.run(_work(os.environ.get("HOSTNAME") or None))
    except Exception as error:  # noqa: BLE001 - exit_status raises what is no fault of the surroundings
        return console.exit_status(error)
    console.say("safelight: the worker stopped.")
    return 0


async def _work(name: str | None) -> None:
    place = await place_of(name)
    console.say(f"safelight: flow runs are Jobs in namespace {place.namespace}, of image {place.image or 'their own'}.")
    await JobWorker(name, place).work()


class JobWorker:
    """Prefect's Kubernetes worker for the pool, named so in the UI, and what it does for runs that died."""

    def __init__(self, name: str | None, place: Place) -> None:
        # It must not make a pool of its own: that one would have Prefect's template.
        self._worker = KubernetesWorker(work_pool_name=POOL, name=name, create_pool_if_not_found=False)
        self._run = self._worker.run
        # A subclass would take the place of Prefect's own type.
        self._worker.run = self._run_once
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._place = place
        self._stopping = False
        self._said = ""

    async def work(self) -> None:
        """Run flows until SIGTERM or Ctrl-C."""
        await run_rescue.work(self._worker, self._look, self._stop)

    async def _stop(self) -> None:
        self._stopping = True
        await run_rescue.until_empty(lambda: self._turns, SUBMITTED_S)

    async def _run_once(
        self,
        flow_run: FlowRun,
        configuration: KubernetesWorkerJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> KubernetesWorkerResult:
        """In the place of ``KubernetesWorker.run``."""
        turn = self._turns.setdefault(flow_run.id, asyncio.Lock())
        async with turn, get_client() as client:
            if await run_rescue.may_start(client, flow_run, stopping=self._stopping):
                await self._delete(job.name for job in await self._jobs(flow_run.id))
                configuration.namespace = self._place.namespace
                configuration.job_manifest = run_jobs.completed(configuration.job_manifest, self._place)
                return await self._run(flow_run, configuration, task_status)
        if task_status is not None:
            task_status.started(0)  # nothing was: by that Prefect knows it
        return KubernetesWorkerResult(identifier="", status_code=0)

    async def _look(self, client: PrefectClient, silence: Silence) -> None:
        try:
            jobs = await self._jobs()
            alive = {job.run for job in jobs if job.alive}
            await self._delete(await _cancelled(client, jobs))
            await run_rescue.rescue(client, silence, {*alive, *self._turns}, after=AT_ONCE)
            await self._delete(await _left_over(client, [job for job in jobs if not job.ended]))
            self._said = ""
        except (ApiException, aiohttp.ClientError, TimeoutError) as error:  # nobody is judged meanwhile
            self._say(f"safelight: the cluster does not answer, and is asked again: {_reason(error)}.")

    def _say(self, fault: str) -> None:
        """Say once what goes wrong every few seconds."""
        if fault != self._said:
            console.say(fault)
        self._said = fault

    async def _jobs(self, run: UUID | None = None) -> list[RunJob]:
        """The Jobs of a run, or of all runs."""
        wanted = RUN_LABEL if run is None else f"{RUN_LABEL}={run}"
        async with _api() as api:
            jobs = await BatchV1Api(api).list_namespaced_job(self._place.namespace, label_selector=wanted)
            pods = await CoreV1Api(api).list_namespaced_pod(self._place.namespace, label_selector=wanted)
            return run_jobs.run_jobs(_written(api, jobs), _written(api, pods))

    async def _delete(self, names: Iterable[str]) -> None:
        async with _api() as api:
            for name in names:
                try:
                    await BatchV1Api(api).delete_namespaced_job(
                        name, self._place.namespace, propagation_policy="Background"
                    )
                except ApiException as error:
                    if error.status != HTTPStatus.NOT_FOUND:  # as where it was deleted meanwhile
                        raise


async def place_of(name: str | None) -> Place:
    """Where this process is; ``name`` is its pod's, if it is one.

    Raises:
        InvalidSettings: no namespace is named, or more than one; or the cluster refuses to be asked.
    """
    namespaces = sorted(KubernetesSettings().observer.namespaces or ())
    if len(namespaces) != 1:
        raise InvalidSettings(f"{NAMESPACES} must name one namespace: the one that this worker makes Jobs in.")
    (namespace,) = namespaces
    try:
        async with _api() as api:
            pods = await CoreV1Api(api).list_namespaced_pod(namespace, field_selector=f"metadata.name={name or ''}")
    except (ApiException, aiohttp.ClientError, config.ConfigException) as error:
        raise InvalidSettings(
            f"The cluster does not let this worker see the pods of namespace {namespace}: {_reason(error)}."
        ) from error
    images = [own.image for pod in pods.items for own in pod.spec.containers if own.name == CONTAINER]
    return Place(namespace, images[0] if images else None)


async def _cancelled(client: PrefectClient, jobs: list[RunJob]) -> list[str]:
    """End runs that were cancelled, and have no pod that hears of it; their Jobs."""
    hearing = {job.run for job in jobs if job.alive and job.begun}
    before = datetime.now(UTC) - STOPPED_AFTER
    runs = await run_rescue.runs_in(client, StateType.CANCELLING)
    deaf = {run.id for run in runs if run.id not in hearing or (run.state and run.state.timestamp < before)}
    for run in deaf:
        await client.set_flow_run_state(run, Cancelled(message="It was cancelled, and had no pod that heard of it."))
    return [job.name for job in jobs if job.run in deaf]


async def _left_over(client: PrefectClient, at_work: list[RunJob]) -> list[str]:
    """Which Jobs are still at work though their runs have ended."""
    if not at_work:
        return []
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[job.run for job in at_work]))
    states = {run.id: run.state for run in await client.read_flow_runs(flow_run_filter=wanted) if run.state}
    before = datetime.now(UTC) - STOPPED_AFTER
    ended = {run for run, state in states.items() if state.type in ENDED and state.timestamp < before}
    return [job.name for job in at_work if job.run in ended]


@asynccontextmanager
async def _api() -> AsyncIterator[ApiClient]:
    """The cluster's API: as the pod's ServiceAccount, or as the kubeconfig says."""
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
        client = ApiClient()
    except config.ConfigException:
        client = await config.new_client_from_config()
    async with client:
        yield client


def _reason(error: Exception) -> str:
    """What was wrong, in a few words."""
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return f"{type(error).__name__} {error}".strip()


def _written(api: ApiClient, found: Any) -> list[dict[str, Any]]:
    """A list's objects as the API writes them."""
    items: list[dict[str, Any]] = api.sanitize_for_serialization(found)["items"]
    return items


if __name__ == "__main__":
    sys.exit(main())
