"""What only an administrator of the object store does, with the minio SDK: buckets, versioning, unfinished uploads.

Creating is idempotent, so that every entry point may ask for its buckets without knowing whether it is the first. No
right to create is needed for buckets that exist.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import urllib3
from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, Filter
from minio.credentials.providers import StaticProvider
from minio.error import InvalidResponseError, MinioAdminException, MinioException, S3Error, ServerError
from minio.lifecycleconfig import (
    AbortIncompleteMultipartUpload,
    Expiration,
    LifecycleConfig,
    NoncurrentVersionExpiration,
    Rule,
)
from minio.notificationconfig import NotificationConfig, QueueConfig
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


def expire_old_versions(
    endpoint: str,
    access_key: str,
    secret_key: str,
    region: str,
    names: Iterable[str],
    *,
    days: int,
    lives: Mapping[str, Mapping[str, int]] | None = None,
) -> None:
    """Have replaced and removed objects go for good, and unfinished uploads given up, after ``days``.

    Args:
        endpoint: of the store, as ``http://host:port``.
        access_key: of an administrator.
        secret_key: of the same.
        region: of the buckets.
        names: of the buckets.
        days: how long what was replaced or removed can be brought back.
        lives: by the name of a bucket and by how keys begin, after how many days such an object is removed.

    Raises:
        StoreError: the store refuses, or does not answer.
    """
    old = Rule(
        ENABLED,
        rule_filter=Filter(prefix=""),
        rule_id="safelight-old-versions",
        noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=days),
        abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=days),
    )
    for name in names:
        rules = [old, *(_end_of_life(*life) for life in (lives or {}).get(name, {}).items())]
        with (
            _explained(endpoint, name),
            _client(endpoint, access_key, secret_key, region, timeout_s=10) as client,
        ):
            client.set_bucket_lifecycle(name, LifecycleConfig(rules))


def _end_of_life(prefix: str, days: int) -> Rule:
    name = f"safelight-end-of-life-{prefix}"
    return Rule(ENABLED, rule_filter=Filter(prefix=prefix), rule_id=name, expiration=Expiration(days=days))


def announce_uploads(endpoint: str, access_key: str, secret_key: str, region: str, name: str, *, queue: str) -> None:
    """Have the store tell ``queue`` (an ARN that it knows) of each object that is written to or removed from a bucket.

    Raises:
        StoreError: the store knows no such queue, refuses for another reason, or does not answer.
    """
    events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
    config = NotificationConfig(queue_config_list=[QueueConfig(events, config_id="safelight-uploads", queue=queue)])
    with (
        _explained(endpoint, name),
        _client(endpoint, access_key, secret_key, region, timeout_s=10) as client,
    ):
        client.set_bucket_notification(name, config)


def set_user(
    endpoint: str,
    access_key: str,
    secret_key: str,
    region: str,
    name: str,
    *,
    key: tuple[str, str],
    policy: dict[str, object],
) -> None:
    """Create a user of a MinIO, or give it a new secret, with ``policy`` as all that it may do.

    Args:
        endpoint: of the store, as ``http://host:port``.
        access_key: of its root.
        secret_key: of the same.
        region: of the buckets.
        name: of the policy.
        key: access key of the user, which is its name, and its secret key from now on.
        policy: an IAM policy, as JSON would hold it.

    Raises:
        AccessDenied: the credentials are not an administrator's.
        StoreUnavailable: no store answers there.
        StoreError: it has no such interface, or refuses for another reason.
    """
    url = urlsplit(endpoint)
    with _pool(timeout_s=10) as pool, _administered(endpoint, name):
        admin = MinioAdmin(
            endpoint=url.netloc,
            credentials=StaticProvider(access_key, secret_key),
            secure=url.scheme == "https",
            region=region,
            http_client=pool,
        )
        admin.policy_add(f"safelight-{name}", policy=policy)
        admin.user_add(*key)
        admin.policy_set(f"safelight-{name}", user=key[0])


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
    with _pool(timeout_s) as pool:
        yield Minio(
            url.netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=url.scheme == "https",
            region=region,
            http_client=pool,
        )


def _pool(timeout_s: float) -> urllib3.PoolManager:
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=min(5, timeout_s), read=timeout_s),
        retries=False,  # silent; who calls has a patience that speaks
        cert_reqs="CERT_REQUIRED",  # against the system's authorities, or those in SSL_CERT_FILE
    )


@contextmanager
def _administered(endpoint: str, name: str) -> Iterator[None]:
    """Turn what the administrator's SDK raises into one sentence."""
    try:
        yield
    except MinioAdminException as error:
        status = int(error._code)  # noqa: SLF001 - it has no public one
        if status >= 500:
            raise _absent(endpoint) from error
        if status in {401, 403}:
            raise AccessDenied(f"{endpoint} refuses its root's credentials: run `make up` again.") from error
        raise StoreError(
            f"{endpoint} refuses the user {name} (status {status}): it has no administration like MinIO's; create its "
            "users as docs/operations.md says."
        ) from error
    except (urllib3.exceptions.HTTPError, MinioException) as error:
        raise _absent(endpoint) from error


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
        raise StoreError(f"{endpoint} refuses to set the bucket {name} up: {error.code}.") from error
    except (urllib3.exceptions.HTTPError, ServerError, InvalidResponseError) as error:
        raise _absent(endpoint) from error
    except ValueError as error:
        raise InvalidSettings(f"The bucket {name!r} at {endpoint} cannot be addressed: {error}.") from error


def _absent(endpoint: str) -> StoreUnavailable:
    return StoreUnavailable(f"No S3 object store answers at {endpoint}: start it, or correct SAFELIGHT_S3_ENDPOINT.")
