"""``python -m pipeline.flow_worker``: Prefect's process worker, which also brings back runs whose process died.

Prefect's own means, automations, were tried: on SQLite, which refuses one of two writers at once, the server carried
them out up to four times, or minutes late, or not at all. Here a worker does it, by the rules of ``run_watch``:

- what died beside it waits to be started again (``AwaitingRetry``) as soon as its end has been reported;
- every few seconds it asks for runs of the pool that nobody looks after, as after a worker was killed;
- before each start it looks whether the run may start, so that a run that was brought back twice is started once;
- when it is stopped it stops its runs first, and waits for their checkpoints.

Several workers may watch at once: each looks once more before it acts.
"""

import asyncio
import os
import random
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID
from weakref import WeakValueDictionary

import anyio.abc
import httpx
import psutil
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
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from pipeline import console, run_watch
from pipeline.prefect_deployments import POOL
from pipeline.run_watch import DIED, HEARTBEAT, MOST_RESCUES, NO_SIGN_OF_LIFE, Silence

LOOK_EVERY_S = 5.0
STOP_S = 30.0
"""How long the processes of runs may take to stop, in seconds."""
REPORT_S = 10.0
"""How long what came of them may take to be told to the server, in seconds."""
LATER = timedelta(seconds=15)
"""When a run that came back while this worker stopped is looked at again."""
LOST_AFTER = timedelta(seconds=30)
"""How old a crash is that no worker has seen to."""
FORGOTTEN_AFTER = timedelta(hours=1)
"""How old a crash is that is left as it is."""
UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def main() -> int:
    """Run flows of the pool until stopped; the status to exit with."""
    asyncio.run(FlowWorker(os.environ.get("HOSTNAME") or None).work())
    console.say("safelight: the worker stopped.")
    return 0


class FlowWorker:
    """Prefect's process worker for the pool, named so in the UI, and what it does for runs that died."""

    def __init__(self, name: str | None) -> None:
        self._worker = ProcessWorker(work_pool_name=POOL, name=name)
        self._run = self._worker.run
        # A subclass would take the place of Prefect's own type.
        self._worker.run = self._run_in_turn  # type: ignore[method-assign]
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._stopping = False

    async def work(self) -> None:
        """Run flows until SIGTERM or Ctrl-C."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, asked.set)
        started = asyncio.ensure_future(self._worker.start(with_healthcheck=True))
        others = [asyncio.ensure_future(asked.wait()), asyncio.ensure_future(self._watch())]
        await asyncio.wait((started, *others), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await self._stop_runs()
        for task in (started, *others):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _stop_runs(self) -> None:
        self._stopping = True
        processes = psutil.Process().children()
        console.say(f"safelight: stopping, and {len(processes)} processes of runs with it …")
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        await asyncio.to_thread(psutil.wait_procs, processes, STOP_S)
        until = time.monotonic() + REPORT_S
        while self._turns and time.monotonic() < until:  # noqa: ASYNC110 - they end one by one, by themselves
            await asyncio.sleep(0.1)

    async def _run_in_turn(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """In the place of ``ProcessWorker.run``."""
        turn = self._turns.setdefault(flow_run.id, asyncio.Lock())
        async with turn, get_client() as client:
            if await self._may_start(client, flow_run):
                await self._run(flow_run, configuration, task_status)
                await self._bring_back_if_crashed(client, flow_run.id)
            elif task_status is not None:
                task_status.started(os.getpid())
        # How the run ended is said by its state. Prefect would say so again, and mark a run crashed that came back.
        return ProcessWorkerResult(status_code=0, identifier=str(os.getpid()))

    async def _may_start(self, client: PrefectClient, flow_run: FlowRun) -> bool:
        """Whether a run is to be started here; where it must end instead, or wait, it has that state then."""
        now = (await client.read_flow_run(flow_run.id)).state
        if now is None or now.type not in {StateType.PENDING, StateType.CANCELLING}:
            return False  # another start of it, which this one waited for, brought it further
        states = await client.read_flow_run_states(flow_run.id)
        instead = AwaitingRetry(scheduled_time=datetime.now(UTC) + LATER) if self._stopping else run_watch.end(states)
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

    async def _bring_back_if_crashed(self, client: PrefectClient, run: UUID) -> None:
        found = await client.read_flow_run(run)
        if found.state is not None and found.state.type == StateType.CRASHED:
            await _bring_back(client, found, DIED, after=LATER if self._stopping else timedelta(0))

    async def _watch(self) -> None:
        """Bring back, for ever, what nobody looks after."""
        silence = Silence()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            # What is away, or refuses, is asked again; the worker's own loop says so in the log.
            with suppress(httpx.TransportError, PrefectHTTPStatusError):
                async with get_client() as client:
                    await self._look(client, silence)

    async def _look(self, client: PrefectClient, silence: Silence) -> None:
        runs = [run for run in await _runs(client) if run.id not in self._turns and run.state]
        crashed = [run for run in runs if run.state and run.state.type == StateType.CRASHED and _is_lost(run.state)]
        alive = {run.id: run for run in runs if run.state and run.state.type in UNDER_WAY}
        beats = await _newest_beats(client, list(alive))
        signs = {run: f"{found.state_id} {beats.get(run)}" for run, found in alive.items()}
        silent = [alive[run] for run in silence.look(signs, time.monotonic())]
        for run, message in [*((run, DIED) for run in crashed), *((run, NO_SIGN_OF_LIFE) for run in silent)]:
            await asyncio.sleep(random.random())  # noqa: S311 - so that of several workers one is first
            await _bring_back(client, run, message)


async def _runs(client: PrefectClient) -> list[FlowRun]:
    """The pool's runs that are under way, or crashed."""
    types = FlowRunFilterStateType(any_=[*UNDER_WAY, StateType.CRASHED])
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=types)),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )


async def _newest_beats(client: PrefectClient, runs: list[UUID]) -> dict[UUID, str]:
    """The newest heartbeat of each run that had any: its event's id."""
    newest = {}
    for run in runs:
        wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run}"]}, "order": "DESC"}
        answer = await client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
        for event in answer.json()["events"]:
            newest[run] = str(event["id"])
    return newest


def _is_lost(crash: State[object]) -> bool:
    """Whether a crash is one that no worker has seen to, and not an old story."""
    return LOST_AFTER < datetime.now(UTC) - crash.timestamp < FORGOTTEN_AFTER


async def _bring_back(client: PrefectClient, run: FlowRun, message: str, after: timedelta = timedelta(0)) -> None:
    """Let a run wait to be started again, or end it where it must not be; unless its state is another one by now."""
    states = await client.read_flow_run_states(run.id)
    waiting: State[None] = AwaitingRetry(scheduled_time=datetime.now(UTC) + after, message=message)
    if (await client.read_flow_run(run.id)).state_id == run.state_id:
        flow_run_logger(run).warning("%s", message)
        await client.set_flow_run_state(run.id, run_watch.end([*states, waiting]) or waiting, force=True)


if __name__ == "__main__":
    sys.exit(main())
