import fnmatch
import json
from typing import Any

import pytest

from pipeline.settings import ZONES
from pipeline.store_users import BATCHES, RIGHTS, STORE_USERS, StoreUser, bucket, identities, policy


def _allows(document: dict[str, Any], action: str, resource: str) -> bool:
    """What IAM would answer: allowed where a statement names both."""
    arn = f"arn:aws:s3:::{resource}"
    return any(
        statement["Effect"] == "Allow"
        and action in statement["Action"]
        and any(fnmatch.fnmatchcase(arn, pattern) for pattern in statement["Resource"])
        for statement in document["Statement"]
    )


def _may(user: StoreUser, action: str) -> set[str]:
    """The zones in which ``user`` may do ``action`` to an object, or to the bucket itself."""
    document = policy(user)
    return {
        zone
        for zone in ZONES
        if _allows(document, f"s3:{action}", f"{bucket(zone)}/a/date=2026-11-22/key")
        or _allows(document, f"s3:{action}", bucket(zone))
    }


def test_serving_reads_models_and_writes_predictions_and_nothing_else() -> None:
    """The inference server can neither change a model nor read what was predicted."""
    assert _may("serving", "GetObject") == _may("serving", "ListBucket") == {"models"}
    assert _may("serving", "PutObject") == {"predictions"}
    assert _may("serving", "DeleteObject") == set()


def test_the_worker_writes_everything_but_predictions() -> None:
    """Predictions are for it to look at."""
    assert _may("worker", "GetObject") == set(ZONES)
    assert _may("worker", "PutObject") == _may("worker", "DeleteObject") == set(ZONES) - {"predictions"}


def test_the_log_of_predictions_is_written_by_serving_and_removed_from_the_command_line_alone() -> None:
    """Nobody rewrites it, who writes it removes nothing, and whom the pipeline runs as does neither."""
    assert {user for user in STORE_USERS if "predictions" in _may(user, "PutObject")} == {"serving"}
    assert {user for user in STORE_USERS if "predictions" in _may(user, "DeleteObject")} == {"cli"}


def test_batch_predictions_are_for_the_pipeline_to_write() -> None:
    """Worker and command line write and remove them, below a folder of their own; people read them."""
    key = f"{bucket('predictions')}/{BATCHES}/shapes/a/part-00000.parquet"

    def may(action: str) -> set[str]:
        return {user for user in STORE_USERS if _allows(policy(user), f"s3:{action}", key)}

    assert may("PutObject") == may("DeleteObject") == {"worker", "cli"}
    assert may("GetObject") == {"worker", "cli", "people"}


def test_people_read_all_and_change_images() -> None:
    """Past versions are for people to bring back."""
    assert _may("people", "GetObject") == _may("people", "GetObjectVersion") == set(ZONES)
    assert _may("people", "PutObject") == _may("people", "DeleteObject") == {"images"}


def test_who_waits_for_uploads_sees_names_alone() -> None:
    """It lists images and reads none."""
    assert _may("events", "ListBucket") == {"images"}
    assert _may("events", "GetObject") == _may("events", "PutObject") == set()


@pytest.mark.parametrize("user", STORE_USERS)
def test_nobody_administers(user: StoreUser) -> None:
    """No policy has a wildcard action, creates buckets, removes versions for good or changes what a bucket is."""
    document: Any = policy(user)
    actions = {action for statement in document["Statement"] for action in statement["Action"]}
    assert not [action for action in actions if "*" in action]
    forbidden = (
        "s3:CreateBucket",
        "s3:DeleteBucket",
        "s3:DeleteObjectVersion",
        "s3:PutBucket",
        "s3:PutLifecycle",
        "admin:",
    )
    assert not [action for action in actions if action.startswith(forbidden)]
    assert set(RIGHTS[user]) <= set(ZONES)


def test_seaweedfs_gets_the_same_policies() -> None:
    """Its file gives each user its policy and no action of SeaweedFS's own; its root alone may do everything."""
    file = json.loads(identities(("r", "rs"), {user: (f"{user}-key", f"{user}-secret") for user in STORE_USERS}))
    root, *users = file["identities"]
    assert root == {"name": "root", "credentials": [{"accessKey": "r", "secretKey": "rs"}], "actions": ["Admin"]}
    content = {each["name"]: json.loads(each["content"]) for each in file["policies"]}
    assert [each["name"] for each in users] == list(STORE_USERS)
    for each in users:
        assert "actions" not in each
        assert [content[name] for name in each["policyNames"]] == [policy(each["name"])]
        assert each["credentials"] == [{"accessKey": f"{each['name']}-key", "secretKey": f"{each['name']}-secret"}]
