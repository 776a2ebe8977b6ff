"""wrk asking an object store: requests that are made and signed beforehand, answers that are thrown away.

It comes from the system's packages (``apt-get install wrk``, ``brew install wrk``).
"""

import json
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio
from minio.credentials.credentials import Credentials
from minio.helpers import sha256_hash
from minio.signer import sign_v4_s3
from minio.time import to_amz_date, utcnow

from benchmarks.own_store import credentials, endpoint
from pipeline.settings import Settings

CONNECTIONS = 32
SECONDS = 3
WALK = "local at = 0\nfunction request() at = at % #requests + 1 return requests[at] end\n"


def write_script(path: Path, requests: Sequence[str]) -> Path:
    """A script of wrk's that sends one request after the other, over and over."""
    lines = ",\n".join(json.dumps(request) for request in requests)
    path.write_text(f"local requests = {{\n{lines}\n}}\n{WALK}", encoding="utf-8")
    return path


def answered(settings: Settings, script: Path) -> int:
    """How many requests the store answered in about ``SECONDS``."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), endpoint(settings).geturl()]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"The store did not answer all of wrk's requests:\n{said}")
    return int(said.partition(" requests in ")[0].split()[-1])


def signed(settings: Settings, bucket: str, keys: Sequence[str]) -> list[str]:
    """Requests whose headers are signed, as the product's are; valid for 15 minutes."""
    now, nothing, at = utcnow(), sha256_hash(b""), endpoint(settings)
    requests = []
    for key in keys:
        url = at._replace(path=f"/{bucket}/{key}")
        headers = sign_v4_s3(
            method="GET",
            url=url,
            region=settings.s3_region,
            headers={"Host": at.netloc, "x-amz-content-sha256": nothing, "x-amz-date": to_amz_date(now)},
            credentials=Credentials(*credentials(settings)),
            content_sha256=nothing,
            date=now,
        )
        lines = [f"GET {url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        requests.append("\r\n".join([*lines, "", ""]))
    return requests


def presigned(sdk: Minio, bucket: str, keys: Sequence[str]) -> list[str]:
    """Requests whose signature is in their URL."""
    hour = timedelta(hours=1)
    urls = (urlsplit(sdk.presigned_get_object(bucket, key, expires=hour)) for key in keys)
    return [f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n" for url in urls]
