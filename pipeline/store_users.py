"""Who may do what in the object store: one table, written as IAM policies.

- **The store's root is nobody's everyday user**: buckets and users are created with it at a start, by ``store_init``
  alone.
- ``write`` creates and replaces, ``delete`` removes; ``log`` is the former for the log of predictions, ``batches`` both
  for batch predictions. Buckets keep versions, so that removing leaves a marker; no user
  here may remove a version for good.
- **The log of predictions and the results of batches share a zone, and not the right to write**: whoever answers over
  HTTP cannot touch what a batch came to, and whoever computes batches cannot touch the log.
- SeaweedFS has the policies in its identities file, Silo gets them by its administration: the same text. SeaweedFS's
  own actions per bucket would not do: its ``Write`` also removes, versions and all, and changes a bucket's lifecycle.
"""

import json
from collections.abc import Mapping
from typing import Final, Literal, get_args

from pipeline.settings import Zone

Right = Literal["list", "read", "write", "delete", "history", "log", "batches"]
StoreUser = Literal["worker", "serving", "people", "cli", "events"]
STORE_USERS: tuple[StoreUser, ...] = get_args(StoreUser)

BATCHES: Final = "_batch"
"""The folder of batch predictions in the predictions zone."""

_ALL: frozenset[Right] = frozenset({"list", "read", "write", "delete"})
_SEEN: frozenset[Right] = frozenset({"list", "read"})
_PIPELINE: dict[Zone, frozenset[Right]] = {
    "images": _ALL,
    "datasets": _ALL,
    "checkpoints": _ALL,
    "models": _ALL,
    "predictions": _SEEN | {"batches"},
}
_PAST: frozenset[Right] = frozenset({"list", "read", "history"})

RIGHTS: Mapping[StoreUser, Mapping[Zone, frozenset[Right]]] = {
    "worker": _PIPELINE,
    # Whoever runs `safelight store gc` removes old predictions.
    "cli": _PIPELINE | {"predictions": _SEEN | {"batches", "delete"}},
    "serving": {"models": _SEEN, "predictions": frozenset({"log"})},
    "people": {
        "images": _ALL | _PAST,
        "datasets": _PAST,
        "checkpoints": _PAST,
        "models": _PAST,
        "predictions": _PAST,
    },
    "events": {"images": frozenset({"list"})},
}
"""What is not named here is refused."""

_ON_BUCKET: Mapping[Right, tuple[str, ...]] = {
    "list": ("GetBucketLocation", "ListBucket"),
    "write": ("ListBucketMultipartUploads",),
    "history": ("ListBucketVersions", "GetBucketVersioning"),
}
_ON_OBJECTS: Mapping[Right, tuple[str, ...]] = {
    "read": ("GetObject",),
    "write": ("AbortMultipartUpload", "ListMultipartUploadParts", "PutObject"),
    "delete": ("DeleteObject",),
    "history": ("GetObjectVersion",),
}
_IN_BATCHES: Mapping[Right, tuple[str, ...]] = {"batches": _ON_OBJECTS["write"] + _ON_OBJECTS["delete"]}
_IN_LOG: Mapping[Right, tuple[str, ...]] = {"log": ("PutObject",)}


def bucket(zone: Zone) -> str:
    """The bucket of a zone, in a store of our own."""
    return f"safelight-{zone}"


def policy(user: StoreUser) -> dict[str, object]:
    """The IAM policy of ``user``, as JSON would hold it."""
    statements = []
    for zone, rights in RIGHTS[user].items():
        statements += [
            _statement(_actions(_ON_BUCKET, rights), bucket(zone)),
            _statement(_actions(_ON_OBJECTS, rights), f"{bucket(zone)}/*"),
            _statement(_actions(_IN_BATCHES, rights), f"{bucket(zone)}/{BATCHES}/*"),
            _statement(_actions(_IN_LOG, rights), f"{bucket(zone)}/*/date=*"),
        ]
    return {"Version": "2012-10-17", "Statement": [statement for statement in statements if statement["Action"]]}


def identities(root: tuple[str, str], keys: Mapping[StoreUser, tuple[str, str]]) -> str:
    """SeaweedFS's identities file, as JSON: the store's root, and each user with its policy.

    Args:
        root: its access key and secret key.
        keys: the same of each user.
    """
    users = [_identity(user, key, policyNames=[f"safelight-{user}"]) for user, key in keys.items()]
    policies = [{"name": f"safelight-{user}", "content": json.dumps(policy(user))} for user in keys]
    return json.dumps(
        {"identities": [_identity("root", root, actions=["Admin"]), *users], "policies": policies}, indent=2
    )


def _statement(actions: list[str], resource: str) -> dict[str, object]:
    return {"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{resource}"]}


def _actions(names: Mapping[Right, tuple[str, ...]], rights: frozenset[Right]) -> list[str]:
    return sorted(f"s3:{name}" for right in rights for name in names.get(right, ()))


def _identity(name: str, key: tuple[str, str], **rights: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key[0], "secretKey": key[1]}], **rights}
