"""``python -m pipeline.prefect_init``: what the Prefect server must know before a worker or a person can use it.

Work pool, queues, a deployment for each flow. Each is looked for first, and made or brought up to date:
run again, nothing doubles, and what changed in the code reaches the server. What people made there stays.

``SAFELIGHT_WORK_POOL`` says what flow runs are: processes of a worker, or Jobs on Kubernetes (``run_jobs``). What Jobs
ask of the cluster is a form with defaults; files of ``SAFELIGHT_FLOW_RESOURCES`` say where a flow differs.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.schema_tools import ValidationError, validate
from prefect.workers.process import ProcessWorker

from pipeline import console, flows, prefect_deployments, run_jobs
from pipeline.errors import InvalidSettings, PrefectUnavailable
from pipeline.prefect_api import api_url
from pipeline.prefect_deployments import POOL, QUEUES, Queue
from pipeline.settings import Settings

DESCRIPTIONS = {
    "process": "Runs flows as processes of the worker, which has Safelight installed.",
    "kubernetes": "Runs each flow as a Kubernetes Job with resources of its own.",
}
OWN_SETTINGS = ("SAFELIGHT_WORK_POOL", "SAFELIGHT_FLOW_RESOURCES")
WAIT_S = 120.0
"""How long the server may take to answer."""


def main() -> int:
    """Set the server up that ``PREFECT_API_URL`` names; the status to exit with."""
    try:
        # Nothing else concerns it: it need not have the files that other settings name.
        own = {name: value for name, value in os.environ.items() if name in OWN_SETTINGS}
        asyncio.run(register(api_url(os.environ), Settings.from_environ(own)))
    except Exception as error:  # noqa: BLE001 - exit_status raises what is no fault of the surroundings
        return console.exit_status(error)
    return 0


async def register(url: str, settings: Settings, *, wait_s: float = WAIT_S) -> None:
    """Wait for the server, and tell it of everything.

    Args:
        url: of its API, for people.
        settings: what flow runs are, and what they ask for.
        wait_s: how long it may take to answer, in seconds.

    Raises:
        InvalidSettings: a flow's resources are none, or the server's work pool is of another kind.
        PrefectUnavailable: it did not answer in time, or refuses the credentials.
    """
    template = template_of(settings)
    resources = resources_of(settings, template)
    await _wait(url, wait_s)
    try:
        async with get_client() as client:
            await _apply_pool(client, settings.work_pool, template)
            await _apply_queues_and_deployments(client, resources)
    except PrefectHTTPStatusError as error:
        raise PrefectUnavailable(f"The Prefect server at {url} refuses: {_reason(error)}.") from error
    except httpx.TransportError as error:
        raise PrefectUnavailable(f"The Prefect server at {url} went away: run this again.") from error


async def _wait(url: str, wait_s: float) -> None:
    """Return once the server answers; its health needs no credentials."""
    deadline = time.monotonic() + wait_s
    async with httpx.AsyncClient(timeout=5) as client:
        while True:
            try:
                if (await client.get(f"{url}/health")).is_success:
                    return
                fault = "does not answer as a Prefect server"
            except (httpx.TransportError, httpx.InvalidURL) as error:
                fault = f"does not answer ({error or type(error).__name__})"
            if time.monotonic() > deadline:
                raise PrefectUnavailable(
                    f"The Prefect server at {url} {fault}, after {wait_s:.0f} s: look into its log, and at the URL."
                )
            await asyncio.sleep(0.5)


def template_of(settings: Settings) -> dict[str, Any]:
    """The base job template of the work pool."""
    if settings.work_pool == "kubernetes":
        return run_jobs.base_job_template()
    return ProcessWorker.get_default_base_job_template()


def resources_of(settings: Settings, template: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What runs of each flow ask for that others do not, by the flow's name.

    Raises:
        InvalidSettings: there is no such folder, or a file is of no flow, or the work pool's form does not allow it.
    """
    if settings.flow_resources is None:
        return {}
    if not settings.flow_resources.is_dir():
        raise InvalidSettings(f"SAFELIGHT_FLOW_RESOURCES: {settings.flow_resources} is no folder.")
    paths = sorted(settings.flow_resources.glob("*.json"))
    return {path.stem: _form_values(path, template["variables"]) for path in paths}


def _form_values(path: Path, form: Mapping[str, Any]) -> dict[str, Any]:
    if path.stem not in {flow.name for flow in flows.FLOWS}:
        known = ", ".join(sorted(flow.name for flow in flows.FLOWS))
        raise InvalidSettings(f"{path.name} is of no flow: there are {known}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        validate(values, dict(form), raise_on_error=True, preprocess=False, ignore_required=True)
    except (ValueError, ValidationError) as error:
        raise InvalidSettings(f"{path.name} is not what the form of the work pool allows: {error}.") from error
    found: dict[str, Any] = values
    return found


async def _apply_queues_and_deployments(client: PrefectClient, resources: Mapping[str, Mapping[str, Any]]) -> None:
    for queue in QUEUES:
        await _apply_queue(client, queue)
    for flow in flows.FLOWS:
        found = await prefect_deployments.deployment(flow, resources=resources.get(flow.name))
        await found.aapply()
        console.say(f"safelight: deployment {flow.name}, queue {found.work_queue_name}")


async def _apply_pool(client: PrefectClient, kind: str, template: dict[str, Any]) -> None:
    about = DESCRIPTIONS[kind]
    try:
        await client.create_work_pool(
            WorkPoolCreate(name=POOL, type=kind, base_job_template=template, description=about)
        )
    except ObjectAlreadyExists:  # by a worker that was first, say
        found = (await client.read_work_pool(POOL)).type
        if found != kind:
            raise InvalidSettings(
                f"SAFELIGHT_WORK_POOL is {kind}, but the work pool {POOL} of this Prefect server is of type {found}, "
                "which cannot be changed: delete it in the UI, and run this again."
            ) from None
        await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template, description=about))


async def _apply_queue(client: PrefectClient, queue: Queue) -> None:
    try:
        found = await client.read_work_queue_by_name(queue.name, POOL)
    except ObjectNotFound:
        found = await client.create_work_queue(queue.name, work_pool_name=POOL)
    wanted = {"description": queue.description, "concurrency_limit": queue.limit, "priority": queue.priority}
    changed = {name: value for name, value in wanted.items() if getattr(found, name) != value}
    if changed:
        await client.update_work_queue(found.id, **changed)


def _reason(error: PrefectHTTPStatusError) -> str:
    if error.response.status_code in {401, 403}:
        return "the credentials in PREFECT_API_AUTH_STRING are not its own"
    return f"{error.response.status_code} {error.response.text[:200]}"


if __name__ == "__main__":
    sys.exit(main())
