"""What obstore's errors mean: which of ours each is, and what is wrong; some of it they tell by their text alone."""

from obstore import exceptions

from pipeline.errors import (
    AccessDenied,
    Conflict,
    InvalidSettings,
    ObjectMissing,
    SafelightError,
    StoreError,
    StoreUnavailable,
)

METADATA_SERVICE = "169.254.169.254"
"""Where obstore looks for the credentials of a machine in a cloud when it was given none."""
NO_CREDENTIALS = (
    "no credentials are set: give SAFELIGHT_S3_ACCESS_KEY_ID and SAFELIGHT_S3_SECRET_ACCESS_KEY, or AWS's own variables"
)
PASSING = ("status code: 408", "status code: 429", "<Code>RequestTimeout</Code>")
"""Refusals that say: later."""
STRANGE = (
    "<Code>SignatureDoesNotMatch<",
    "<Code>InvalidAccessKeyId<",
    "<Code>AccessDenied<",
    "(code: AccessDenied)",  # of one key among several that were to be removed
)
"""Refusals of credentials, which obstore tells from others for some requests only."""


def meaning(error: Exception, *, reading: bool) -> tuple[type[SafelightError], str]:
    """Which of our errors an error of obstore's is, and what is wrong, as a clause.

    Args:
        error: what obstore raised.
        reading: whether it came of a request that reads; a key that no object can have is then a missing object.
    """
    kind, what = _row(error, reading=reading)
    return kind, what + _code(error)


def _row(error: Exception, *, reading: bool) -> tuple[type[SafelightError], str]:  # noqa: PLR0911 - a table
    text = str(error)
    if "NoSuchBucket" in text:
        return InvalidSettings, "there is no such bucket; create it or correct the URL"
    if METADATA_SERVICE in text:
        return InvalidSettings, NO_CREDENTIALS
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return Conflict, "another writer was there first"
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if denied or any(code in text for code in STRANGE):
        return AccessDenied, "the store refuses these credentials"
    if isinstance(error, NotImplementedError):
        return InvalidSettings, "this kind of store lacks conditional writes; use an S3 service"
    if isinstance(error, FileNotFoundError) or (reading and isinstance(error, ValueError)):
        return ObjectMissing, "there is no such object"
    if isinstance(error, ValueError):
        return StoreError, f"this key cannot be stored: {first_line(error)}"
    if "status code: 4" in text and not any(passing in text for passing in PASSING):
        return StoreError, "the store refuses the request"
    return StoreUnavailable, "the object store does not answer"


def first_line(error: Exception) -> str:
    """The first line of an error's text, without a full stop."""
    return str(error).partition("\n")[0].rstrip(".")


def _code(error: Exception) -> str:
    """The S3 error code inside an error's text, as `` (Code)``, or nothing."""
    _, found, rest = str(error).partition("<Code>")
    return f" ({rest.partition('<')[0]})" if found else ""
