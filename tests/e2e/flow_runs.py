"""Flow runs as a person sees them: started by Run, looked at, cancelled; over the Prefect server's own API."""

import re
import time
from dataclasses import dataclass
from typing import Any

import httpx

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
BUSY_S = 10.0
LATE_S = 15.0
"""How much later than its end the last lines of a run may come."""
AWAY_S = 60.0
"""How long the server may be away, where a test has killed it."""


@dataclass(frozen=True)
class FlowRuns:
    """The runs of one Prefect server.

    Attributes:
        url: of the server.
        login: user and password.
    """

    url: str
    login: tuple[str, str]

    def api(self, method: str, path: str, body: Any = None, *, patience_s: float = 0) -> Any:
        """The JSON that the server answers; asked again for ``patience_s`` seconds while it is away.

        As Prefect's own client does, also where SQLite refuses one of two writers at once (503).
        """
        deadline = time.monotonic() + max(patience_s, BUSY_S)
        while True:
            try:
                answer = httpx.request(method, f"{self.url}/api/{path}", json=body, auth=self.login, timeout=30)
                if answer.is_success:
                    return answer.json() if answer.content else None
                fault = f"{answer.status_code} {answer.text}"
                again = patience_s > 0 or answer.status_code == 503
            except httpx.TransportError as error:
                fault, again = repr(error), patience_s > 0
            assert again, f"{method} {path}: {fault}"
            assert time.monotonic() < deadline, f"{method} {path}: {fault}"
            time.sleep(0.5)

    def start(self, flow: str, **parameters: Any) -> str:
        """Start a run of a deployment, as its Run button does; the run's id."""
        deployment = self.api("GET", f"deployments/name/{flow}/{flow}", patience_s=AWAY_S)
        body = {"parameters": parameters, "state": {"type": "SCHEDULED", "name": "Scheduled"}}
        return str(self.api("POST", f"deployments/{deployment['id']}/create_flow_run", body)["id"])

    def cancel(self, run: str) -> None:
        """What the UI's Cancel button does."""
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        self.api("POST", f"flow_runs/{run}/set_state", body)

    def cancel_all(self) -> None:
        """Cancel what runs or waits."""
        wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}}, "limit": 200}
        for run in self.api("POST", "flow_runs/filter", wanted):
            self.cancel(run["id"])

    def of(self, flow: str) -> list[str]:
        """The ids of all runs of a flow."""
        found = self.api("POST", "flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "limit": 200})
        return [each["id"] for each in found]

    def look(self, run: str) -> dict[str, Any]:
        """All that the server knows of a run."""
        found: dict[str, Any] = self.api("GET", f"flow_runs/{run}", patience_s=AWAY_S)
        return found

    def state(self, run: str) -> dict[str, Any]:
        """A run's state: type, name and message."""
        found: dict[str, Any] = self.look(run)["state"]
        return found

    def begun(self, run: str, timeout_s: float = 60) -> float:
        """Wait until a run is Running; the moment (monotonic clock) at which that was seen."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(run))["type"] in {"SCHEDULED", "PENDING"}:
            assert time.monotonic() < deadline, f"run {run} is still {state['name']}"
            time.sleep(0.05)
        return time.monotonic()

    def finished(self, run: str, timeout_s: float = 180) -> dict[str, Any]:
        """The state in which a run ends."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(run))["type"] not in FINAL:
            assert time.monotonic() < deadline, f"run {run} is {state['name']}\n{self.said(run)}"
            time.sleep(0.3)
        return state

    def completed(self, run: str, timeout_s: float = 180) -> None:
        """Return when a run has completed; any other end is an error, with the run's log."""
        state = self.finished(run, timeout_s)
        assert state["type"] == "COMPLETED", f"{state['name']}: {state['message']}\n{self.said(run)}"

    def route(self, **parameters: Any) -> None:
        """The whole route, from its start to its end."""
        self.completed(self.start("pipeline", **parameters))

    def said(self, run: str) -> str:
        """A run's log, the latest last."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC", "limit": 200}
        lines = self.api("POST", "logs/filter", wanted, patience_s=AWAY_S)
        return "\n".join(line["message"] for line in reversed(lines))

    def steps(self, run: str) -> list[tuple[int, int]]:
        """The optimizer steps that a run has told of, in order: those done, and all that there are to do."""
        found = re.findall(r"^training: ([\d,]+)/([\d,]+) steps", self.said(run), re.MULTILINE)
        return [(int(done.replace(",", "")), int(total.replace(",", ""))) for done, total in found]

    def until_trained(self, run: str, share: float, timeout_s: float = 120) -> int:
        """Wait until a run has done a share of its steps; how many it has done by then."""
        deadline = time.monotonic() + timeout_s
        while not (steps := self.steps(run)) or steps[-1][0] < share * steps[-1][1]:
            state = self.state(run)
            assert state["type"] not in FINAL, f"{state['name']}: {state['message']}\n{self.said(run)}"
            assert time.monotonic() < deadline, f"{steps} are the steps of run {run}:\n{self.said(run)}"
            time.sleep(0.3)
        return steps[-1][0]

    def until_said(self, run: str, text: str, timeout_s: float = 120) -> None:
        """Return when a run's log holds ``text``, in small or capital letters.

        The last lines of a run reach the server some seconds after its end.
        """
        deadline, over = time.monotonic() + timeout_s, False
        while text.lower() not in (said := self.said(run)).lower():
            if not over and self.state(run)["type"] in FINAL:
                deadline, over = time.monotonic() + LATE_S, True
            assert time.monotonic() < deadline, f"{text!r} is not in the log of run {run}:\n{said}"
            time.sleep(0.3)
