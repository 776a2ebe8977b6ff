"""A deployment for each flow: which queue its runs wait in, and which form starts one.

- **Going live, and back, never waits for training**: the flows that compute for long have a queue of their own, of
  which a few run at once; everything else starts at once.
- Flows are found by their module, which is installed where they run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.types.entrypoint import EntrypointType

from pipeline.prefect_forms import form

POOL = "safelight"
TAG = "safelight"


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of the work pool.

    Attributes:
        limit: runs at once; None: no limit.
        priority: 1 is looked at first.
    """

    name: str
    description: str
    limit: int | None
    priority: int


LIVE = Queue("live", "Everything that is quick: it never waits for training.", None, 1)
TRAINING = Queue("training", "Flows that compute for long: two at once, the others wait.", 2, 2)
QUEUES = (LIVE, TRAINING)
LONG = frozenset({"pipeline", "train", "predict"})
"""Flows whose runs wait in the queue for training."""


def queue_of(flow: str) -> Queue:
    """The queue of a flow's runs, by the flow's name."""
    return TRAINING if flow in LONG else LIVE


async def deployment(
    flow: Flow[..., Any], *, served: bool = False, resources: Mapping[str, Any] | None = None
) -> RunnerDeployment:
    """A flow's deployment, named as the flow: for the work pool, or for a process of one's own that serves it.

    Args:
        flow: one of ours.
        served: by a process of one's own.
        resources: what its runs ask of the work pool that others do not: values of the pool's form.
    """
    made = await flow.ato_deployment(
        name=flow.name,
        tags=[TAG],
        entrypoint_type=EntrypointType.MODULE_PATH,
        work_pool_name=None if served else POOL,
        work_queue_name=None if served else queue_of(flow.name).name,
        job_variables=dict(resources or {}),
    )
    made._parameter_openapi_schema = form(flow)  # noqa: SLF001 - Prefect offers no other way
    return made
