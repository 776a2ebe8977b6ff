"""``python -m pipeline.upload_events``: what is uploaded to the images zone starts a run of ``pipeline``.

- **The listing is the truth**, looked at every few seconds; what a store's webhook says only makes the look sooner. So
  nothing is lost while this process, the store or the Prefect server is away, and any object store will do.
- Which batch of a dataset had its run is a variable of the Prefect server: no right to write to the store is needed.
- **A batch is an event and a run.** The event (``safelight.images.uploaded``) is there for people's own automations.
  The run is asked for directly, with the batch as its idempotency key: Prefect's automations on SQLite were seen to
  start none, or four, for one event.
- What is stored when this runs for the first time is where it begins: nothing is trained for that.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from uuid import NAMESPACE_URL, uuid5

from pydantic import TypeAdapter, ValidationError

from pipeline import console, upload_batches, upload_hints
from pipeline.artifacts import Name, utc_now
from pipeline.errors import PrefectUnavailable, SafelightError, StoreError
from pipeline.fashion_mnist import NAME as FASHION_MNIST
from pipeline.prefect_api import PrefectApi
from pipeline.settings import Settings
from pipeline.store import Store, open_store, patience_with
from pipeline.upload_batches import NOTHING, Batch, Change, Content, Rules

log = logging.getLogger("pipeline.upload_events")  # also where it is run as __main__

FLOW = "pipeline"
EVENT = "safelight.images.uploaded"
TAGS = ("safelight", "uploaded")
VARIABLE = "safelight-uploads"
"""Set once the watching has begun; the same with a dataset's name behind it holds its last batch."""
WELL_S = 300.0
"""A look that is older than this, in seconds, is a fault of this process."""
HINT_S = 1.0
"""How long hints are gathered before the look that they make sooner."""


def main() -> int:
    """Watch until stopped; the status to exit with."""
    console.log_to_stderr(verbose=True)
    try:
        settings = Settings.from_environ(os.environ)
        images = open_store(settings.zone_url("images"), settings, patience_with(settings))
        watch = Watch(images, PrefectApi(os.environ), Rules(settings.uploads_quiet_s, settings.uploads_longest_s))
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: watch.stop())
        _listen(settings, watch)
        watch.run(settings.uploads_poll_s)
    except SafelightError as error:
        return console.exit_status(error)
    return 0


class Watch:
    """What has changed in each dataset, and which batches had their run."""

    def __init__(self, images: Store, prefect: PrefectApi, rules: Rules) -> None:
        self._images = images
        self._prefect = prefect
        self._rules = rules
        self._known: dict[str, Batch | None] = {}
        self._changes: dict[str, Change] = {}
        self._begun = False
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._looked = time.monotonic()

    def hint(self) -> None:
        """Look soon."""
        self._wake.set()

    def stop(self) -> None:
        """End ``run``."""
        self._stopped.set()
        self._wake.set()

    def is_well(self) -> bool:
        """Whether a look came to its end not long ago."""
        return time.monotonic() - self._looked < WELL_S

    def run(self, poll_s: float) -> None:
        """Look at everything every ``poll_s`` seconds, and at what was hinted at sooner, until stopped."""
        while not self._stopped.is_set():
            begun = time.monotonic()
            try:
                self.look()
            except (StoreError, PrefectUnavailable) as error:
                log.warning("%s Looking again in %.0f s.", error, poll_s)
            self._looked = time.monotonic()
            cost_s = self._looked - begun
            if self._wake.wait(upload_batches.next_look_s(self._changes, self._rules, poll_s, cost_s)):
                self._stopped.wait(max(HINT_S, upload_batches.IDLE_FACTOR * cost_s))
                self._wake.clear()

    def look(self) -> None:
        """Look at what is stored, and start a run for each batch that is complete.

        Raises:
            StoreError: the store did not answer.
            PrefectUnavailable: the Prefect server did not.
        """
        found = upload_batches.contents(self._images.listing())
        found = {dataset: content for dataset, content in found.items() if _is_name(dataset)}
        if not self._begun:
            self._begin(found)
        now = time.monotonic()
        self._changes = {
            dataset: change
            for dataset in found.keys() | self._changes.keys()
            if (change := self._change(dataset, found.get(dataset, NOTHING), now)) is not None
        }
        due = [name for name, change in self._changes.items() if upload_batches.is_due(change, self._rules, now)]
        if due:
            self._start(due)

    def _change(self, dataset: str, content: Content, now: float) -> Change | None:
        return upload_batches.seen(self._changes.get(dataset), self._last_batch(dataset), content, now)

    def _begin(self, found: Mapping[str, Content]) -> None:
        """The first time ever: what is stored by now is batch 0 of its dataset."""
        if self._prefect.variable(VARIABLE) is None:
            for dataset, content in found.items():
                if self._last_batch(dataset) is None:
                    self._keep(dataset, Batch(number=0, digest=content.digest))
            self._prefect.set_variable(VARIABLE, f"since {utc_now():%Y-%m-%d %H:%M} UTC")
        self._begun = True

    def _start(self, due: Iterable[str]) -> None:
        """A run for each of these datasets; one that has a run under way waits for its end."""
        deployment = self._prefect.deployment(FLOW)
        busy = {parameters.get("dataset", FASHION_MNIST) for parameters in self._prefect.unfinished(deployment)}
        for dataset in due:
            if dataset in busy:
                log.info("%s has changed; its run under way is waited for", dataset)
                continue
            change = self._changes.pop(dataset)
            batch = upload_batches.batch_of(change, self._last_batch(dataset))
            self._prefect.emit(_event(dataset, batch, change))
            run = self._prefect.start(deployment, {"dataset": dataset}, tags=TAGS, once=_key(dataset, batch))
            self._keep(dataset, batch)
            log.info("%s has changed (%d objects): run %s", dataset, change.content.objects, run)

    def _last_batch(self, dataset: str) -> Batch | None:
        if dataset not in self._known:
            value = self._prefect.variable(f"{VARIABLE}-{dataset}")
            self._known[dataset] = None if value is None else Batch.model_validate(value)
        return self._known[dataset]

    def _keep(self, dataset: str, batch: Batch) -> None:
        self._prefect.set_variable(f"{VARIABLE}-{dataset}", batch.model_dump())
        self._known[dataset] = batch


def _key(dataset: str, batch: Batch) -> str:
    return f"uploads/{dataset}/{batch.number}/{batch.digest}"


def _event(dataset: str, batch: Batch, change: Change) -> dict[str, object]:
    """What the Prefect server is told; the same batch is the same event."""
    return {
        "id": str(uuid5(NAMESPACE_URL, _key(dataset, batch))),
        "occurred": utc_now().isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"safelight.dataset.{dataset}", "prefect.resource.name": dataset},
        "payload": {"dataset": dataset, "batch": batch.number, "objects": change.content.objects},
    }


def _is_name(dataset: str) -> bool:
    try:
        TypeAdapter(Name).validate_python(dataset)
    except ValidationError:
        return False
    return True


def _listen(settings: Settings, watch: Watch) -> None:
    """Serve webhooks and health from a thread that ends with this process."""
    token = settings.uploads_token.get_secret_value() if settings.uploads_token else None
    server = upload_hints.Endpoint(
        (settings.uploads_host, settings.uploads_port),
        zone=settings.zone_url("images"),
        token=token,
        hint=watch.hint,
        is_well=watch.is_well,
    )
    threading.Thread(target=server.serve_forever, name="upload hints", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
