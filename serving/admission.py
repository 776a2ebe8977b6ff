"""Who may wait: a queue that is bounded by the time it takes, and not by a number of requests.

- **The wait is known before it begins**: images that wait, times what an image took lately. Whoever would wait too long
  is refused at once, when trying elsewhere or later is still of use to them; so is whoever's own deadline is shorter,
  and, as long as the server is busy, who does not come later as it was told.
- **A burst may wait long, a standing queue may not.** As long as the server is not busy, ``BURST_S`` are allowed; then
  only as long as ``STANDING_IMAGES`` images take: a queue that never empties makes everybody wait and nothing quicker.
  (CoDel, Nichols & Jacobson 2012, in the form that Maurer gave it for servers in "Fail at Scale", ACM Queue 2015.
  They ask when the queue was empty last. Here it is empty after every batch, so the time spent computing tells.)
- Bytes are bounded too, since memory is.
"""

import math
from typing import Final

from serving.calls import Call
from serving.errors import DeadlineExceeded, Overloaded

BURST_S: Final = 0.25
STANDING_IMAGES: Final = 64
SHORTEST_S: Final = 0.004
LONGEST_S: Final = 2.0
"""Bounds of what a standing queue may take where no setting says it."""
LARGEST_BYTES: Final = 256 << 20
"""Of encoded images that wait in a process."""
MEMORY_IMAGES: Final = 64.0
"""So many images ago counts half as much."""
LOAD_S: Final = 0.1
BUSY: Final = 0.5
IDLE: Final = 0.3
"""Of the time: from where on a queue must be short, and up to where who comes too early is let in. What a request takes
beside its computation is not in it."""


class Admission:
    """What waits in one process, and whether more may; used by the event loop alone."""

    def __init__(self, longest_s: float | None) -> None:
        """``longest_s`` is what a queue may take, in seconds; None for what suits the model."""
        self._longest_s = longest_s
        self._image_s = 0.0
        self._last_end = 0.0
        self._load_then = 0.0
        self.images = 0
        self._bytes = 0

    def admit(self, call: Call, images: int, size: int, now: float) -> None:
        """Count a call in.

        Args:
            call: of a client.
            images: in it.
            size: of them all, in bytes.
            now: by the calls' clock.

        Raises:
            Overloaded: it would wait too long, or until its deadline.
            DeadlineExceeded: that has passed already.
        """
        wait = self.images * self._image_s
        if call.deadline is not None:
            self._refuse_late(call.deadline, now, wait + images * self._image_s)
        too_much = self.images and (wait > self._limit(now) or self._bytes + size > LARGEST_BYTES)
        if too_much or (call.early and self._load(now) > IDLE):
            after = max(1, math.ceil(wait))
            raise Overloaded("The server has more to do than it can answer in time; try again later.", after)
        self.images += images
        self._bytes += size

    @property
    def is_new(self) -> bool:
        """Whether it knows nothing yet of what an image takes."""
        return self._image_s == 0

    def expect(self, image_s: float) -> None:
        """What an image takes, in seconds, until that was measured."""
        self._image_s = image_s

    def leave(self, images: int, size: int) -> None:
        """Count a call out that was not computed."""
        self.images -= images
        self._bytes -= size

    def computed(self, images: int, begun: float, now: float) -> None:
        """Note how long ``images`` took, which began to wait, or to be computed, at ``begun``."""
        busy_s = now - max(begun, self._last_end)
        self._load_then, self._last_end = self._load(now) + busy_s / LOAD_S, now
        took = busy_s / images
        weight = images / (images + MEMORY_IMAGES) if self._image_s else 1.0
        self._image_s += weight * (took - self._image_s)

    def _load(self, now: float) -> float:
        """Which part of the last ``LOAD_S`` or so was spent computing."""
        return self._load_then * math.exp((self._last_end - now) / LOAD_S)

    def _limit(self, now: float) -> float:
        """How long the next one may wait, in seconds."""
        standing = self._longest_s or min(LONGEST_S, max(SHORTEST_S, STANDING_IMAGES * self._image_s))
        return standing if self._load(now) > BUSY else max(BURST_S, standing)

    def _refuse_late(self, deadline: float, now: float, wait: float) -> None:
        if now >= deadline:
            raise DeadlineExceeded("The deadline of this request has passed.")
        if now + wait > deadline:
            raise Overloaded("The answer would come after this request's deadline.", max(1, math.ceil(wait)))
