"""What only an administrator of the object store does, with the minio SDK: buckets, versioning, unfinished uploads.

Creating is idempotent, so that every entry point may ask for its buckets without knowing whether it is the first. No
right to create is needed for buckets that exist.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.versioningconfig import VersioningConfig
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from pipeline.errors import AccessDenied, InvalidSettings, StoreError, StoreUnavailable

REFUSALS = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"}
MEETINGS = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted", "NoSuchBucket"}
"""What stores answer when two create the same bucket at once; SeaweedFS even says NoSuchBucket, rarely."""


def create_buckets(
    endpoint: str,
    access_key: str,
    secret_key: str,
    region: str,
    names: Iterable[str],
    *,
    versioning: bool = False,
) -> None:
    """Create those buckets that do not exist yet; with ``versioning``, all of them keep every version from now on.

    Args:
        endpoint: of the store, as ``http://host:port``.
        access_key: of an identity that may create buckets.
        secret_key: of the same.
        region: of the buckets.
        names: of the buckets.
        versioning: keep replaced and deleted objects as versions.

    Raises:
        InvalidSettings: the endpoint or a name cannot be one.
        AccessDenied: the credentials are unknown, or may not create a bucket.
        StoreUnavailable: no S3 store answers there.
        StoreError: it refuses for another reason.
    """
    _refuse_odd(endpoint)
    again = Retrying(
        retry=retry_if_exception(_met_another), stop=stop_after_attempt(8), wait=wait_random(0.05, 0.3), reraise=True
    )
    for name in names:
        with (
            _explained(endpoint, name),
            _client(endpoint, access_key, secret_key, region, timeout_s=10) as client,
        ):
            again(_create, client, name)
            if versioning:
                client.set_bucket_versioning(name, VersioningConfig(ENABLED))


def answers(endpoint: str, access_key: str, secret_key: str, region: str) -> bool:
    """Whether an S3 store answers there and accepts these credentials, right now."""
    try:
        with _client(endpoint, access_key, secret_key, region, timeout_s=2) as client:
            client.list_buckets()
    except (MinioException, urllib3.exceptions.HTTPError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that was neither finished nor given up: it takes space, and no listing of objects shows it."""

    key: str
    id: str
    begun: datetime


def unfinished_uploads(
    endpoint: str, access_key: str, secret_key: str, region: str, *, bucket: str, prefix: str
) -> list[Upload]:
    """Unfinished uploads to keys that begin with ``prefix``, a thousand at most.

    Raises:
        StoreError: the store cannot list them, or does not answer.
    """
    with _told(endpoint, bucket), _client(endpoint, access_key, secret_key, region, timeout_s=30) as client:
        # The SDK has the request, but no public method for it.
        found = client._list_multipart_uploads(bucket, prefix=prefix)  # noqa: SLF001
    return [
        Upload(each.object_name, each.upload_id, each.initiated_time)
        for each in found.uploads
        if each.upload_id and each.initiated_time
    ]


def abort_uploads(
    endpoint: str, access_key: str, secret_key: str, region: str, *, bucket: str, uploads: Iterable[Upload]
) -> None:
    """Give unfinished uploads up, which frees what their parts take.

    Raises:
        StoreError: the store refuses, or does not answer.
    """
    with _told(endpoint, bucket), _client(endpoint, access_key, secret_key, region, timeout_s=30) as client:
        for upload in uploads:
            client._abort_multipart_upload(bucket, upload.key, upload.id)  # noqa: SLF001 - as above


@contextmanager
def _told(endpoint: str, bucket: str) -> Iterator[None]:
    try:
        yield
    except (MinioException, urllib3.exceptions.HTTPError, ValueError) as error:
        why = error.code if isinstance(error, S3Error) else type(error).__name__
        raise StoreError(f"Unfinished uploads to {bucket} at {endpoint} cannot be handled: {why}.") from error


def _refuse_odd(endpoint: str) -> None:
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"} or not url.netloc or url.path.strip("/"):
        raise InvalidSettings(f"SAFELIGHT_S3_ENDPOINT: {endpoint!r} is not of the form http://host:port.")


def _create(client: Minio, name: str) -> None:
    if not client.bucket_exists(name):
        client.make_bucket(name)


def _met_another(error: BaseException) -> bool:
    """Whether somebody else was creating the bucket at the same moment, so that a second look decides."""
    return isinstance(error, S3Error) and error.code in MEETINGS


@contextmanager
def _client(endpoint: str, access_key: str, secret_key: str, region: str, *, timeout_s: float) -> Iterator[Minio]:
    """A client that gives up in time (the SDK's own waits for minutes) and closes its connections."""
    url = urlsplit(endpoint)
    with urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=min(5, timeout_s), read=timeout_s),
        retries=False,  # silent; who calls has a patience that speaks
        cert_reqs="CERT_REQUIRED",  # against the system's authorities, or those in SSL_CERT_FILE
    ) as pool:
        yield Minio(
            url.netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=url.scheme == "https",
            region=region,
            http_client=pool,
        )


@contextmanager
def _explained(endpoint: str, name: str) -> Iterator[None]:
    """Turn what the SDK raises into one sentence."""
    try:
        yield
    except S3Error as error:
        if error.response is not None and error.response.status >= 500:
            raise _absent(endpoint) from error
        if error.code in REFUSALS:
            raise AccessDenied(
                f"{endpoint} refuses these credentials the bucket {name} ({error.code}): correct them, have the bucket "
                "created, or name one that they may use with SAFELIGHT_STORE_URL=s3://bucket/prefix."
            ) from error
        raise StoreError(f"The bucket {name} cannot be created at {endpoint}: {error.code}.") from error
    except (urllib3.exceptions.HTTPError, ServerError, InvalidResponseError) as error:
        raise _absent(endpoint) from error
    except ValueError as error:
        raise InvalidSettings(f"The bucket {name!r} at {endpoint} cannot be addressed: {error}.") from error


def _absent(endpoint: str) -> StoreUnavailable:
    return StoreUnavailable(f"No S3 object store answers at {endpoint}: start it, or correct SAFELIGHT_S3_ENDPOINT.")
