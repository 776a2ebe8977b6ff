"""Who may do what: each user of the store is tried on all that it must not do, and a stranger on every open port."""

import itertools
import json
from collections.abc import Callable
from typing import get_args

import httpx
import obstore
import pytest
from e2e.stack import Stack
from obstore.exceptions import BaseError
from obstore.store import S3Store

from pipeline.settings import ZONES, Zone
from pipeline.store_users import BATCHES, RIGHTS, STORE_USERS, Right, StoreUser

REFUSED = r"403|AccessDenied|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|not authorized"
OPEN = {
    "prefect-server": {"/", "/api/health", "/api/ready", "/ui-settings", "/docs", "/openapi.json"},
    "gateway": {"/gateway/live"},
}
"""What may be answered without credentials, beside the inference server's own API: no content of anybody's."""
PATHS = (
    "/",
    "/status",
    "/healthz",
    "/metrics",
    "/debug/pprof/",
    "/dir/assign",
    "/dir/status",
    "/vol/status",
    "/cluster/status",
    "/col/delete?collection=safelight-models",
    "/buckets/safelight-models/?recursive=true",
    "/safelight-models",
    "/safelight-models/fashion-mnist/aliases/champion.json",
    "/api/deployments/count",
    "/api/flow_runs/filter",
    "/api/admin/settings",
    "/stats",
    "/haproxy?stats",
    "/minio/v2/metrics/cluster",
)

pytestmark = pytest.mark.timeout(300)


def bucket(stack: Stack, zone: str, access_key: str | None, secret_key: str | None) -> S3Store:
    """The bucket of a zone, as whoever has these credentials sees it."""
    keys = {"access_key_id": access_key, "secret_access_key": secret_key} if access_key else {"skip_signature": True}
    return S3Store(
        f"safelight-{zone}",
        endpoint=stack.store,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": "10s"},
        retry_config={"max_retries": 0},
        **keys,  # type: ignore[arg-type]
    )


def attempts(store: S3Store, key: str) -> dict[Right, Callable[[], object]]:
    """One request for each right that there is; ``key`` holds an object."""
    return {
        "list": lambda: obstore.list(store).collect(),
        "read": lambda: obstore.get(store, key).bytes(),
        "write": lambda: obstore.put(store, f"{key}-of-a-stranger", b"evil"),
        "delete": lambda: obstore.delete(store, key),
        "log": lambda: obstore.put(store, "probe/date=2026-01-01/of-a-stranger", b"evil"),
        "batches": lambda: obstore.put(store, f"{BATCHES}/probe/of-a-stranger", b"evil"),
    }


def granted(user: StoreUser, zone: Zone) -> frozenset[Right]:
    """The rights of a user on a zone; who may write anywhere may write in each of its folders."""
    own = RIGHTS[user].get(zone, frozenset())
    return own | {"log", "batches"} if "write" in own else own


@pytest.fixture(scope="module")
def keys(stack: Stack, live: str) -> dict[Zone, str]:
    """An object in each zone."""
    assert live
    root = stack.credentials("root")
    for zone in ZONES:
        obstore.put(bucket(stack, zone, *root), "probe/object", b"what is there")
    return dict.fromkeys(ZONES, "probe/object")


@pytest.mark.parametrize("user", STORE_USERS)
def test_a_user_may_do_what_it_needs_and_nothing_else(stack: Stack, keys: dict[Zone, str], user: StoreUser) -> None:
    """Each right that a user has on a zone works, and each that it has not is refused; other buckets too."""
    wrong: list[str] = []
    own_keys, root = stack.credentials(user), stack.credentials("root")
    for zone, key in keys.items():
        own = granted(user, zone)
        for right, attempt in attempts(bucket(stack, zone, *own_keys), key).items():
            said = failure(attempt)
            if bool(said) == (right in own):
                wrong.append(f"{right} {zone}: {said or 'was not refused'}")
            obstore.put(bucket(stack, zone, *root), key, b"again")
    assert wrong == []


def failure(attempt: Callable[[], object]) -> str | None:
    """How a request was refused; None if it was not."""
    try:
        attempt()
    except (BaseError, PermissionError) as error:
        return str(error)[:200]
    return None


@pytest.mark.parametrize("user", STORE_USERS)
def test_no_user_makes_buckets_or_users(stack: Stack, user: StoreUser) -> None:
    """Neither a bucket, nor a user, nor a policy can be made by anybody but root, and no bucket can be removed."""
    from minio import Minio  # noqa: PLC0415 - a client that can ask for this
    from minio.error import S3Error  # noqa: PLC0415

    client = Minio(f"127.0.0.1:{stack.ports['store']}", *stack.credentials(user), secure=False, region="us-east-1")
    with pytest.raises(S3Error, match=REFUSED):
        client.make_bucket("of-a-stranger")
    with pytest.raises(S3Error, match=REFUSED):
        client.remove_bucket("safelight-models")
    with pytest.raises(S3Error, match=REFUSED):
        client.set_bucket_policy("safelight-models", json.dumps({"Version": "2012-10-17", "Statement": []}))


@pytest.mark.parametrize("credentials", [None, ("worker", "wrong"), ("nobody", "right"), ("nobody", "wrong")])
def test_without_the_right_credentials_the_store_refuses(
    stack: Stack, keys: dict[Zone, str], credentials: tuple[str, str] | None
) -> None:
    """No credentials, a wrong secret and an unknown key open nothing in any zone."""
    access_key = secret_key = None
    if credentials:
        access_key, secret_key = stack.credentials("worker")
        access_key = access_key if credentials[0] == "worker" else "nobody-1234"
        secret_key = secret_key if credentials[1] == "right" else "wrong" * 8
    for zone, key in keys.items():
        for right, attempt in attempts(bucket(stack, zone, access_key, secret_key), key).items():
            assert failure(attempt), f"{right} {zone}"


@pytest.mark.parametrize("login", [None, ("safelight", "wrong"), ("admin", "pass"), ("", "")])
def test_without_the_right_login_the_prefect_server_refuses(stack: Stack, login: tuple[str, str] | None) -> None:
    """Nothing can be read, started or changed at the Prefect server; only its signs of life are open."""
    with httpx.Client(base_url=f"{stack.ui}/api", auth=login, timeout=30, trust_env=False) as client:
        assert client.get("/health").is_success
        for method, path in (
            ("POST", "/deployments/filter"),
            ("POST", "/flow_runs/filter"),
            ("POST", "/artifacts/filter"),
            ("POST", "/events"),
            ("POST", "/automations/"),
            ("POST", "/block_documents/filter"),
            ("POST", "/logs/filter"),
            ("POST", "/variables/"),
            ("GET", "/admin/settings"),
            ("POST", "/admin/database/clear"),
            ("GET", "/deployments/name/pipeline/pipeline"),
        ):
            assert client.request(method, path, json={}).status_code == 401, path


def test_no_credentials_of_one_service_open_another(stack: Stack) -> None:
    """The Prefect server's password opens no zone of the store, and no key of the store opens the Prefect server."""
    for user in STORE_USERS:
        refused = httpx.get(f"{stack.ui}/api/admin/settings", auth=stack.credentials(user), timeout=30)
        assert refused.status_code == 401
    password = stack.secret("prefect_password")
    for zone in ZONES:
        for right, attempt in attempts(bucket(stack, zone, "safelight", password), "probe/object").items():
            assert failure(attempt), f"{right} {zone}"


PROBE = """
import http.client, json, socket, ssl, sys
found = {}
for address, port, paths in json.loads(sys.argv[1]):
    said = found.setdefault(f"{address}:{port}", {})
    try:
        socket.create_connection((address, port), timeout=3).close()
    except OSError as error:
        said["connect"] = type(error).__name__
        continue
    for secure in (False, True):
        for method in ("GET", "POST", "DELETE"):
            for path in paths:
                context = ssl._create_unverified_context()
                kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
                options = {"context": context} if secure else {}
                connection = kind(address, port, timeout=4, **options)
                try:
                    connection.request(method, path)
                    answer = connection.getresponse()
                    request = f"{'https' if secure else 'http'} {method} {path}"
                    said[request] = [answer.status, answer.read(200).decode("latin1")]
                except (OSError, http.client.HTTPException):
                    pass
                finally:
                    connection.close()
print(json.dumps(found))
"""


def test_a_stranger_on_the_network_finds_every_door_shut(stack: Stack) -> None:
    """From a container without credentials, no port that any service listens on tells or does anything.

    The inference server's own API is what everybody may use: images in, labels out, and where the model came from.
    """
    doors = listening(stack)
    assert {service for service, _, _ in doors} >= {"object-store", "prefect-server", "serving", "gateway"}
    asked = [(address, port, PATHS) for _, address, port in doors]
    printed = stack.run(
        *("docker", "run", "--rm", "--network", f"{stack.project}_default", "--entrypoint", "python"),
        *(stack.image, "-ISc", PROBE, json.dumps(asked)),
        timeout=280,
    ).stdout
    found = json.loads(printed)
    by_address = {f"{address}:{port}": service for service, address, port in doors}
    told: list[str] = []
    for door, answers in found.items():
        service = by_address[door]
        for request, answer in answers.items():
            if request != "connect" and not harmless(service, request.split()[-1], *answer):
                told.append(f"{service} {door} {request}: {answer}")
    assert told == []


def harmless(service: str, path: str, status: int, body: str) -> bool:
    """Whether an answer gives a stranger nothing: a refusal, an empty sign of life, or what everybody may see."""
    if status in {301, 302, 307, 400, 401, 403, 404, 405, 501, 503}:
        return True
    if service in {"serving", "gateway"}:
        return path in {"/", "/metrics", "/gateway/live"}
    if service == "prefect-server":
        return not path.startswith("/api/") or path in OPEN[service]
    if service == "worker":
        return False
    return status == 200 and body == ""


def listening(stack: Stack) -> list[tuple[str, str, int]]:
    """Service, address and port of each TCP socket that listens on more than loopback, in any container."""
    found = []
    for service in ("object-store", "prefect-server", "worker", "serving", "gateway"):
        container = stack.containers(service)[0]
        tables = stack.run("docker", "exec", container, "cat", "/proc/net/tcp", "/proc/net/tcp6", check=False).stdout
        rows = [line.split() for line in tables.splitlines() if ":" in line]
        ports = {
            int(row[1].rpartition(":")[2], 16)
            for row in rows
            if row[3] == "0A" and not row[1].startswith(("0100007F", "0B00007F", "0" * 24 + "01000000"))
        }
        found += [(service, stack.address(container), port) for port in sorted(ports)]
    return found


def test_all_rights_are_tried() -> None:
    """The attempts above know every right of the table but that on old versions, which is reading too."""
    store = S3Store("x", region="us-east-1", skip_signature=True)
    assert set(attempts(store, "x")) == set(get_args(Right)) - {"history"}
    assert len(list(itertools.product(STORE_USERS, ZONES))) == 25
