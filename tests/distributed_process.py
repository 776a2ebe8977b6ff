"""A rank of a distributed training, to be started by torchrun: ``torchrun … distributed_process.py '{"folder": …}'``.

Takes its store from the environment and its options as JSON. What it has to say, it adds line by line to a file named
after its rank in ``folder``: its process, its progress, at the end the finished run or the sentence of what ended it.
"""

import json
import logging
import os
import sys
from pathlib import Path

from pipeline import datasets, ranks, train
from pipeline.artifacts import TrainConfig
from pipeline.errors import SafelightError
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.zones import open_zones


def main() -> int:
    """Train; 0 when it finished."""
    options = json.loads(sys.argv[1])
    file = Path(options.pop("folder")) / os.environ["RANK"]

    def say(kind: str, text: object) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{kind}: {text}\n")

    def hear(progress: Progress) -> None:
        say("progress", f"{progress.stage} {progress.done} of {progress.total}")

    say("process", os.getpid())
    logging.basicConfig(filename=file, format="log: %(message)s", level=logging.INFO)
    zones = open_zones(Settings.from_environ(os.environ))
    dataset = datasets.latest(zones.datasets, options.pop("dataset"))
    config = TrainConfig.model_validate(options.pop("config"))
    silence_s = options.pop("silence_s", ranks.SILENCE_S)
    try:
        with ranks.joined(os.environ, silence_s=silence_s) as group, train.stop_on_sigterm() as should_stop:
            run = train.train(
                *(zones, dataset, config),
                device="cpu",
                group=group,
                on_progress=hear,
                should_stop=should_stop,
                **options,
            )
    except SafelightError as error:
        say(type(error).__name__, error)
        return 1
    say("finished", run.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
