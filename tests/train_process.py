"""Training in a process of its own, so that it can be killed: ``python train_process.py '{"dataset": …}'``.

Takes its store from the environment and its options as JSON; prints a line per progress report, and at the end the
finished run, or the sentence of what ended it.
"""

import json
import logging
import os
import sys

from pipeline import datasets, train
from pipeline.artifacts import TrainConfig
from pipeline.errors import SafelightError
from pipeline.progress import Progress
from pipeline.settings import Settings
from pipeline.zones import open_zones


def say(kind: str, text: str) -> None:
    """One line to whoever started this process."""
    print(f"{kind}: {text}", flush=True)  # noqa: T201 - that is how it talks


def hear(progress: Progress) -> None:
    """Pass a progress report on."""
    say("progress", f"{progress.stage} {progress.done}")


def main() -> int:
    """Train; 0 when it finished."""
    logging.basicConfig(stream=sys.stdout, format="log: %(message)s", level=logging.INFO)
    options = json.loads(sys.argv[1])
    zones = open_zones(Settings.from_environ(os.environ))
    dataset = datasets.latest(zones.datasets, options.pop("dataset"))
    config = TrainConfig.model_validate(options.pop("config"))
    try:
        with train.stop_on_sigterm() as should_stop:
            run = train.train(
                zones, dataset, config, device="cpu", on_progress=hear, should_stop=should_stop, **options
            )
    except SafelightError as error:
        say(type(error).__name__, str(error))
        return 1
    say("finished", run.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
