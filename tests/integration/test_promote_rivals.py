"""Promotions at the same time: whoever is overtaken is judged again, and the best model ends up as champion."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from racing import at_the_line, race
from table_models import CATS_AND_DOGS, GATE, MODEL, all_but, champion, prepared, registered

from pipeline import aliases
from pipeline.aliases import CHAMPION
from pipeline.artifacts import ModelVersion
from pipeline.errors import Conflict
from pipeline.promote import promote
from pipeline.settings import Settings
from pipeline.store import Store
from pipeline.zones import Zones

PROMOTE = """
import os, sys
from pipeline.artifacts import GateConfig, ModelVersion
from pipeline.promote import promote
from pipeline.settings import Settings
from pipeline.zones import open_zones

zones = open_zones(Settings.from_environ(os.environ))
challenger = ModelVersion(model="pets", version=sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(promote(zones, challenger, GateConfig(class_images=100)).to_json().decode())
"""


class Interrupted(Store):
    """The models zone, where a rival moves the alias right before each of our own moves, while it has versions left."""

    def __init__(self, zone: Store, rivals: list[str]) -> None:
        super().__init__(zone._backend, zone.url, patience=zone._patience)  # noqa: SLF001 - the same zone, another behaviour
        self.zone = zone
        self.rivals = rivals

    def compare_and_swap(self, key: str, data: bytes, *, etag: str | None) -> None:
        """Ours, after the rival's."""
        if self.rivals:
            aliases.set_alias(self.zone, MODEL, CHAMPION, self.rivals.pop(0), reason="rival")
        super().compare_and_swap(key, data, etag=etag)


def interrupted(zones: Zones, *rivals: ModelVersion) -> Zones:
    """The zones, with rivals."""
    models = Interrupted(zones.models, [rival.version for rival in rivals])
    return Zones(zones.images, zones.datasets, zones.checkpoints, models, zones.predictions)


@pytest.mark.parametrize(("rival_wrong", "promoted"), [(3, True), (1, False)])
def test_an_overtaken_challenger_is_judged_again(zones: Zones, rival_wrong: int, promoted: bool) -> None:
    """Where another promotion came first, the challenger has to beat that new champion."""
    dataset = prepared(zones, CATS_AND_DOGS)
    first, rival, challenger = (
        registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=number)
        for number, wrong in ((1, 5), (2, rival_wrong), (3, 2))
    )
    promote(zones, first, GATE)
    decision = promote(interrupted(zones, rival), challenger, GATE)
    assert (decision.promoted, decision.champion) == (promoted, rival)
    assert champion(zones) == (challenger if promoted else rival).version


def test_a_challenger_gives_up_when_the_alias_never_rests(zones: Zones) -> None:
    """After three rounds against moving champions the promotion fails with a sentence, and changes nothing."""
    dataset = prepared(zones, CATS_AND_DOGS)
    rivals = [registered(zones, dataset, CATS_AND_DOGS, all_but(6 - number), number=number) for number in (1, 2, 3)]
    challenger = registered(zones, dataset, CATS_AND_DOGS, all_but(0), number=9)
    with pytest.raises(Conflict, match=f"moved by others 3 times while version {challenger.version} was judged: run"):
        promote(interrupted(zones, *rivals), challenger, GATE)
    assert champion(zones) == rivals[-1].version


def test_promotions_in_threads_leave_the_best_champion(zones: Zones) -> None:
    """Of three challengers at once the best ends up as champion, and each promotion beat the one before it."""
    dataset = prepared(zones, CATS_AND_DOGS)
    made = [registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=9 - wrong) for wrong in (5, 4, 2, 1)]
    promote(zones, made[0], GATE)
    barrier = Barrier(3)

    def compete(challenger: ModelVersion) -> bool:
        barrier.wait()
        return promote(zones, challenger, GATE).promoted

    with ThreadPoolExecutor(3) as pool:
        promoted = {version.version for version, won in zip(made[1:], pool.map(compete, made[1:]), strict=True) if won}
    check_history(zones, made, promoted)


def test_promotions_in_processes_leave_the_best_champion(zones: Zones, zone_settings: Settings) -> None:
    """The same between processes."""
    dataset = prepared(zones, CATS_AND_DOGS)
    made = [registered(zones, dataset, CATS_AND_DOGS, all_but(wrong), number=9 - wrong) for wrong in (5, 4, 2)]
    promote(zones, made[0], GATE)
    with at_the_line(PROMOTE, zone_settings, *([version.version] for version in made[1:])) as processes:
        told = race(processes)
    promoted = {
        version.version for version, lines in zip(made[1:], told, strict=True) if '  "promoted": true,' in lines
    }
    check_history(zones, made, promoted)


def check_history(zones: Zones, made: list[ModelVersion], promoted: set[str]) -> None:
    """The best version is live, and the history holds exactly the promotions that were told, each better in turn."""
    found = aliases.read_alias(zones.models, MODEL, CHAMPION)
    assert found is not None
    order = [version.version for version in made]
    live = [change.version for change in found[0].history]
    assert live == sorted(live, key=lambda version: order.index(version or ""))
    assert live[-1] == order[-1]
    assert set(live) - {order[0]} == promoted
    assert len(set(live)) == len(live)
