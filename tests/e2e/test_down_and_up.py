"""The end: taken down and brought up again, nothing is lost; secrets can be renewed, and weak ones are refused."""

import secrets
from collections import Counter
from pathlib import Path

import duckdb
import httpx
import pytest
from e2e.stack import MODEL, ROOT, SERVICES, Stack, open_stack, outer_address, wait_until
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


def test_what_was_answered_is_read_by_readme_s_query(
    stack: Stack, live: str, few: dict[str, bytes], tmp_path: Path
) -> None:
    """Stopped, the server has stored each answer once; people read it with their key, and README's query counts it."""
    ours = secrets.token_hex(4)
    said: Counter[str] = Counter()
    for number, image in enumerate(few.values()):
        answer = httpx.post(f"{stack.gateway}/predict", content=image, headers={"X-Request-Id": f"{ours}-{number}"})
        said[answer.json()["label"]] += 1
    version = stack.version()
    stack.compose("restart", "serving")
    predictions = stack.stored.zone("predictions")
    for key in [each.key for each in predictions.listing() if each.key.startswith(f"{live}/")]:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(predictions.get(key))
    query = (ROOT / "README.md").read_text(encoding="utf-8").split("```sql")[1].split("```")[0].partition(";")[2]
    assert (query.count("s3://safelight-predictions/"), query.count("WHERE ")) == (1, 1)
    query = query.replace("s3://safelight-predictions/", f"{tmp_path}/")
    rows = duckdb.sql(query.replace("WHERE ", f"WHERE request_id LIKE '{ours}-%' AND ")).fetchall()
    assert {label: count for _, _, _, label, count, _ in rows} == said
    assert {(each[1], each[2]) for each in rows} == {(version, "champion")}
    wait_until(lambda: stack.answers(few), 30, "the model does not answer again")


def test_make_secrets_shows_what_opens_the_doors(stack: Stack) -> None:
    """What it prints for people is accepted by the Prefect server and by the object store."""
    shown = stack.run("make", "secrets").stdout
    for each in (*stack.runs.login, *stack.credentials("people"), stack.secret("people_api_key")):
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


def test_bound_wide_it_answers_under_the_machine_s_own_address_and_asks_who_is_there(
    stack: Stack, live: str, few: dict[str, bytes]
) -> None:
    """On all addresses: the UI asks the API at the address that it came from; an image needs a key, and flows have one.

    Bound to loopback again, nobody else gets through, and no key is needed once that is said.
    """
    at = f"http://{outer_address()}:{stack.ports['prefect']}"
    stack.run("make", "up", timeout=400, environ=WIDE)
    try:
        settings = httpx.get(f"{at}/ui-settings", timeout=30, trust_env=False).json()
        assert settings["api_url"].startswith("/")
        assert httpx.get(f"{at}/api/admin/settings", timeout=30, trust_env=False).status_code == 401
        assert httpx.get(f"{at}/api/admin/settings", auth=stack.runs.login, timeout=30, trust_env=False).is_success
        asks_for_a_key(stack, few)
        stack.run("make", "rotate", "SECRET=people-key")  # from a shell that does not know of the wide binding
        stack.forget()
        asks_for_a_key(stack, few)
        stack.runs.completed(stack.runs.start("deploy", model=live))
    finally:
        stack.run("make", "up", timeout=400, environ={"STACK_API_KEYS": "off"})
    wait_until(lambda: stack.answers(few), 30, "a key is still needed")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{at}/ui-settings", timeout=5, trust_env=False)


def asks_for_a_key(stack: Stack, few: dict[str, bytes]) -> None:
    """Assert that the machine's own address answers an image that comes with people's key, and no other."""
    key, image = stack.secret("people_api_key"), next(iter(few.values()))
    base = f"http://{outer_address()}:{stack.ports['inference']}"
    with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:

        def answered(**headers: str) -> int:
            return client.post("/predict", content=image, headers=headers).status_code

        wait_until(lambda: answered(Authorization=f"Bearer {key}") == 200, 10, "people's key is not good")
        assert answered() == answered(Authorization=f"Bearer {key}x") == 401
        assert client.get("/").status_code == client.get("/v2/health/ready").status_code == 200
        assert client.get("/metrics").status_code == 404
        assert client.get(f"/v2/models/{MODEL}").status_code == 401
