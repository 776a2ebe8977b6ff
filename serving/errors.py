"""What can keep the server from answering a call, beside a client's mistake; a branch of ``pipeline.errors``' tree.

::

    SafelightError
    ├── NothingLive        no version answers at this moment: 503
    ├── Overloaded         the answer would come too late, so it is refused at once: 429
    ├── DeadlineExceeded   the call's own deadline has passed: 504
    ├── ClientGone         nobody is there any more to be answered
    ├── ModelFailed        the model raised on this input: 500
    └── Unauthorized       no key, or one that is not good: 401
"""

from pipeline.errors import SafelightError


class NothingLive(SafelightError):
    """No version answers at this moment."""


class Overloaded(SafelightError):
    """More is waiting than can be answered in time.

    Attributes:
        retry_after_s: when to come again, in whole seconds.
    """

    def __init__(self, text: str, retry_after_s: int) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(SafelightError):
    """The client said until when an answer is of use, and that has passed."""


class ClientGone(SafelightError):
    """The client left before its turn came."""


class ModelFailed(SafelightError):
    """The model raised instead of answering."""


class Unauthorized(SafelightError):
    """A request without a key, or with one that is not good.

    Attributes:
        challenge: the value of WWW-Authenticate.
    """

    def __init__(self, text: str, challenge: str) -> None:
        super().__init__(text)
        self.challenge = challenge
