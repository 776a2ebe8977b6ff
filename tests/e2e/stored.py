"""What is in the stack's object store, read with the credentials that are made for people."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr

from pipeline import aliases, registry, training_runs
from pipeline.artifacts import TrainingRun
from pipeline.settings import Settings, Zone
from pipeline.store import Store, open_store


@dataclass(frozen=True)
class Stored:
    """One object store, as a user with these credentials sees it."""

    endpoint: str
    access_key: str
    secret_key: str
    model: str

    def zone(self, zone: Zone) -> Store:
        """A zone, opened without patience."""
        settings = Settings(
            s3_endpoint=self.endpoint,
            s3_access_key_id=SecretStr(self.access_key),
            s3_secret_access_key=SecretStr(self.secret_key),
            store_patience_s=0,
        )
        return open_store(settings.zone_url(zone), settings)

    def versions(self) -> list[str]:
        """The model's versions, the oldest first."""
        return sorted(each.version for each in registry.versions(self.zone("models"), self.model))

    def first_live_at(self) -> datetime:
        """When the alias pointed at a version for the first time."""
        found = aliases.read_alias(self.zone("models"), self.model, aliases.CHAMPION)
        assert found
        return found[0].history[0].changed_at

    def champions(self) -> list[str]:
        """The versions that the alias has pointed at, in order; the last one is the champion."""
        found = aliases.read_alias(self.zone("models"), self.model, aliases.CHAMPION)
        return [each.version for each in found[0].history if each.version] if found else []

    def training_runs(self, seed: int) -> list[TrainingRun]:
        """The finished training runs of a seed."""
        checkpoints = self.zone("checkpoints")
        finished = [run for run in checkpoints.folders() if training_runs.is_finished(checkpoints, run)]
        return [run for run in (training_runs.find(checkpoints, each) for each in finished) if run.config.seed == seed]
