"""What a person finds right after the first start: everything healthy, nothing to see in public, no model yet."""

import json
import re
import socket

import httpx
import pytest
import tiny_models
from e2e.stack import MODEL, SERVICES, Stack, outer_address

from pipeline import images

FLOWS = {"import", "prepare", "train", "evaluate", "promote", "pipeline", "predict", "deploy", "rollback"}
PNG = images.encode_png(tiny_models.picture(5))

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_says_that_it_is_healthy(stack: Stack, service: str) -> None:
    """The container runs, has a health check of its own that passes, a memory limit, rotated logs and a restart."""
    for container in stack.containers(service):
        found = stack.inspect(container)
        assert found["State"]["Health"]["Status"] == "healthy"
        host = found["HostConfig"]
        assert host["Memory"] > 0
        assert host["RestartPolicy"]["Name"] in {"unless-stopped", "always", "on-failure"}
        assert "max-size" in host["LogConfig"]["Config"]


def test_no_process_has_more_rights_than_it_needs(stack: Stack) -> None:
    """Each long-running container: no root, no capability, no new privileges, nothing to write in but its volumes."""
    for service in SERVICES:
        found = stack.inspect(stack.containers(service)[0])
        host = found["HostConfig"]
        assert found["Config"]["User"].split(":")[0] not in {"", "0", "root"}, service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert not host["Privileged"], service
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"] or []), service
        assert host["ReadonlyRootfs"], service


def test_it_is_ready_within_its_time(stack: Stack) -> None:
    """From `up` to all healthy, images present, takes less than two minutes."""
    assert stack.seconds["up"] < 120


def test_make_up_says_where_everything_is(stack: Stack) -> None:
    """Said again while all runs, every URL that it names is answered, and nothing was started anew."""
    before = [stack.inspect(stack.containers(service)[0])["State"]["StartedAt"] for service in SERVICES]
    urls = re.findall(r"http://\S+", stack.up())
    assert {f"http://localhost:{stack.ports[name]}" for name in ("prefect", "inference", "store")} <= set(urls)
    for url in urls:
        # 403: the store wants credentials.
        assert httpx.get(url, timeout=30, trust_env=False).status_code in {200, 403}, url
    assert [stack.inspect(stack.containers(service)[0])["State"]["StartedAt"] for service in SERVICES] == before


def test_without_a_model_the_server_lives_and_is_not_ready(stack: Stack) -> None:
    """Live is yes, ready is no, an image is answered with the reason instead of a label, and the page is there."""
    server = stack.address(stack.containers("serving")[0])
    with httpx.Client(base_url=f"http://{server}:8080", timeout=10, trust_env=False) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        answer = client.post("/predict", content=PNG)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert MODEL in answer.json()["detail"]
        assert answer.json()["error"] == answer.json()["detail"]
        assert client.post("/predict", content=PNG[:4]).status_code == 422
    with httpx.Client(base_url=stack.gateway, timeout=10, trust_env=False) as client:
        answer = client.post("/predict", content=PNG)
        assert answer.status_code == 503
        assert answer.json()["error"] == answer.json()["detail"]
        assert client.get("/v2/health/ready").status_code == 503
        assert "Safelight" in client.get("/").text


def test_the_deployments_are_registered_and_a_worker_waits(stack: Stack) -> None:
    """Each flow has a deployment that is ready, in a pool whose worker is online; the form has ranges and choices."""
    found = {each["name"]: each for each in stack.runs.api("POST", "deployments/filter", {})}
    assert set(found) >= FLOWS
    assert {each["work_pool_name"] for each in found.values()} == {"safelight"}
    assert {each["status"] for each in found.values()} == {"READY"}
    workers = stack.runs.api("POST", "work_pools/safelight/workers/filter", {})
    assert "ONLINE" in {each["status"] for each in workers}
    form = json.dumps(found["train"]["parameter_openapi_schema"])
    assert '"maximum": 10000' in form
    assert "mobilenet_v3_small" in form
    assert "Passes over the images" in form


def test_rollback_and_deploy_never_wait_behind_training(stack: Stack) -> None:
    """What trains and what makes live are in different queues, and only the first has a limit."""
    found = {each["name"]: each["work_queue_name"] for each in stack.runs.api("POST", "deployments/filter", {})}
    assert found["train"] == found["pipeline"]
    assert found["deploy"] == found["rollback"] != found["train"]
    queues = {each["name"]: each for each in stack.runs.api("POST", "work_pools/safelight/queues/filter", {})}
    assert queues[found["train"]]["concurrency_limit"]
    assert queues[found["deploy"]]["concurrency_limit"] is None


def test_everything_listens_on_loopback_alone(stack: Stack) -> None:
    """Each published port is bound to 127.0.0.1; the server and its replicas are published by the gateway only."""
    published: dict[str, set[str]] = {}
    for service in SERVICES:
        for container in stack.containers(service):
            ports = stack.inspect(container)["NetworkSettings"]["Ports"] or {}
            published[service] = {each["HostIp"] for bound in ports.values() for each in bound or []}
    assert set().union(*published.values()) == {"127.0.0.1"}
    assert published["serving"] == published["worker"] == set()
    for port in stack.ports.values():
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            socket.create_connection((outer_address(), port), timeout=2).close()


def test_nothing_secret_is_in_sight(stack: Stack) -> None:
    """No secret stands in what the engine tells of a container, in a process's arguments, or in any service's log."""
    secrets = stack.secrets()
    assert len(secrets) >= 8
    told = {"config": stack.compose("--profile", "*", "config").stdout, "logs": stack.logs()}
    for service in (*SERVICES, "secrets", "store-init", "prefect-init"):
        for container in stack.containers(service):
            told[f"inspect {service}"] = json.dumps(stack.inspect(container))
            if service in SERVICES:
                told[f"ps {service}"] = stack.run("docker", "top", container, "-eo", "pid,args").stdout
    for place, text in told.items():
        shown = sorted(name for name, value in secrets.items() if value in text)
        assert not shown, f"{place} shows {shown}"


def test_every_secret_is_its_owners_alone(stack: Stack) -> None:
    """Each file of a secret volume has mode 600, and each secret is long and made by chance."""
    for volume in stack.secret_volumes:
        listed = stack.as_root(volume, "find", "/s", "-type", "f", "-printf", "%m %u %p\n").split("\n")
        files = [line.split() for line in listed if line]
        assert files, volume
        assert {mode for mode, _, _ in files} <= {"600", "400"}, files
    values = [value for name, value in stack.secrets().items() if "user" not in name and "access_key" not in name]
    assert min(map(len, values)) >= 20
    assert all(re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value) for value in values)


def test_one_service_reads_no_other_s_secrets(stack: Stack) -> None:
    """No long-running container has another one's secrets mounted, or mounted so that it could change them."""
    mounted: dict[str, set[str]] = {}
    for service in (*SERVICES, "store-init", "prefect-init"):
        mounts = stack.inspect(stack.containers(service)[0])["Mounts"]
        ours = [each for each in mounts if each.get("Name", "").startswith(f"{stack.project}_secrets-")]
        assert all(not each["RW"] for each in ours), service
        mounted[service] = {each["Name"] for each in ours}
        assert len(ours) <= 1, service
    used = [name for names in mounted.values() for name in names]
    assert len(used) == len(set(used)), mounted
    assert mounted["gateway"] == set()
