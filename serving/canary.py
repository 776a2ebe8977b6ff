"""Which of two versions a request goes to: the champion, or the challenger that gets a share of the requests.

- **A caller sticks to its version**: what decides is a hash of the caller, so all processes and replicas agree without
  a word. Who is in at one per cent is in at ten: a larger share only adds callers.
- The challenger's version goes into the hash, so that not the same callers are asked to try every new version.
- A ``split`` challenger answers its share itself; a ``shadow`` one gets a copy, and the champion answers.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from serving.counts import Role
from serving.live_model import LiveModel

Mode = Literal["split", "shadow"]

HASH_BYTES: Final = 6
RANGE: Final = float(1 << 8 * HASH_BYTES)
"""Of the hash: few enough bits that a float holds each value exactly, so that no position is ever rounded up to 1."""


@dataclass(frozen=True, slots=True)
class Lineup:
    """What one process answers with in one generation.

    Attributes:
        champion: None where nothing is live.
        challenger: None where there is none, or where this process could not load it.
        share: of the callers, from 0 to 1.
        step: of the ramp.
    """

    champion: LiveModel | None
    challenger: LiveModel | None = None
    share: float = 0.0
    mode: Mode = "split"
    step: int = 0

    def choose(self, caller: str) -> tuple[LiveModel | None, Role]:
        """The model that answers this caller, and which one that is."""
        if self.challenger is not None and self.mode == "split" and self._is_in(self.challenger, caller):
            return self.challenger, "challenger"
        return self.champion, "champion"

    def shadow(self, caller: str) -> LiveModel | None:
        """The model that gets a copy of what this caller sends, if any does."""
        if self.challenger is not None and self.mode == "shadow" and self._is_in(self.challenger, caller):
            return self.challenger
        return None

    def _is_in(self, challenger: LiveModel, caller: str) -> bool:
        return position(challenger.manifest.version, caller) < self.share


NOTHING: Final = Lineup(None)


def position(challenger: str, caller: str) -> float:
    """Where a caller stands in the queue of those who get to know a challenger: uniform, 0 <= position < 1."""
    name = caller.encode(errors="surrogatepass")
    digest = hashlib.blake2b(name, digest_size=HASH_BYTES, key=challenger.encode()).digest()
    return int.from_bytes(digest) / RANGE
