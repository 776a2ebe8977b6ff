"""What the processes of a replica tell each other: the records that lie on the board."""

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from pipeline.aliases import Canary
from serving.schemas import SwapError


class PreparedCanary(BaseModel):
    """A version to answer a share of the requests with, and where its verified bytes lie.

    Attributes:
        asked: what the alias said of it.
        file: which of the shelf's files holds it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: Canary
    file: int


class Prepared(BaseModel):
    """A version to answer with, and where its verified bytes lie; with it, perhaps, another one for a share.

    Attributes:
        generation: its number; 0 for the state before anything was live.
        version: None to answer with nothing, because the alias was withdrawn.
        file: which of the shelf's files holds it; None where none is needed.
        canary: the challenger, its share and its bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: int = 0
    version: str | None = None
    file: int | None = None
    canary: PreparedCanary | None = None

    @property
    def asked(self) -> Canary | None:
        """What the alias said of the challenger."""
        return self.canary.asked if self.canary else None

    @property
    def files(self) -> Mapping[str, int]:
        """Which of the shelf's files holds which version."""
        canary = {self.canary.asked.challenger: self.canary.file} if self.canary else {}
        return canary | ({self.version: self.file} if self.version and self.file is not None else {})


class RoleCounts(BaseModel):
    """How one of the two versions did.

    Attributes:
        buckets: requests that it answered, by how long that took; the bounds are ``counts.SECONDS``.
        seconds: all of these together.
        failures: requests at which it raised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    buckets: tuple[int, ...]
    seconds: float
    failures: int


class CanaryCounts(BaseModel):
    """What a canary is judged by, over all processes; at any moment only ever more.

    Attributes:
        compared: images that both versions saw.
        disagreed: those of them in which each saw another class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: RoleCounts
    challenger: RoleCounts
    compared: int
    disagreed: int


class Baseline(BaseModel):
    """What had been counted when a challenger went live; what its canary is judged by begins there.

    Attributes:
        challenger: whose.
        started_at: of the alias's canary; the same challenger may come a second time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    challenger: str
    started_at: datetime
    counts: CanaryCounts

    def is_of(self, canary: Canary) -> bool:
        """Whether it was taken when this canary's challenger went live."""
        return (self.challenger, self.started_at) == (canary.challenger, canary.started_at)


class Agreement(BaseModel):
    """What the coordinator says: what answers, what is to come, and why nothing newer does.

    Attributes:
        since: when the champion went live.
        error: why the champion is not what the alias says.
        canary_error: why the challenger that the alias names gets no requests.
        swaps: champions that went live.
        baseline: of the last challenger that went live.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    live: Prepared = Prepared()
    proposed: Prepared | None = None
    since: datetime | None = None
    error: SwapError | None = None
    canary_error: SwapError | None = None
    swaps: int = 0
    swap_failures: int = 0
    baseline: Baseline | None = None


class Report(BaseModel):
    """What one process says of itself.

    Attributes:
        held: version by generation: what it can answer with.
        challengers: version by generation: what it can answer a share with.
        refused: why not, by generation.
        draining: it will end soon, and wants no more work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int = 0
    held: Mapping[int, str | None] = {}
    challengers: Mapping[int, str] = {}
    refused: Mapping[int, str] = {}
    draining: bool = False
