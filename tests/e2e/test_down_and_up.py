"""The end: taken down and brought up again, nothing is lost; secrets can be renewed, and weak ones are refused."""

import secrets

import httpx
import pytest
from e2e.stack import MODEL, SERVICES, Stack, open_stack, outer_address, wait_until
from e2e.stored import Stored
from e2e.traffic import ask_all

from pipeline.errors import AccessDenied

WIDE = {"STACK_BIND": "0.0.0.0"}  # noqa: S104 - what is tested

pytestmark = pytest.mark.timeout(600)


def test_down_and_up_loses_nothing(stack: Stack, live: str, few: dict[str, bytes]) -> None:
    """The same model answers the same, runs and artifacts are listed, secrets are the same, all stored is whole."""
    answers, secret = ask_all(stack.gateway, few), stack.secrets()
    runs = stack.runs.api("POST", "flow_runs/count", {})
    versions = stack.stored.versions()
    stack.compose("down")
    stack.up()
    wait_until(lambda: stack.answers(few), 30, "the model does not answer again")
    assert ask_all(stack.gateway, few) == answers
    assert stack.secrets() == secret
    assert stack.runs.api("POST", "flow_runs/count", {}) == runs
    assert {each["key"] for each in stack.runs.api("POST", "artifacts/filter", {})} >= {f"classes-{live}"}
    assert stack.stored.versions() == versions
    stack.cli("store", "verify", timeout=300)
    stack.runs.completed(stack.runs.start("deploy", model=live))


def test_make_secrets_shows_what_opens_the_doors(stack: Stack) -> None:
    """What it prints for people is accepted by the Prefect server and by the object store."""
    shown = stack.run("make", "secrets").stdout
    for each in (*stack.runs.login, *stack.credentials("people")):
        assert each in shown.split()
    assert stack.stored.versions()


@pytest.mark.parametrize("name", ["prefect", "worker", "serving"])
def test_a_secret_is_renewed(stack: Stack, live: str, few: dict[str, bytes], name: str) -> None:
    """`make rotate` gives a new secret; the old one opens nothing any more, and everything goes on working."""
    before, login = stack.secrets(), stack.runs.login
    stack.run("make", "rotate", f"SECRET={name}", timeout=400)
    stack.forget()
    changed = {key for key, value in stack.secrets().items() if before[key] != value}
    assert changed == {"prefect_password" if name == "prefect" else f"{name}_secret_key"}
    wait_until(lambda: all(map(stack.is_healthy, SERVICES)), 120, "not all is healthy")
    if name == "prefect":
        refused = httpx.get(f"{stack.ui}/api/admin/settings", auth=login, timeout=30)
        assert refused.status_code == 401
    else:
        old = Stored(stack.store, before[f"{name}_access_key"], before[f"{name}_secret_key"], MODEL)
        with pytest.raises(AccessDenied):
            old.versions()
    wait_until(lambda: stack.answers(few), 60, "the model does not answer")
    stack.runs.completed(stack.runs.start("deploy", model=live))


def test_a_secret_of_one_s_own_may_be_weak_here_and_not_on_a_wide_address() -> None:
    """With a weak password the stack starts on loopback; on all addresses nothing starts, and a sentence says why."""
    weak = open_stack(f"safelight-e2e-{secrets.token_hex(3)}")
    try:
        weak.compose("run", "--rm", "secrets")
        weak.compose("run", "--rm", "-T", "secrets", "set", "prefect", given="password\n")
        refused = weak.run("make", "up", check=False, environ=WIDE)
        assert refused.returncode != 0
        said = refused.stdout + refused.stderr
        assert "STACK_BIND" in said
        assert "prefect" in said
        assert "make rotate" in said
        assert "Traceback" not in said
        assert weak.containers("prefect-server") == []
        assert "prefect" in weak.compose("run", "--rm", "secrets").stdout  # on loopback it is a warning
    finally:
        weak.down()


def test_bound_wide_the_ui_answers_under_the_machine_s_own_address(
    stack: Stack, live: str, few: dict[str, bytes]
) -> None:
    """On all addresses the UI is reached by the machine's own, and asks the API at the address that it came from.

    The inference server asks for a key then, which a deployment has; back on loopback it asks for none.
    """
    at = f"http://{outer_address()}:{stack.ports['prefect']}"
    stack.run("make", "up", timeout=400, environ=WIDE)
    try:
        settings = httpx.get(f"{at}/ui-settings", timeout=30, trust_env=False).json()
        assert settings["api_url"].startswith("/")
        assert httpx.get(f"{at}/api/admin/settings", timeout=30, trust_env=False).status_code == 401
        assert httpx.get(f"{at}/api/admin/settings", auth=stack.runs.login, timeout=30, trust_env=False).is_success
        _inference_asks_for_a_key(stack, next(iter(few.values())))
    finally:
        stack.up()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{at}/ui-settings", timeout=5, trust_env=False)
    wait_until(lambda: stack.answers(few), 30, "the inference server still asks for a key")


def _inference_asks_for_a_key(stack: Stack, image: bytes) -> None:
    at = f"http://{outer_address()}:{stack.gateway.rpartition(':')[2]}/predict"
    wait_until(lambda: httpx.post(at, content=image, trust_env=False).status_code == 401, 30, "it asks for no key")
    key = stack.secrets()["people_api_key"]
    assert key in stack.run("make", "secrets").stdout
    assert httpx.post(at, content=image, headers={"X-API-Key": key}, trust_env=False).is_success
