"""``python -m pipeline.flow_worker``: Prefect's process worker, which also brings back runs whose process died.

Prefect's own means, automations, were tried: on SQLite, which refuses one of two writers at once, the server carried
them out up to four times, or minutes late, or not at all. Here a worker does it, by the rules of ``run_watch``:

- what died beside it waits to be started again (``AwaitingRetry``) as soon as its end has been reported;
- every few seconds it asks for runs of the pool that nobody looks after, as after a worker was killed;
- before each start it looks whether the run may start, so that a run that was brought back twice is started once;
- when it is stopped it stops its runs first, and waits for their checkpoints.
"""

import asyncio
import os
import sys
from contextlib import suppress
from uuid import UUID
from weakref import WeakValueDictionary

import anyio.abc
import psutil
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from pipeline import console, run_rescue
from pipeline.prefect_deployments import POOL
from pipeline.run_rescue import AT_ONCE, LATER, LOST_AFTER
from pipeline.run_watch import DIED, Silence

STOP_S = 30.0
"""How long the processes of runs may take to stop, in seconds."""
REPORT_S = 10.0
"""How long what came of them may take to be told to the server, in seconds."""


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
        await run_rescue.work(self._worker, self._look, self._stop_runs)

    async def _stop_runs(self) -> None:
        self._stopping = True
        processes = psutil.Process().children()
        console.say(f"safelight: stopping, and {len(processes)} processes of runs with it …")
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        await asyncio.to_thread(psutil.wait_procs, processes, STOP_S)
        await run_rescue.until_empty(lambda: self._turns, REPORT_S)

    async def _run_in_turn(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """In the place of ``ProcessWorker.run``."""
        turn = self._turns.setdefault(flow_run.id, asyncio.Lock())
        async with turn, get_client() as client:
            if await run_rescue.may_start(client, flow_run, stopping=self._stopping):
                await self._run(flow_run, configuration, task_status)
                await self._bring_back_if_crashed(client, flow_run.id)
            elif task_status is not None:
                task_status.started(os.getpid())
        # How the run ended is said by its state. Prefect would say so again, and mark a run crashed that came back.
        return ProcessWorkerResult(status_code=0, identifier=str(os.getpid()))

    async def _bring_back_if_crashed(self, client: PrefectClient, run: UUID) -> None:
        found = await client.read_flow_run(run)
        if found.state is not None and found.state.type == StateType.CRASHED:
            await run_rescue.bring_back(client, found, DIED, after=LATER if self._stopping else AT_ONCE)

    async def _look(self, client: PrefectClient, silence: Silence) -> None:
        await run_rescue.rescue(client, silence, self._turns, after=LOST_AFTER)


if __name__ == "__main__":
    sys.exit(main())
