"""Makes the object store of the stack ready, as its root: buckets that keep versions, users, and what each may do.

One shot at each start, and idempotent: what is there already is only confirmed, a rotated key replaces the old one.
SeaweedFS reads its users from the file that ``stack_secrets`` writes, so there only the buckets are made; they keep no
versions, because it loses its place in the listing of a bucket that does (4.48; ``store_check`` proves it).
"""

import logging
import os
import string
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pipeline import buckets
from pipeline.errors import InvalidSettings, SafelightError
from pipeline.patience import Patience
from pipeline.settings import ZONES, Settings
from pipeline.store_users import STORE_USERS, StoreUser, bucket, policy

SECRETS = Path("/run/secrets/safelight")
KEPT_DAYS = 30
"""How long a replaced or removed object can be brought back; then it no longer takes space."""
LOGGED = string.digits + string.ascii_lowercase
"""What the name of a model, and so a key of the prediction log, begins with: a rule can say what it is for, but not
what it is not for. Batch predictions, whose keys begin with an underscore, are kept."""
WEBHOOK = "arn:minio:sqs::SAFELIGHT:webhook"
"""What Silo calls the webhook that ``stack_secrets`` configures."""


def initialise(
    settings: Settings, keys: Mapping[StoreUser, tuple[str, str]], *, versioning: bool = True, webhook: bool = False
) -> None:
    """Create buckets and, where ``keys`` are given, users with their policies; waits while the store starts.

    Args:
        settings: of the store, with its root's credentials.
        keys: access key and secret key of each user.
        versioning: the buckets keep what is replaced or removed, for ``KEPT_DAYS``; and the log of
            predictions goes after the days that the settings say.
        webhook: have the store tell of uploads.

    Raises:
        InvalidSettings: no endpoint or credentials are given.
        StoreError: the store stays away, or refuses.
    """
    if not (settings.s3_endpoint and settings.s3_access_key_id and settings.s3_secret_access_key):
        raise InvalidSettings(
            "SAFELIGHT_S3_ENDPOINT and the two credentials have to be set: they name the store and its root."
        )
    root = (
        settings.s3_endpoint,
        settings.s3_access_key_id.get_secret_value(),
        settings.s3_secret_access_key.get_secret_value(),
        settings.s3_region,
    )
    patience = Patience(settings.store_patience_s, "the object store")
    names = [bucket(zone) for zone in ZONES]
    patience(partial(buckets.create_buckets, *root, names, versioning=versioning), "creating the buckets")
    if versioning:
        kept = settings.predictions_retention_days
        lives = {bucket("predictions"): dict.fromkeys(LOGGED, kept)} if kept else {}
        bound = partial(buckets.expire_old_versions, *root, names, days=KEPT_DAYS, lives=lives)
        patience(bound, "bounding the age of old versions")
    for user, key in keys.items():
        add = partial(buckets.set_user, *root, user, key=key, policy=policy(user))
        patience(add, f"setting the rights of {user}")
    if webhook:
        announce = partial(buckets.announce_uploads, *root, bucket("images"), queue=WEBHOOK)
        patience(announce, "turning the events of uploads on")


def main() -> None:
    """Read settings and secrets, and do it; a failure is one sentence and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        administered = os.environ.get("STACK_STORE") != "seaweedfs"
        keys = _keys(SECRETS) if administered else {}
        initialise(
            Settings.from_environ(os.environ),
            keys,
            versioning=administered,
            webhook=os.environ.get("STACK_WEBHOOK") == "on",
        )
    except SafelightError as error:
        sys.exit(f"safelight: {error}")
    print(f"safelight: {len(ZONES)} buckets and {len(keys) or len(STORE_USERS)} users are ready.")


def _keys(folder: Path) -> dict[StoreUser, tuple[str, str]]:
    try:
        return {
            user: (
                (folder / f"{user}_access_key").read_text(encoding="utf-8").strip(),
                (folder / f"{user}_secret_key").read_text(encoding="utf-8").strip(),
            )
            for user in STORE_USERS
        }
    except OSError as error:
        raise InvalidSettings(f"{error.filename} cannot be read ({error.strerror}): run `make up` again.") from error


if __name__ == "__main__":
    main()
