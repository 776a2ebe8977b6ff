"""The few requests to a Prefect server that need no Prefect here: its variables, runs and events, over plain HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from pipeline.errors import InvalidSettings, PrefectUnavailable

UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
TIMEOUT_S = 20.0


def api_url(environ: Mapping[str, str]) -> str:
    """The address of the Prefect server's API.

    Raises:
        InvalidSettings: the environment names none.
    """
    url = environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        raise InvalidSettings("PREFECT_API_URL is not set: it names the Prefect server, as http://host:4200/api.")
    return url


class PrefectApi:
    """A Prefect server, by Prefect's own variables ``PREFECT_API_URL`` and ``PREFECT_API_AUTH_STRING``."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._url = api_url(environ)
        user, _, password = environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
        self._client = httpx.Client(base_url=self._url, auth=(user, password) if user else None, timeout=TIMEOUT_S)

    def variable(self, name: str) -> Any:
        """The value of a variable; None if there is none.

        Raises:
            PrefectUnavailable: the server does not answer, or refuses; so do all methods.
        """
        found = self._ask("GET", f"/variables/name/{quote(name)}", missing_is_none=True)
        return None if found is None else found["value"]

    def set_variable(self, name: str, value: Any) -> None:
        """Make or change a variable; ``value`` is JSON."""
        body = {"name": name, "value": value}
        if self._ask("PATCH", f"/variables/name/{quote(name)}", body, missing_is_none=True) is None:
            self._ask("POST", "/variables/", body)

    def deployment(self, name: str) -> str:
        """The id of the deployment of the flow of that name."""
        found = self._ask("GET", f"/deployments/name/{name}/{name}", missing_is_none=True)
        if found is None:
            raise PrefectUnavailable(f"The Prefect server at {self._url} has no deployment {name}: run prefect_init.")
        return str(found["id"])

    def unfinished(self, deployment: str) -> list[dict[str, Any]]:
        """The parameters of each run of a deployment that has not ended."""
        filters = {
            "flow_runs": {"state": {"type": {"any_": list(UNFINISHED)}}},
            "deployments": {"id": {"any_": [deployment]}},
        }
        return [run["parameters"] for run in self._ask("POST", "/flow_runs/filter", filters)]

    def start(self, deployment: str, parameters: Mapping[str, Any], *, tags: Sequence[str], once: str) -> str:
        """Start a run, or find the one that was started with the same key ``once``; its id."""
        body = {"parameters": parameters, "tags": list(tags), "idempotency_key": once, "state": {"type": "SCHEDULED"}}
        return str(self._ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])

    def emit(self, event: Mapping[str, Any]) -> None:
        """Tell the server of an event."""
        self._ask("POST", "/events", [event])

    def _ask(self, method: str, path: str, body: Any = None, *, missing_is_none: bool = False) -> Any:
        """The answer's JSON; {} where it has none, None where that was asked for and nothing is there."""
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise PrefectUnavailable(
                f"The Prefect server at {self._url} does not answer ({error or type(error).__name__})."
            ) from error
        if missing_is_none and answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if not answer.is_success:
            raise PrefectUnavailable(
                f"The Prefect server at {self._url} refuses {method} {path}: {answer.status_code} {answer.text[:200]}"
            )
        return answer.json() if answer.content else {}
