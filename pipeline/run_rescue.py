"""What every worker does for runs that died, whatever they run in: look for them, bring them back, start each once.

By the rules of ``run_watch``. Several workers may watch at once: each looks once more before it acts.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.loggers import flow_run_logger
from prefect.states import AwaitingRetry
from prefect.workers.base import BaseWorker

from pipeline import run_watch
from pipeline.prefect_deployments import POOL
from pipeline.run_watch import DIED, HEARTBEAT, MOST_RESCUES, NO_SIGN_OF_LIFE, Silence

LOOK_EVERY_S = 5.0
LATER = timedelta(seconds=15)
"""When a run that came back while a worker stopped is looked at again."""
LOST_AFTER = timedelta(seconds=30)
"""How old a crash is that no worker has seen to."""
FORGOTTEN_AFTER = timedelta(hours=1)
"""How old a crash is that is left as it is."""
UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
AT_ONCE = timedelta(0)

Look = Callable[[PrefectClient, Silence], Awaitable[None]]


async def work(worker: BaseWorker[Any, Any, Any], look: Look, stop: Callable[[], Awaitable[None]]) -> None:
    """Run flows until SIGTERM or Ctrl-C.

    Args:
        worker: Prefect's, not started yet.
        look: what is done every few seconds.
        stop: what is done before the worker ends that was asked to.
    """
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, asked.set)
    started = asyncio.ensure_future(worker.start(with_healthcheck=True))
    others = [asyncio.ensure_future(asked.wait()), asyncio.ensure_future(_watch(look))]
    await asyncio.wait((started, *others), return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        await stop()
    for task in (started, *others):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until_empty(turns: Callable[[], object], seconds: float) -> None:
    """Return once nothing of that is left, or the time is over."""
    until = time.monotonic() + seconds
    while turns() and time.monotonic() < until:  # noqa: ASYNC110 - they end one by one, by themselves
        await asyncio.sleep(0.1)


async def may_start(client: PrefectClient, flow_run: FlowRun, *, stopping: bool) -> bool:
    """Whether a run is to be started here; where it must end instead, or wait, it has that state then."""
    now = (await client.read_flow_run(flow_run.id)).state
    if now is None or now.type not in {StateType.PENDING, StateType.CANCELLING}:
        return False  # another start of it, which this one waited for, brought it further
    states = await client.read_flow_run_states(flow_run.id)
    instead = AwaitingRetry(scheduled_time=datetime.now(UTC) + LATER) if stopping else run_watch.end(states)
    if instead is not None:
        await client.set_flow_run_state(flow_run.id, instead, force=True)
        return False
    if died := run_watch.deaths(states):
        flow_run_logger(flow_run).warning(
            "Its process died: this is start %d of at most %d; it goes on from what is stored.",
            died + 1,
            MOST_RESCUES + 1,
        )
    return True


async def rescue(client: PrefectClient, silence: Silence, tended: Container[UUID], *, after: timedelta) -> None:
    """Bring back what nobody looks after.

    Args:
        client: of the Prefect server.
        silence: what earlier looks heard.
        tended: runs of which something else shows that they live, or that they are seen to.
        after: how old a crash is that nobody else sees to.
    """
    runs = [run for run in await runs_in(client, *UNDER_WAY, StateType.CRASHED) if run.id not in tended and run.state]
    crashed = [run for run in runs if run.state and run.state.type == StateType.CRASHED and _is_lost(run.state, after)]
    alive = {run.id: run for run in runs if run.state and run.state.type in UNDER_WAY}
    beats = await _newest_beats(client, list(alive))
    signs = {run: f"{found.state_id} {beats.get(run)}" for run, found in alive.items()}
    silent = [alive[run] for run in silence.look(signs, time.monotonic())]
    for run, message in [*((run, DIED) for run in crashed), *((run, NO_SIGN_OF_LIFE) for run in silent)]:
        await asyncio.sleep(random.random())  # noqa: S311 - so that of several workers one is first
        await bring_back(client, run, message)


async def bring_back(client: PrefectClient, run: FlowRun, message: str, after: timedelta = AT_ONCE) -> None:
    """Let a run wait to be started again, or end it where it must not be; unless its state is another one by now."""
    states = await client.read_flow_run_states(run.id)
    waiting: State[None] = AwaitingRetry(scheduled_time=datetime.now(UTC) + after, message=message)
    if (await client.read_flow_run(run.id)).state_id == run.state_id:
        flow_run_logger(run).warning("%s", message)
        await client.set_flow_run_state(run.id, run_watch.end([*states, waiting]) or waiting, force=True)


async def runs_in(client: PrefectClient, *types: StateType) -> list[FlowRun]:
    """The pool's runs whose state is of one of these types."""
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )


async def _watch(look: Look) -> None:
    """Look, for ever."""
    silence = Silence()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        # What is away, or refuses, is asked again; the worker's own loop says so in the log.
        with suppress(httpx.TransportError, PrefectHTTPStatusError):
            async with get_client() as client:
                await look(client, silence)


async def _newest_beats(client: PrefectClient, runs: list[UUID]) -> dict[UUID, str]:
    """The newest heartbeat of each run that had any: its event's id."""
    newest = {}
    for run in runs:
        wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run}"]}, "order": "DESC"}
        answer = await client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
        for event in answer.json()["events"]:
            newest[run] = str(event["id"])
    return newest


def _is_lost(crash: State[Any], after: timedelta) -> bool:
    """Whether a crash is one that nobody has seen to, and not an old story."""
    return after < datetime.now(UTC) - crash.timestamp < FORGOTTEN_AFTER
