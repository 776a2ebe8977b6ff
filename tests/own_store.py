"""An embedded store as tests look at it: its process, its ports, its buckets, and requests from outside."""

import http.client
import itertools
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from obstore.store import S3Store

from pipeline import buckets, embedded_store, processes, seaweedfs
from pipeline.embedded_store import Connection
from pipeline.processes import Service
from pipeline.seaweedfs import COMPONENTS, GRPC_OFFSET, SOCKETS

BUCKET = "treasure"
CONTENT = b"what only the owner may read"


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


def spare_port() -> int:
    """A port that is free, as are its neighbours and all their pairs, so that tests do not fight for the usual one."""
    while True:
        port = random.choice(seaweedfs.SPARE_PORTS)
        wanted = itertools.product(range(port, port + len(COMPONENTS)), (0, GRPC_OFFSET))
        if all(processes.is_free(port + offset) for port, offset in wanted):
            return port


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
