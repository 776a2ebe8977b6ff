"""The embedded store, real: what it keeps, what it survives, and that nobody gets in without the credentials."""

import hashlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import psutil
import pytest
from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import S3Error
from minio.signer import sign_v4_s3
from obstore.exceptions import BaseError
from obstore.store import S3Store

from pipeline import buckets, embedded_store, processes
from pipeline.embedded_store import COMPONENTS, GRPC_OFFSET, SOCKETS, Connection
from pipeline.errors import LocalServiceFailed
from pipeline.processes import Service

BUCKET = "treasure"
CONTENT = b"what only the owner may read"
HTTP_PATHS = (
    "/",
    f"/{BUCKET}",
    f"/{BUCKET}/key",
    f"/buckets/{BUCKET}/key",
    f"/buckets/{BUCKET}/?recursive=true",
    f"/.tus/buckets/{BUCKET}/key",
    "/1,0100000001",
    "/status",
    "/metrics",
    "/debug/pprof/",
    "/ui/index.html",
    "/healthz",
    "/stats/disk",
    "/dir/assign",
    "/dir/status",
    "/dir/lookup?volumeId=1",
    "/vol/status",
    "/vol/vacuum?garbageThreshold=0.0001",
    "/cluster/status",
    f"/col/delete?collection={BUCKET}",
    f"/delete_collection?collection={BUCKET}",
    "/admin",
    "/api/config",
    "/object-store/buckets",
    "/v1/config",
    "/_iceberg/v1/config",
    "/?Action=ListUsers&Version=2010-05-08",
)
IAM_FORMS = (
    "Action=ListUsers&Version=2010-05-08",
    "Action=CreateUser&UserName=mallory&Version=2010-05-08",
    "Action=CreateAccessKey&UserName=safelight&Version=2010-05-08",
    "Action=GetCallerIdentity&Version=2011-06-15",
    "Action=AssumeRole&Version=2011-06-15&RoleArn=arn:aws:iam::1:role/x&RoleSessionName=s",
    "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn:aws:iam::1:role/x&RoleSessionName=s&WebIdentityToken=t",
)


def objects(connection: Connection, *, access_key: str = "", secret_key: str = "", bucket: str = BUCKET) -> S3Store:
    """The bucket as a client with these credentials sees it; by default with the right ones."""
    return S3Store(
        bucket,
        endpoint=connection.endpoint,
        access_key_id=access_key or connection.access_key_id,
        secret_access_key=secret_key or connection.secret_access_key,
        region=connection.region,
        client_options={"allow_http": True, "timeout": "10s"},
        retry_config={"max_retries": 0},
        checksum_algorithm="SHA256",
    )


def bucket_in(connection: Connection, name: str = BUCKET) -> S3Store:
    """The bucket, created."""
    c = connection
    buckets.create_buckets(c.endpoint, c.access_key_id, c.secret_access_key, c.region, [name])
    return objects(c, bucket=name)


def service_of(home: Path) -> Service:
    """The store's process, which must be running."""
    service = processes.find(home, embedded_store.NAME)
    assert service is not None
    return service


def listening(service: Service) -> set[tuple[str, int]]:
    """Address and port of every TCP socket on which the store's process listens."""
    connections = psutil.Process(service.pid).net_connections(kind="inet")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def sockets_of(service: Service) -> list[Path]:
    """The Unix sockets that the server makes outside of its home."""
    return [path for port in service.ports.values() for path in SOCKETS.glob(f"*-grpc-{port + GRPC_OFFSET}.sock")]


def eventually(condition: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    """Whether ``condition`` comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def up_and_tell(home: Path) -> tuple[Connection, int]:
    """Bring the store up in a process of its own, as another command would; its connection and the store's pid."""
    code = (
        "import json, sys; from pathlib import Path; from pipeline import embedded_store, processes; "
        "home = Path(sys.argv[1]); found = embedded_store.up(home, int(sys.argv[2])); "
        "print(json.dumps([found.endpoint, found.access_key_id, found.secret_access_key, found.region, "
        "processes.find(home, embedded_store.NAME).pid]))"
    )
    command = [sys.executable, "-c", code, str(home), str(spare_port())]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    return Connection(*told[:4]), int(told[4])


def spare_port() -> int:
    """A port that is free, as are its neighbours and all their pairs, so that tests do not fight for the usual one."""
    while True:
        port = random.choice(embedded_store.SPARE_PORTS)
        wanted = itertools.product(range(port, port + len(COMPONENTS)), (0, GRPC_OFFSET))
        if all(processes.is_free(port + offset) for port, offset in wanted):
            return port


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of this test's own, in which no store runs afterwards."""
    yield tmp_path / "home"
    embedded_store.down(tmp_path / "home")


@pytest.fixture(scope="module")
def open_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a store that holds one object, for tests that only try to get in; all its ports listen."""
    home = tmp_path_factory.mktemp("open") / "home"
    obstore.put(bucket_in(embedded_store.up(home, spare_port())), "key", CONTENT)
    assert eventually(lambda: len(listening(service_of(home))) == 2 * len(COMPONENTS))
    yield home
    embedded_store.down(home)


@pytest.fixture
def besieged(open_home: Path) -> Iterator[Path]:
    """The same home; after the test its one object must be there, unchanged, and nothing else."""
    yield open_home
    connection = embedded_store.up(open_home)
    store = objects(connection)
    assert [meta["path"] for page in obstore.list(store) for meta in page] == ["key"]
    assert obstore.get(store, "key").bytes() == CONTENT
    assert buckets.answers(connection.endpoint, connection.access_key_id, connection.secret_access_key, "us-east-1")


# Getting in


def test_only_loopback_and_only_known_ports_listen(besieged: Path) -> None:
    """The process listens on 127.0.0.1 alone, on the recorded ports and their pairs, and on nothing else."""
    service = service_of(besieged)
    assert tuple(service.ports) == COMPONENTS
    expected = {("127.0.0.1", port + offset) for port in service.ports.values() for offset in (0, GRPC_OFFSET)}
    assert listening(service) == expected


def test_it_talks_to_nobody_else(besieged: Path) -> None:
    """All its connections are to itself or to this machine's clients: no telemetry, no update check."""
    connections = psutil.Process(service_of(besieged).pid).net_connections(kind="inet")
    assert {c.raddr.ip for c in connections if c.raddr} <= {"127.0.0.1"}


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("offset", [0, GRPC_OFFSET])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_plain_http_gets_nothing(besieged: Path, component: str, offset: int, method: str) -> None:
    """No path of any port answers an unsigned request with more than a refusal, or an empty sign of life."""
    port = service_of(besieged).ports[component] + offset
    forms = [form.encode() for form in IAM_FORMS] if method == "POST" else [b"evil"] if method == "PUT" else [None]
    for path, form in itertools.product(HTTP_PATHS, forms):
        answer = send(port, method, path, form, {"Content-Type": "application/x-www-form-urlencoded"})
        alive = component == "s3" and method == "GET" and path in {"/status", "/healthz"}
        assert answer.status in {0, 400, 401, 403, 404, 405} or (alive and answer.body == b""), (path, answer)
        assert CONTENT not in answer.body
        assert b"data" not in answer.body  # the store's folder, in what SeaweedFS tells of its disks


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP; status 0 if the port does not speak it."""

    status: int
    headers: dict[str, str]
    body: bytes


def send(
    port: int,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str] | None = None,
    *,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """One HTTP request, inside TLS if there is a ``context``."""
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        with connection.getresponse() as response:
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    except (http.client.HTTPException, OSError):
        return Answer(0, {}, b"")
    finally:
        connection.close()


def test_every_inner_port_wants_the_certificate(besieged: Path) -> None:
    """Each port but S3's speaks TLS and ends the conversation with who has no certificate; ours opens it."""
    service = service_of(besieged)
    doors: list[tuple[str, int] | str] = [("127.0.0.1", service.ports[name]) for name in COMPONENTS if name != "s3"]
    doors += [("127.0.0.1", port + GRPC_OFFSET) for port in service.ports.values()]
    assert len(sockets_of(service)) == len(COMPONENTS)
    for door in [*doors, *map(str, sockets_of(service))]:
        assert answers_tls(door, besieged / "store" / "conf" / "cert.pem"), door
        assert not answers_tls(door, None), door


def test_behind_the_certificate_tokens_are_wanted(besieged: Path) -> None:
    """Even with the certificate, objects' bytes on the volume server want a signed token."""
    conf = besieged / "store" / "conf"
    context = ssl.create_default_context(cafile=str(conf / "ca.pem"))
    context.load_cert_chain(conf / "cert.pem", conf / "key.pem")
    for method in ("GET", "PUT", "POST", "DELETE"):
        answer = send(service_of(besieged).ports["volume"], method, "/1,0100000001", None, context=context)
        assert (answer.status, b"jwt" in answer.body) == (401, True)


def answers_tls(door: tuple[str, int] | str, certificate: Path | None) -> bool:
    """Whether a server says anything inside TLS, once the handshake is done, to a request of HTTP/1 or HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if certificate is not None:
        context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    family = socket.AF_UNIX if isinstance(door, str) else socket.AF_INET
    with socket.socket(family) as bare:
        bare.settimeout(5)
        bare.connect(door)
        try:
            with context.wrap_socket(bare) as secure:
                # The preface of HTTP/2 with empty settings, which an HTTP/1 server answers too: by a refusal.
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
                return bool(secure.recv(100))
        except (ssl.SSLError, OSError):
            return False


def test_the_servers_own_shell_stays_out(besieged: Path, tmp_path: Path) -> None:
    """``weed shell`` of any local user, which could delete a bucket's data, learns nothing and changes nothing."""
    commands = f"volume.list\nfs.ls /buckets\nlock\ncollection.delete -collection={BUCKET} -apply\nvolume.list"
    assert BUCKET not in shell(service_of(besieged), commands, tmp_path, [])


def test_the_servers_own_shell_works_with_the_certificate(besieged: Path, tmp_path: Path) -> None:
    """The same shell is let in with the store's own configuration: it is the certificate that keeps others out."""
    conf = besieged / "store" / "conf"
    text = (conf / "security.toml").read_text(encoding="utf-8").replace('"conf/', f'"{conf}/')
    (tmp_path / "security.toml").write_text(text, encoding="utf-8")
    assert BUCKET in shell(service_of(besieged), "volume.list", tmp_path, [f"-config_dir={tmp_path}"])


def shell(service: Service, command: str, folder: Path, options: list[str]) -> str:
    """What ``weed shell`` prints for ``command``, within some seconds."""
    ports = [f"-{name}=127.0.0.1:{service.ports[name]}" for name in ("master", "filer")]
    line = [embedded_store.find_server(), *options, "shell", *ports]
    try:
        done = subprocess.run(
            line,
            check=False,
            input=command + "\n",
            capture_output=True,
            text=True,
            timeout=4,
            cwd=folder,
            env={"HOME": str(folder)},
        )
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode() + (late.stderr or b"").decode()
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", f"/{BUCKET}"),
        ("GET", f"/{BUCKET}/key"),
        ("HEAD", f"/{BUCKET}/key"),
        ("PUT", f"/{BUCKET}/key"),
        ("PUT", f"/{BUCKET}/other"),
        ("POST", f"/{BUCKET}/key?uploads"),
        ("DELETE", f"/{BUCKET}/key"),
        ("POST", f"/{BUCKET}?delete"),
        ("PUT", f"/{BUCKET}?policy"),
        ("DELETE", f"/{BUCKET}"),
        ("PUT", "/another-bucket"),
    ],
)
def test_unsigned_s3_requests_are_refused(besieged: Path, method: str, path: str) -> None:
    """Without a signature nothing can be read, written, deleted, opened or created over S3."""
    assert (
        send(service_of(besieged).ports["s3"], method, path, b"" if method in {"PUT", "POST"} else None).status == 403
    )


@pytest.mark.parametrize(("known", "right"), [(True, False), (False, True), (False, False)])
def test_wrong_credentials_are_refused(besieged: Path, known: bool, right: bool) -> None:
    """A wrong secret and an unknown key are refused, for reading, writing, deleting and listing."""
    connection = embedded_store.up(besieged)
    store = objects(connection, access_key="" if known else "AKIAUNKNOWN", secret_key="" if right else "wrong" * 8)
    attempts: list[Callable[[], object]] = [
        lambda: obstore.get(store, "key"),
        lambda: obstore.put(store, "key", b"evil"),
        lambda: obstore.delete(store, "key"),
        lambda: obstore.list(store).collect(),
    ]
    for attempt in attempts:
        with pytest.raises(BaseError, match=r"403|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch"):
            attempt()


def test_other_websites_are_not_served(besieged: Path) -> None:
    """A browser's question whether a foreign page may use the store is answered with no."""
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    answer = send(service_of(besieged).ports["s3"], "OPTIONS", f"/{BUCKET}/key", None, headers)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


def test_files_are_the_owners_alone(besieged: Path) -> None:
    """No other user can enter a folder of the store; secrets, keys, log and record are readable by the owner alone."""
    folders = [besieged, *(path for path in besieged.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    private = [*(besieged / "store" / "conf").iterdir(), *(besieged / "logs").iterdir(), *(besieged / "run").iterdir()]
    assert len(private) > 10
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}
    sockets = [
        path
        for path in SOCKETS.glob("seaweedfs-*")
        if any(str(p + GRPC_OFFSET) in path.name for p in service_of(besieged).ports.values())
    ]
    assert {stat.S_IMODE(path.lstat().st_mode) for path in sockets} == {0o700}


def test_the_secret_shows_nowhere(besieged: Path) -> None:
    """The secret stands in one file and nowhere else: not on the command line, in the environment or in any log."""
    connection = embedded_store.up(besieged)
    process = psutil.Process(service_of(besieged).pid)
    assert connection.secret_access_key not in " ".join(process.cmdline())
    assert set(process.environ()) == {"HOME", "GOMEMLIMIT"}
    assert connection.secret_access_key not in repr(connection)
    secret = connection.secret_access_key.encode()
    holders = [path.name for path in besieged.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert holders == ["s3.json"]


# Being there


def test_up_makes_a_store_that_answers(home: Path) -> None:
    """Right after ``up`` an object can be stored and read, within seconds of the start."""
    begin = time.monotonic()
    connection = embedded_store.up(home, spare_port())
    store = bucket_in(connection)
    obstore.put(store, "key", CONTENT)
    assert obstore.get(store, "key").bytes() == CONTENT
    assert time.monotonic() - begin < 10  # 1 s as a rule
    assert embedded_store.status(home) == connection


def test_a_second_up_finds_the_first(home: Path) -> None:
    """Another command gets the same store, whatever port it would have preferred."""
    connection = embedded_store.up(home, spare_port())
    pid = service_of(home).pid
    assert up_and_tell(home) == (connection, pid)


def test_ups_at_once_give_one_store(home: Path) -> None:
    """Four commands that need the store at the same moment end up with one process."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(up_and_tell, [home] * 4))
    assert len(set(found)) == 1


def test_stores_of_several_homes_live_side_by_side(tmp_path: Path) -> None:
    """Three homes that start at once, preferring the same port, get three stores with nothing in common."""
    port = spare_port()
    homes = [tmp_path / name for name in ("a", "b with space", "ü,c")]
    try:
        with ThreadPoolExecutor(3) as pool:
            connections = list(pool.map(lambda home: embedded_store.up(home, port), homes))
        for number, connection in enumerate(connections):
            obstore.put(bucket_in(connection), "key", b"%d" % number)
        assert [obstore.get(objects(c), "key").bytes() for c in connections] == [b"0", b"1", b"2"]
        assert len({c.endpoint for c in connections}) == len({c.secret_access_key for c in connections}) == 3
    finally:
        stopped = [embedded_store.down(home) for home in homes]
    assert stopped == [True] * 3


@pytest.mark.parametrize("offset", [0, GRPC_OFFSET, 3])
def test_a_busy_port_is_replaced(home: Path, offset: int) -> None:
    """Where the preferred port, its pair or a neighbour is taken, the store takes a free one and works."""
    port = spare_port()
    with socket.create_server(("127.0.0.1", port + offset)):
        connection = embedded_store.up(home, port)
        ports = service_of(home).ports
        assert port + offset not in {p + o for p in ports.values() for o in (0, GRPC_OFFSET)}
        assert (ports["s3"] == port) == (offset == 3)
        obstore.put(bucket_in(connection), "key", CONTENT)


@pytest.mark.parametrize("port", [60_000, 65_535])
def test_a_port_too_high_for_its_pair_is_replaced(home: Path, port: int) -> None:
    """A preferred port whose pair would be no port is replaced too."""
    assert embedded_store.up(home, port).endpoint != f"http://127.0.0.1:{port}"


def test_down_is_idempotent_and_leaves_nothing_running(home: Path) -> None:
    """``down`` stops the process, removes its sockets, says whether there was one, and creates nothing."""
    assert not embedded_store.down(home)
    assert not home.exists()
    embedded_store.up(home, spare_port())
    service = service_of(home)
    assert embedded_store.down(home)
    assert not psutil.pid_exists(service.pid)
    assert sockets_of(service) == []
    assert embedded_store.status(home) is None
    assert not embedded_store.down(home)


# Keeping objects


def test_objects_survive_a_restart_on_other_ports(home: Path) -> None:
    """After a stop and a start elsewhere, with the same credentials, all objects are there, small and large."""
    first = embedded_store.up(home, spare_port())
    large = os.urandom(9_000_000)
    obstore.put(bucket_in(first), "small", CONTENT)
    obstore.put(objects(first), "large/ünï code", large)
    embedded_store.down(home)
    second = embedded_store.up(home, spare_port())
    assert (second.access_key_id, second.secret_access_key) == (first.access_key_id, first.secret_access_key)
    assert second.endpoint != first.endpoint
    assert obstore.get(objects(second), "small").bytes() == CONTENT
    assert obstore.get(objects(second), "large/ünï code").bytes() == large


def kill(home: Path) -> None:
    """End the store as the system does when memory runs out."""
    os.kill(service_of(home).pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [kill, embedded_store.down])
def test_acknowledged_objects_survive_an_end_amid_writing(home: Path, end: Callable[[Path], object]) -> None:
    """Eight writers are cut off by a store that goes; every object of theirs that it acknowledged is there again."""
    store = bucket_in(embedded_store.up(home, spare_port()))
    obstore.put(store, "first", b"the bucket has a place on the disk now")

    def write(writer: int) -> dict[str, bytes]:
        acknowledged: dict[str, bytes] = {}
        for number in itertools.count():
            key, data = f"{writer}/{number}", os.urandom((10, 600, 5_000, 300_000)[number % 4])
            try:
                obstore.put(store, key, data)
            except BaseError:
                break
            acknowledged[key] = hashlib.sha256(data).digest()
        return acknowledged

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, number) for number in range(8)]
        time.sleep(1)
        end(home)
        acknowledged = {key: digest for writer in writers for key, digest in writer.result().items()}
    assert len(acknowledged) > 100
    assert eventually(lambda: embedded_store.status(home) is None)
    again = objects(embedded_store.up(home, spare_port()))
    for key, digest in acknowledged.items():
        assert hashlib.sha256(obstore.get(again, key).bytes()).digest() == digest, key


def test_a_killed_store_comes_back_where_it_was(home: Path) -> None:
    """After SIGKILL the next start, whatever port it would prefer, takes the same ports; after a stop it need not."""
    port = spare_port()
    first = embedded_store.up(home, port)
    ports = service_of(home).ports
    kill(home)
    assert embedded_store.up(home, spare_port()) == first
    assert service_of(home).ports == ports
    embedded_store.down(home)
    other = spare_port()
    assert embedded_store.up(home, other).endpoint == f"http://127.0.0.1:{other}"


def test_a_frozen_store_is_waited_for_and_not_doubled(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is frozen ``up`` says in the log that it waits, starts no other one, and ends with a sentence."""
    store = bucket_in(embedded_store.up(home, spare_port()))
    service = service_of(home)
    os.kill(service.pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(embedded_store, "START_TIMEOUT_S", 7)
        with pytest.raises(LocalServiceFailed, match=r"^store was not ready after 7 s \("):
            embedded_store.up(home)
        assert service_of(home) == service
        waits = [record.getMessage() for record in caplog.records if "has not answered for" in record.getMessage()]
        assert len(waits) in (1, 2)
        assert f"(process {service.pid})" in waits[0]
        thawing = threading.Timer(2, os.kill, (service.pid, signal.SIGCONT))
        thawing.start()
        embedded_store.up(home)
        assert service_of(home) == service
    finally:
        os.kill(service.pid, signal.SIGCONT)
    obstore.put(store, "key", CONTENT)
    assert obstore.get(store, "key").bytes() == CONTENT


def test_a_frozen_store_can_be_stopped(home: Path) -> None:
    """``down`` ends a frozen store too, also while another command waits for it."""
    embedded_store.up(home, spare_port())
    service = service_of(home)
    os.kill(service.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embedded_store.up, home, spare_port())
        time.sleep(1)
        assert embedded_store.down(home)
        assert not processes.alive(service)
        assert waiting.result() == embedded_store.status(home)


def test_six_buckets_can_be_written(home: Path) -> None:
    """There is room for a volume in each of six buckets, with sixteen writers at once."""
    connection = embedded_store.up(home, spare_port())
    stores = [bucket_in(connection, f"bucket-{number}") for number in range(6)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: obstore.put(stores[number % 6], f"{number}", CONTENT), range(300)))
    assert [len(obstore.list(store).collect()) for store in stores] == [50] * 6


@pytest.mark.parametrize("header", ["x-amz-checksum-sha256", "Content-MD5"])
def test_a_body_altered_on_its_way_is_refused(home: Path, header: str) -> None:
    """A body that does not match the checksum sent with it is not stored; one that does, is."""
    connection = embedded_store.up(home, spare_port())
    store = bucket_in(connection)
    digest = hashlib.sha256 if "sha256" in header else hashlib.md5
    checksum = b64encode(digest(CONTENT).digest()).decode()
    assert signed_put(connection, "right", CONTENT, {header: checksum}) == 200
    assert signed_put(connection, "wrong", CONTENT.upper(), {header: checksum}) == 400
    assert [meta["path"] for page in obstore.list(store) for meta in page] == ["right"]


def signed_put(connection: Connection, key: str, data: bytes, headers: dict[str, str]) -> int:
    """Status of a signed put with further headers."""
    url, now = urlsplit(f"{connection.endpoint}/{BUCKET}/{key}"), datetime.now(UTC)
    sha256 = hashlib.sha256(data).hexdigest()
    signed = sign_v4_s3(
        method="PUT",
        url=url,
        region=connection.region,
        headers={"Host": url.netloc, "x-amz-content-sha256": sha256, "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}", **headers},
        credentials=StaticProvider(connection.access_key_id, connection.secret_access_key).retrieve(),
        content_sha256=sha256,
        date=now,
    )
    return send(url.port or 80, "PUT", url.path, data, {name: str(value) for name, value in signed.items()}).status


def test_an_upload_never_creates_a_bucket(home: Path) -> None:
    """Writing into a bucket that does not exist is an error, as on S3."""
    connection = embedded_store.up(home, spare_port())
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(objects(connection, bucket="typo"), "key", CONTENT)


def test_only_an_empty_bucket_can_be_deleted(home: Path) -> None:
    """Deleting a bucket that holds something is refused, as on S3, and what it holds stays."""
    connection = embedded_store.up(home, spare_port())
    store = bucket_in(connection)
    obstore.put(store, "key", CONTENT)
    host = connection.endpoint.removeprefix("http://")
    client = Minio(host, connection.access_key_id, connection.secret_access_key, secure=False, region="us-east-1")
    with pytest.raises(S3Error, match="BucketNotEmpty"):
        client.remove_bucket(BUCKET)
    obstore.delete(store, "key")
    client.remove_bucket(BUCKET)


# What a person's machine does to it


def test_the_persons_own_settings_do_not_leak_in(home: Path, tmp_path: Path) -> None:
    """AWS keys and SeaweedFS settings of the person's own shell and home have no effect on the store."""
    elsewhere = tmp_path / "elsewhere"
    for place in (tmp_path / ".seaweedfs", home / "store" / ".seaweedfs"):
        place.mkdir(parents=True)
        (place / "filer.toml").write_text(f'[leveldb3]\nenabled = true\ndir = "{elsewhere}"\n')
    hostile = {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "PERSONSOWNKEY",
        "AWS_SECRET_ACCESS_KEY": "PERSONSOWNSECRET",
        "WEED_JWT_SIGNING_KEY": "known to all",
        "WEED_GRPC_CA": "/no/such/file",
        "S3_BUCKET": "surprise",
    }
    code = f"import pathlib, pipeline.embedded_store as e; e.up(pathlib.Path({str(home)!r}), {spare_port()})"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **hostile}, check=True, timeout=60)
    connection = embedded_store.up(home)
    assert not elsewhere.exists()
    assert not buckets.answers(connection.endpoint, "PERSONSOWNKEY", "PERSONSOWNSECRET", connection.region)
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(objects(connection, bucket="surprise"), "key", CONTENT)


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A home below a file is refused with the path and the setting that moves it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalServiceFailed, match=r"^\S*/file cannot be written .*SAFELIGHT_HOME\.$"):
        embedded_store.up(tmp_path / "file" / "home")


@pytest.mark.parametrize(
    ("total_gb", "free_mb", "enough"), [(10, 300, False), (10, 400, True), (2000, 20_000, False), (2000, 21_000, True)]
)
def test_a_full_disk_is_refused_beforehand(total_gb: int, free_mb: int, enough: bool) -> None:
    """Less than a hundredth of the disk and 256 MiB is refused; the sentence says how much there is and must be."""
    if enough:
        embedded_store.refuse_full_disk(Path("/x"), total_gb << 30, free_mb << 20)
        return
    with pytest.raises(LocalServiceFailed, match=rf"^The disk of /x has {free_mb} MiB left and .* needs \d+ MiB: "):
        embedded_store.refuse_full_disk(Path("/x"), total_gb << 30, free_mb << 20)


def test_a_missing_server_is_one_sentence(tmp_path: Path) -> None:
    """Without the package and without a binary on the PATH, the sentence names the package and the other way out."""
    with pytest.raises(LocalServiceFailed, match=r"needs the package no-such-package: .*SAFELIGHT_S3_ENDPOINT\.$"):
        embedded_store.find_server("no-such-package", str(tmp_path))


def test_a_server_that_dies_is_quoted(home: Path) -> None:
    """A store whose data cannot be opened is one sentence with the server's own last words and its log."""
    blocked = home / "store" / "data" / "filerldb2"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder should be")
    with pytest.raises(
        LocalServiceFailed, match=r"^store stopped while it was starting \(.*filerldb2.*its log is /"
    ) as failure:
        embedded_store.up(home, spare_port())
    assert "\n" not in str(failure.value)
    assert embedded_store.status(home) is None


def test_a_server_without_a_record_is_left_in_peace(home: Path) -> None:
    """Where a server uses the data and its record is lost, a second one is refused and the first goes on working."""
    store = bucket_in(embedded_store.up(home, spare_port()))
    record = home / "run" / "store.json"
    aside = record.rename(home / "aside.json")
    with pytest.raises(LocalServiceFailed, match=r"/store/data is in use by a server .*: stop it first\.$"):
        embedded_store.up(home, spare_port())
    aside.rename(record)
    time.sleep(1)
    obstore.put(store, "key", CONTENT)
    assert obstore.get(store, "key").bytes() == CONTENT


def test_lost_credentials_are_one_sentence(home: Path) -> None:
    """Credentials that cannot be read while the store runs are named with the way out, which works."""
    embedded_store.up(home, spare_port())
    identities = home / "store" / "conf" / "s3.json"
    identities.write_text(json.dumps({"identities": []}))
    with pytest.raises(LocalServiceFailed, match=r"s3\.json does not hold the store's credentials: delete it, and"):
        embedded_store.status(home)
    identities.unlink()
    assert embedded_store.down(home)
    bucket_in(embedded_store.up(home, spare_port()))
