"""Which flow runs died: decided purely from what the Prefect server says of them.

A worker that is killed says nothing, and Prefect shows its runs as running for ever; a run whose process dies beside a
living worker is marked crashed, and Prefect leaves it so. Workers bring such runs back (``flow_worker``), by rules:

- **Silence is measured by the watcher's own clock, while it can hear.** A run is silent when neither its state nor its
  newest heartbeat changed for ``SILENT_S`` during which the server was asked every few seconds. Time in which the
  server did not answer, or the watcher slept, does not count: nobody could be heard then.
- **A run comes back ``MOST_RESCUES`` times**, counted in the history of its states, and then fails with a sentence.
- A run that a person cancelled ends as cancelled. A failed run is left alone: that was its own decision.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Failed

BEAT_S = 10.0
"""Between two heartbeats of a run; Prefect's own come every 30 s at most."""
SILENT_S = 45.0
"""Four heartbeats, and a half for their way: the server keeps them every few seconds."""
HEARTBEAT = "prefect.flow-run.heartbeat"
GAP_S = 20.0
"""Between two looks; after a longer gap the silence of all runs is measured anew."""
MOST_RESCUES = 3
"""How often a run whose process died is started again."""
NO_SIGN_OF_LIFE = f"No sign of life for {SILENT_S:.0f} s: its process, or its machine, died."
DIED = "Its process died; started again, it goes on from what is stored."
STOPPED = ("termination signal", "cancelled by the runtime environment")
"""What the state of a run says that was stopped with its worker: that is nobody's fault, and not counted."""
ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED)
TAKEN = (StateType.PENDING, StateType.RUNNING)


class Silence:
    """How long each run has shown no sign of life."""

    def __init__(self) -> None:
        self._seen: dict[UUID, tuple[str, float]] = {}
        self._looked = float("-inf")

    def look(self, signs: Mapping[UUID, str], now: float) -> list[UUID]:
        """The runs that are silent.

        Args:
            signs: what was heard last of each run that should be alive; it changes with each sign of life.
            now: monotonic seconds.
        """
        before = {} if now - self._looked > GAP_S else self._seen
        self._looked = now
        self._seen = {}
        for run, sign in signs.items():
            last, since = before.get(run, (sign, now))
            self._seen[run] = (sign, since if sign == last else now)
        return [run for run, (_, since) in self._seen.items() if now - since >= SILENT_S]


def deaths(states: Sequence[State[Any]]) -> int:
    """How often a run's process died since a person started it, given all states that the run had.

    A death may be said more than once; it counts where the run was taken by a worker since the last one.
    """
    count, taken = 0, False
    for state in _in_order(states):
        if state.type in ENDED:
            count = 0
        elif state.type in TAKEN:
            taken = True
        elif taken and _is_death(state):
            count, taken = count + 1, False
    return count


def is_cancelled(states: Sequence[State[Any]]) -> bool:
    """Whether a person wanted the run to be cancelled, and nothing has ended it since."""
    deciding = [state.type for state in _in_order(states) if state.type in (*ENDED, StateType.CANCELLING)]
    return deciding[-1:] == [StateType.CANCELLING]


def end(states: Sequence[State[Any]]) -> State[Any] | None:
    """The state in which a run ends that must not be started (again), given all that it had; None: start it."""
    if is_cancelled(states):
        return Cancelled(message="It was cancelled, and its process died before that was done.")
    died = deaths(states)
    if died <= MOST_RESCUES:
        return None
    return Failed(
        message=f"The process of this run died {died} times, so it is not started again: look for the cause in its log "
        "and in the worker's (memory, say), then run it anew, and it goes on from what is stored."
    )


def _in_order(states: Sequence[State[Any]]) -> list[State[Any]]:
    return sorted(states, key=lambda state: state.timestamp)


def _is_death(state: State[Any]) -> bool:
    message = state.message or ""
    if state.type == StateType.CRASHED:
        return not any(said in message for said in STOPPED)
    return state.type == StateType.SCHEDULED and message == NO_SIGN_OF_LIFE
