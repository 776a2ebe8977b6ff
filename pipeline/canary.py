"""The ramp: a challenger gets more and more of the requests, step by step, and none any more on the first doubt.

- **Where a ramp stands is in the alias** (``aliases.Canary``): killed at any point and repeated, it goes on at its
  step, whose counting begins again. Each change is a compare and swap against the state that this ramp made: whoever
  else changes the alias ends it, and the ramp touches nothing any more.
- **A step is judged by what all replicas counted together** (``canary_counts``), by ``canary_rule``; how it waits for
  that is in ``canary_step``.
- The last step, all of the requests, is the alias itself: it moves to the challenger, and whoever moves it (``deploy``)
  proves that.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

from pipeline import aliases, canary_counts, inference_server, parquet, proof, registry
from pipeline.aliases import CHAMPION, AliasState, Canary, Mode
from pipeline.artifacts import CanaryConfig, CanaryStep, utc_now
from pipeline.canary_step import Doubt, OnStep, Ramp, Step, size
from pipeline.errors import Conflict, DeployFailed
from pipeline.progress import OnProgress
from pipeline.proof import PREDICTIONS, Question
from pipeline.registry import ModelManifest
from pipeline.replicas import BACK_TIMEOUT_S, POLL_S, Replicas, Resolve
from pipeline.settings import Settings
from pipeline.store import Store
from pipeline.zones import Zones

SHARED = 100
"""Test images that both evaluations have to have in common, for the disagreement to be known from them."""

MOST_QUESTIONS = 256
"""Test images that are sent again and again, at most."""


class Stage(NamedTuple):
    """One step of a ramp, as it is planned."""

    share: float
    mode: Mode


def ramp_up(
    zones: Zones,
    settings: Settings,
    challenger: ModelManifest,
    config: CanaryConfig,
    before: tuple[AliasState, str],
    *,
    timeout_s: float,
    on_progress: OnProgress,
    on_step: OnStep,
    still_wanted: Callable[[], object],
    resolve: Resolve,
) -> tuple[AliasState, str]:
    """Let a version prove itself on a share of the requests; what the alias says after that, and its etag.

    Args:
        zones: the opened zones.
        settings: say where the server is, or where to start one.
        challenger: the version's manifest.
        config: steps, minimum and limits.
        before: what the alias says now, and its etag; it may be in the middle of this ramp.
        timeout_s: how long a replica may not answer, or not show the step, in seconds.
        on_progress: told in each round how many requests there are.
        on_step: told of each step.
        still_wanted: called in each round; raises where nobody wants the ramp to go on now.
        resolve: the addresses of a host.

    Raises:
        DeployFailed: the challenger gets nothing any more.
        CanaryHeld: there were too few requests to judge it by; it keeps its share.
        Conflict: somebody else changed the alias; nothing was done after that.
    """
    state, etag = before
    champion = registry.read_manifest(zones.models, challenger.model, str(state.version))
    server = inference_server.up(settings, challenger.model)
    with Replicas(server.url, resolve, server.headers) as replicas:
        made = Ramp(
            models=zones.models,
            challenger=challenger,
            config=config,
            replicas=replicas,
            questions=partial(questions, zones, challenger, config),
            expected=expected_disagreement(zones.models, champion, challenger, config),
            timeout_s=timeout_s,
            on_progress=on_progress,
            on_step=on_step,
            still_wanted=still_wanted,
        )
        return climb(made, state, etag)


def stages(config: CanaryConfig) -> list[Stage]:
    """The steps of a ramp, before the one that gives the challenger all requests."""
    split = [Stage(share, "split") for share in config.steps]
    return [Stage(1.0, "shadow"), *split] if config.shadow_first else split


def resumed(planned: Sequence[Stage], canary: Canary | None, challenger: str) -> int:
    """The step at which a ramp begins: where it stopped, or the first one.

    A canary that is no step of this ramp was set by hand: the ramp begins at the first step that gives no less.
    """
    if canary is None or canary.challenger != challenger:
        return 0
    if canary.step < len(planned) and planned[canary.step] == (canary.share, canary.mode):
        return canary.step
    if canary.mode == "shadow":
        return 0
    sizes = [number for number, stage in enumerate(planned) if stage.mode == "split"]
    return next((number for number in sizes if planned[number].share >= canary.share), sizes[-1])


def climb(ramp: Ramp, state: AliasState, etag: str) -> tuple[AliasState, str]:
    """Take the challenger through all steps; what the alias says after the last one, and its etag.

    Raises:
        DeployFailed: the challenger gets nothing any more.
        CanaryHeld: there were too few requests to judge it by; it keeps its share.
        Conflict: somebody else changed the alias; nothing was done after that.
    """
    planned, challenger = stages(ramp.config), ramp.challenger.version
    ours = state.canary if state.canary and state.canary.challenger == challenger else None
    started_at = ours.started_at if ours else utc_now()
    first = resumed(planned, ours, challenger)
    for number, stage in enumerate(planned[first:], first):
        canary = Canary(challenger=challenger, share=stage.share, mode=stage.mode, step=number, started_at=started_at)
        state, etag = _set(ramp, canary, f"canary: {challenger} gets {size(canary)}", etag)
        step = Step(ramp, canary, etag)
        try:
            step.last()
        except (Doubt, DeployFailed) as doubt:
            step.tell("back", str(doubt))
            _take_back(ramp, state, etag, f"had {size(canary)} and went back to none: {doubt}")
    return state, etag


def summary(step: CanaryStep) -> str:
    """A step in a line for a person."""
    times = [f"{each:,.1f} ms" if each is not None else "unknown" for each in (step.p95_ms, step.champion_p95_ms)]
    return (
        f"canary: {size(step)}, {step.outcome}: {step.requests:,} requests to the challenger with {step.errors:,} "
        f"errors and a 95th percentile of {times[0]} (champion: {step.champion_requests:,}, {step.champion_errors:,}, "
        f"{times[1]}), {step.disagreed:,} of {step.compared:,} images answered otherwise, in {step.seconds:,.0f} s."
    )


def expected_disagreement(
    models: Store, champion: ModelManifest, challenger: ModelManifest, config: CanaryConfig
) -> float:
    """Share of the test images on which the two disagree, as their evaluations stored it; from 0 to 1.

    Where they have hardly a test image in common, the most that their accuracies allow. If they disagree more often on
    those images that a ramp would send itself, which are as many of a rare class as of a frequent one, that counts.
    """
    one, two = (_answers(models, manifest) for manifest in (champion, challenger))
    digests, labels = list(two), [label for label, _ in two.values()]
    sent = {digests[position] for position in proof.spread(labels, _size_of_replay(config))}
    shared = one.keys() & two.keys()
    differing = {digest for digest in shared if one[digest][1] != two[digest][1]}
    known = len(shared) >= SHARED
    usual = (
        len(differing) / len(shared) if known else sum(1 - each.metrics["accuracy"] for each in (champion, challenger))
    )
    ours = len(differing & sent) / len(shared & sent) if shared & sent else 0.0
    return min(1.0, max(usual, ours))


def questions(zones: Zones, challenger: ModelManifest, config: CanaryConfig) -> list[Question]:
    """The smoke set, larger than for a proof: few images many times would say the same again and again."""
    return proof.smoke_set(zones, challenger, _size_of_replay(config))


def _size_of_replay(config: CanaryConfig) -> int:
    return max(proof.SMOKE_IMAGES, min(config.minimum_requests, MOST_QUESTIONS))


def _set(ramp: Ramp, canary: Canary | None, reason: str, etag: str) -> tuple[AliasState, str]:
    """Change the canary in the state with ``etag``; the state that this made, and its etag."""
    model = ramp.challenger.model
    state = aliases.set_canary(ramp.models, model, CHAMPION, canary, reason=reason, expected=etag)
    found = aliases.read_alias(ramp.models, model, CHAMPION)
    if found is None or found[0] != state:
        raise Conflict(f"Alias {CHAMPION!r} of model {model!r} was changed by somebody else meanwhile.")
    return found


def _take_back(ramp: Ramp, state: AliasState, etag: str, why: str) -> NoReturn:
    """Give the challenger nothing any more.

    Raises:
        DeployFailed: always.
        Conflict: somebody else changed the alias.
    """
    version, model = ramp.challenger.version, ramp.challenger.model
    aliases.set_canary(ramp.models, model, CHAMPION, None, reason=f"canary: {version} {why}", expected=etag)
    raise DeployFailed(
        f"Version {version} of model {model!r} {why}; alias {CHAMPION!r} still points at {state.version}{_left(ramp)}."
    )


def _left(ramp: Ramp) -> str:
    """Wait until no replica gives the challenger anything; a clause that names those that go on nevertheless."""
    deadline = time.monotonic() + BACK_TIMEOUT_S
    while True:
        try:
            reports = ramp.replicas.each(lambda replica: canary_counts.asked(replica, ramp.challenger.model))
        except DeployFailed as error:
            return f", but whether all replicas know is not known: {error}"
        left = [each.name for each, report in reports.items() if report and report.has(ramp.challenger.version)]
        if not left:
            return ""
        if time.monotonic() > deadline:
            return f", but {', '.join(left)} did not let it go in time"
        time.sleep(POLL_S)


def _answers(models: Store, manifest: ModelManifest) -> dict[bytes, tuple[int, str]]:
    """A version's stored test images, by digest: their class index, and the label that its evaluation gave to each."""
    data = registry.load_file(models, manifest, PREDICTIONS)
    rows = parquet.read_table(data, ["image_digest", "label", "predicted"]).to_pylist()
    return {row["image_digest"]: (row["label"], manifest.classes[row["predicted"]]) for row in rows}
