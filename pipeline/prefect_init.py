"""``python -m pipeline.prefect_init``: what the Prefect server must know before a worker or a person can use it.

Work pool, queues, a deployment for each flow. Each is looked for first, and made or brought up to date:
run again, nothing doubles, and what changed in the code reaches the server. What people made there stays.
"""

import asyncio
import os
import sys
import time

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.workers.process import ProcessWorker

from pipeline import console, flows, prefect_deployments
from pipeline.errors import PrefectUnavailable
from pipeline.prefect_api import api_url
from pipeline.prefect_deployments import POOL, QUEUES, Queue

POOL_DESCRIPTION = "Runs flows as processes of the worker, which has Safelight installed."
WAIT_S = 120.0
"""How long the server may take to answer."""


def main() -> int:
    """Set the server up that ``PREFECT_API_URL`` names; the status to exit with."""
    try:
        asyncio.run(register(api_url(os.environ)))
    except Exception as error:  # noqa: BLE001 - exit_status raises what is no fault of the surroundings
        return console.exit_status(error)
    return 0


async def register(url: str, *, wait_s: float = WAIT_S) -> None:
    """Wait for the server, and tell it of everything.

    Args:
        url: of its API, for people.
        wait_s: how long it may take to answer, in seconds.

    Raises:
        PrefectUnavailable: it did not answer in time, or refuses the credentials.
    """
    await _wait(url, wait_s)
    try:
        async with get_client() as client:
            await _apply(client)
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


async def _apply(client: PrefectClient) -> None:
    await _apply_pool(client)
    for queue in QUEUES:
        await _apply_queue(client, queue)
    for flow in flows.FLOWS:
        found = await prefect_deployments.deployment(flow)
        await found.aapply()
        console.say(f"safelight: deployment {flow.name}, queue {found.work_queue_name}")


async def _apply_pool(client: PrefectClient) -> None:
    template = ProcessWorker.get_default_base_job_template()
    try:
        await client.create_work_pool(
            WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template, description=POOL_DESCRIPTION)
        )
    except ObjectAlreadyExists:  # by a worker that was first, say
        await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template, description=POOL_DESCRIPTION))


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
