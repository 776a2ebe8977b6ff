"""A rank that streams its share: ``torchrun … streaming_rank.py '{"result": FILE, "config": …, "memory_mb": 0, …}'``.

It trains on the dataset ``pictures`` of the store that the environment names, and writes the finished run to ``FILE``
with its rank's number at the end.
"""

import json
import os
import sys
from pathlib import Path

from pipeline import datasets, ranks, train
from pipeline.artifacts import TrainConfig
from pipeline.settings import Settings
from pipeline.zones import open_zones


def main() -> None:
    """Train."""
    told = json.loads(sys.argv[1])
    zones = open_zones(Settings.from_environ(os.environ))
    config, result = TrainConfig.model_validate(told.pop("config")), told.pop("result")
    with ranks.joined(os.environ) as group:
        dataset = datasets.latest(zones.datasets, "pictures")
        run = train.train(zones, dataset, config, device="cpu", group=group, **told)
        Path(f"{result}{group.rank}").write_text(run.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
