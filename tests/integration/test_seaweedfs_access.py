"""SeaweedFS, real: nobody gets in without the credentials."""

import itertools
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import psutil
import pytest
from obstore.exceptions import BaseError
from own_store import (
    BUCKET,
    CONTENT,
    bucket_in,
    eventually,
    listening,
    objects,
    send,
    service_of,
    sockets_of,
    spare_port,
)

from pipeline import buckets, embedded_store, seaweedfs
from pipeline.processes import Service
from pipeline.seaweedfs import COMPONENTS, GRPC_OFFSET, SOCKETS

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
    line = [seaweedfs.find_server(), *options, "shell", *ports]
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
