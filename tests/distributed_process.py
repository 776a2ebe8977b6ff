"""A rank of a distributed training, to be started by torchrun: ``torchrun … distributed_process.py '{"dataset": …}'``.

Takes its store from the environment and its options as JSON. It says who it is and how many images it loaded, and at
the end which run was finished, or the sentence of what ended it.
"""

import json
import logging
import os
import sys

from train_process import hear, say

from pipeline import datasets, ranks, train
from pipeline.artifacts import TrainConfig
from pipeline.errors import SafelightError
from pipeline.settings import Settings
from pipeline.zones import open_zones


def main() -> int:
    """Train; 0 when it finished."""
    options = json.loads(sys.argv[1])
    zones = open_zones(Settings.from_environ(os.environ))
    dataset = datasets.latest(zones.datasets, options.pop("dataset"))
    config = TrainConfig.model_validate(options.pop("config"))
    silence_s = options.pop("silence_s", ranks.SILENCE_S)
    try:
        with ranks.joined(os.environ, silence_s=silence_s) as group, train.stop_on_sigterm() as should_stop:
            who = f"{group.rank} of {group.world}"
            logging.basicConfig(stream=sys.stdout, format=f"log of {who}: %(message)s", level=logging.INFO)
            say(f"rank {group.rank}", str(os.getpid()))
            run = train.train(
                *(zones, dataset, config),
                device="cpu",
                group=group,
                on_progress=hear,
                should_stop=should_stop,
                **options,
            )
    except SafelightError as error:
        say(f"{type(error).__name__} at {os.environ.get('RANK', 'the only one')}", str(error))
        return 1
    say(f"finished by {group.rank}", run.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
